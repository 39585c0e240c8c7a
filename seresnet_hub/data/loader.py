"""Stream labelled images in an order that depends on the seed and the epoch alone, each exactly once.

`open_split` opens a data set as a row of units, and `plan` says which of their rows is in which place of which batch.
The workers of a rank (`worker`) each read their own units and decode their own places of every batch, straight into one
of a few batches that are used again and again (`shared_batches`). A run starts them once (`loader_workers`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from seresnet_hub.data.damaged_images import require_few_damaged
from seresnet_hub.data.decoding import Decoder, DecoderName
from seresnet_hub.data.loader_spec import LoaderSpec
from seresnet_hub.data.loader_workers import LoaderWorkers, Pass
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.plan import Order, Plan
from seresnet_hub.data.split import Split
from seresnet_hub.data.transforms import Transform, training_transform
from seresnet_hub.data.units import require_same_shards
from seresnet_hub.data.worker import WorkerRows
from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.recipes.field_types import following
from seresnet_hub.recipes.recipe import Recipe

log = PrintableLog(__name__)
_logged: set[str] = set()  # the undecodable images that this process has named


class Batch(NamedTuple):
    """One rank's part of a global batch: uint8 `images` `(rows, 3, height, width)`, `labels`, and which rows count.

    Rows with a false `mask` do not count: they could not be decoded, or are padding that makes all ranks' parts equally
    long. `total` is the number of rows over all ranks, undecodable ones included. Rows with a true `mirror` are still
    to be flipped (see `batch_augmentation.finish`). `indices` number the rows within the split; padding has -1.
    `whole` says whether all rows are known to count, and `missing` how many rows of this rank could not be decoded;
    neither is on a device. With repeated augmentation the copies of an image lie side by side, all on one rank, until
    `repeated_augmentation.dealt` deals them out. Where the loader reports errors, `errors` says of each row that could
    not be decoded why, and `paths` how pictures are called where rows of a data set say it; both by `indices`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    total: int
    mirror: torch.Tensor
    indices: torch.Tensor
    whole: bool
    missing: int
    errors: Mapping[int, str] = {}
    paths: Mapping[int, str] = {}


class Loader:
    """The batches of one epoch on one rank, before batch `stop`; iterate it. `len()` counts them from its position on.

    `workers` are those of the run; without them each iteration starts workers of its own.
    Each iteration begins at the position that was asked for. `state_dict()` gives the position of the running one as a
    few integers; any loader of the same split, seed and epoch continues there, also with other ranks or workers.
    `skipped` names the images of this rank that could not be decoded.
    """

    def __init__(
        self, spec: LoaderSpec, position: int = 0, *, stop: int | None = None, workers: LoaderWorkers | None = None
    ) -> None:
        self.spec, self.split, self.plan = spec, spec.split, spec.plan
        self.skipped: list[str] = []
        self._workers, self._stop = workers, stop
        self._start = self._next = position

    def __len__(self) -> int:
        return max(Pass(self.spec, self._start, self._stop).end - self._start, 0)

    def state_dict(self) -> dict[str, int]:
        """Return the position: seed, epoch, batches handed out, and the fingerprint of the shards."""
        order = self.plan.order or Order(0, 0, 0)
        return {"seed": order.seed, "epoch": order.epoch, "batch": self._next, "shards": self.split.fingerprint}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a position; reads nothing.

        Errors: `InputError` where it belongs to another epoch, or names the shards that have changed since.
        """
        require_same_shards(self.split, state.get("shards", -1))
        here = self.state_dict()
        wrong = [
            f"{key} was {state.get(key)}, now {here[key]}" for key in ("seed", "epoch") if state.get(key) != here[key]
        ]
        if wrong or not 0 <= state.get("batch", -1) <= self.plan.steps:
            raise InputError(f"this position is not of this loader: {'; '.join(wrong) or state}")
        self._start = self._next = state["batch"]

    def __iter__(self) -> Iterator[Batch]:
        self._next = self._start
        self.skipped.clear()
        if not len(self):
            return
        is_finalizing = sys.is_finalizing
        fingerprint = 0 if self.split.pictures is not None else self.split.fingerprint  # nothing is kept of pictures
        try:
            with LoaderWorkers(self.spec) if self._workers is None else nullcontext(self._workers) as workers:
                for parts, images in workers.batches(Pass(self.spec, self._start, self._stop)):
                    if not self.spec.reports_errors:
                        self._count_skipped([f"{one.name}: {one.reason}" for part in parts for one in part.undecodable])
                    self.split.unit_hashes.save(fingerprint)
                    if self.split.parquet is not None and self.spec.rank == 0:
                        self.split.parquet.cache.say_now_and_then()
                    self._next += 1
                    yield self._joined(self._next - 1, parts, images)
                    del parts, images
        finally:
            if not is_finalizing():  # at the interpreter's end modules are gone already
                self.split.unit_hashes.save(fingerprint, now=True)

    def _joined(self, number: int, parts: list[WorkerRows], images: torch.Tensor | None) -> Batch:
        """Return the rows of all workers as one batch, padded to the length that every rank has."""
        length = self.spec.rows(number)
        labels, mask, mirror, indices = (
            torch.from_numpy(np.concatenate([getattr(part, name) for part in parts]))
            for name in ("labels", "mask", "mirror", "indices")
        )
        padding, undecodable = length - len(labels), len(mask) - int(mask.sum())
        if images is not None:
            images = images[:length]
        else:
            own = [torch.from_numpy(part.images) for part in parts if part.images is not None]
            alone = len(own) == 1 and not padding
            images = own[0] if alone else torch.cat([*own, own[0].new_zeros(padding, *self.spec.size, 3)])
        if padding:
            # Another row's picture upsets batch statistics less than a black one.
            images[length - padding :] = images[length - padding - 1] if padding < length else 0
            labels, mask, mirror = (F.pad(values, (0, padding)) for values in (labels, mask, mirror))
            indices = F.pad(indices, (0, padding), value=-1)
        return Batch(
            images.permute(0, 3, 1, 2), labels, mask, self.plan.batch_rows(number) * self.spec.repeats, mirror, indices,
            whole=not padding and not undecodable, missing=undecodable,
            errors={one.row: one.reason for part in parts for one in part.undecodable},
            paths={row: path for part in parts for row, path in part.paths.items()},
        )  # fmt: skip

    def _count_skipped(self, texts: list[str]) -> None:
        if not texts:
            return
        for text in texts:
            if text not in _logged:  # once a process, not in each epoch
                log.warning("left out: %s", text)
        _logged.update(texts)
        self.skipped += texts
        named = "; ".join(self.skipped[:20]) + (" …" if len(self.skipped) > 20 else "")
        require_few_damaged(len(self.skipped), self.split, self.spec.corrupt_share, named)


def epoch_plan(split: Split, recipe: Recipe, *, seed: int, epoch: int) -> Plan:
    """Return the plan of a training epoch; with repeated augmentation, of the rows that are each seen several times."""
    repeats = recipe.repeated_augmentation
    steps = split.rows // recipe.batch_size if recipe.drop_last else -(-split.rows // recipe.batch_size)
    return Plan(
        unit_rows=split.unit_rows, batch_size=recipe.batch_size // repeats, lanes=recipe.lanes,
        order=Order(seed, epoch, recipe.shuffle_window), drop_last=recipe.drop_last,
        max_steps=steps if repeats > 1 else None,
    )  # fmt: skip


def transform_of(recipe: Recipe) -> Transform:
    """Return the training transform that a recipe asks for (see `training_transform`)."""
    return training_transform(
        crop=recipe.crop, input_size=(3, recipe.input_size, recipe.input_size), interpolation=recipe.interpolation,
        crop_padding=recipe.crop_padding, scale=recipe.scale, horizontal_flip=recipe.horizontal_flip,
        auto_augment=recipe.auto_augment, color_jitter=recipe.color_jitter,
    )  # fmt: skip


def training_spec(
    split: Split, recipe: Recipe, *, rank: int = 0, world_size: int = 1, workers: int = 0, seed: int = 0
) -> LoaderSpec:
    """Return what `loader` reads in the first epoch; the others are `LoaderSpec.of_epoch` of it."""
    return LoaderSpec(
        split=split, plan=epoch_plan(split, recipe, seed=seed, epoch=0),
        decoder=Decoder(transform_of(recipe), recipe.decoder, recipe.repeated_augmentation),
        size=(recipe.input_size,) * 2,
        num_classes=recipe.num_classes or (len(split.class_names) if split.class_names else None),
        rank=rank, world_size=world_size, workers=workers, repeats=recipe.repeated_augmentation,
        corrupt_share=recipe.corrupt_share,
    )  # fmt: skip


def loader(
    source: str | Split,
    split: str | None,
    recipe: Recipe,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    seed: int = 0,
    epoch: int = 0,
    position: int = 0,
) -> Loader:
    """Return the training batches of one epoch: `recipe.batch_size` images over all ranks, augmented as it says.

    Each is a `Batch`: uint8 images `(rows, 3, height, width)`, int64 labels, and a mask of the rows that count. The
    order depends on `seed` and `epoch` alone, the augmentation of a sample on these and the sample. `position` is
    the number of global batches to leave out at the start. The last batch may be smaller. Errors: see `open_split`.
    """
    if open_fields := following(recipe):
        raise InputError(f"recipe {recipe.name!r} leaves {', '.join(open_fields)} open: give them values")
    opened = source if isinstance(source, Split) else open_split(source, split, cache_gb=recipe.cache_gb)
    spec = training_spec(opened, recipe, rank=rank, world_size=world_size, workers=workers, seed=seed)
    return Loader(spec.of_epoch(epoch), position)


def evaluation_spec(
    split: Split,
    transform: Transform,
    *,
    input_size: tuple[int, int],
    batch_size: int,
    num_classes: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    decoder: DecoderName = "pil",
    lanes: int = 24,
    corrupt_share: float = 0.0,
) -> LoaderSpec:
    """Return what an evaluation reads: every image of a split once, unshuffled (`Batch.indices` number them).

    `batch_size` counts images over all ranks, `input_size` is the height and width that `transform` makes. An
    undecodable image is an error; with `corrupt_share` some may be (see `most_damaged`), and are masked.
    """
    return LoaderSpec(
        split=split, plan=Plan(unit_rows=split.unit_rows, batch_size=batch_size, lanes=lanes, order=None),
        decoder=Decoder(transform, decoder), size=input_size, num_classes=num_classes, rank=rank,
        world_size=world_size, workers=workers, corrupt_share=corrupt_share,
    )  # fmt: skip
