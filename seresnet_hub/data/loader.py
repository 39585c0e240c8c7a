"""Stream labelled images in an order that depends on the seed and the epoch alone, each exactly once.

`splits` reads the units of a data set and `plan` says which of their rows is in which place of which batch. Here the
workers of a rank each read their own units and decode their own places of every batch, straight into one of a few
shared batches that are used again and again.
"""

from __future__ import annotations

import math
import mmap
import sys
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from seresnet_hub.data.decoding import Decoder, DecoderName, Picture, TransformError
from seresnet_hub.data.image_files import UnavailableError
from seresnet_hub.data.plan import Order, Plan, Reader, Window
from seresnet_hub.data.shards import require_unchanged
from seresnet_hub.data.splits import EMBEDDED, open_split
from seresnet_hub.data.transforms import Transform, reseed, streams_kept, training_transform
from seresnet_hub.data.units import Row, Split, read_unit, require_same_shards, shards_now
from seresnet_hub.data.worker_pool import Workers
from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.recipes.fields import following
from seresnet_hub.recipes.recipe import Recipe

__all__ = ["EMBEDDED", "Batch", "Loader", "Split", "evaluation_loader", "loader", "open_split"]

# Batches that the workers prepare ahead of the one in use.
AHEAD = 2
# So many images may be undecodable where `corrupt_share` of them would be fewer.
FEW_DAMAGED = 10

log = PrintableLog(__name__)
_named: set[str] = set()  # the pictures left out that were named already


class Batch(NamedTuple):
    """One rank's part of a global batch: uint8 `images` `(rows, 3, height, width)`, `labels`, and which rows count.

    Rows with a false `mask` are none: they make all ranks' parts equally long, or could not be decoded. `total` counts
    the rows of all ranks, undecodable ones included. Rows with a true `mirror` are still to be flipped (`device.finish`
    does it). `indices` number the rows within the split; -1 where there is none. `whole` is whether all rows are known
    to count, and `missing` the number of undecodable rows that this rank met: both without waiting for a device. With
    repeated augmentation the copies of an image lie side by side, all on one rank, until `repeats` deals them out.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    total: int
    mirror: torch.Tensor
    indices: torch.Tensor
    whole: bool
    missing: int


class _Job(NamedTuple):
    """What a worker is asked for: a part of a batch, into a place of the ring (-1: into memory of its own)."""

    batch: int
    part: int
    slot: int


class _Part(NamedTuple):
    """A worker's answer, small enough for one write to a pipe; the images are in the ring unless they are here.

    As an array they go through the pipe, where a tensor would need room in /dev/shm.
    """

    images: np.ndarray | None
    labels: np.ndarray
    mask: np.ndarray
    mirror: np.ndarray
    indices: np.ndarray
    skipped: list[str]


class _Undecodable(Exception):
    """A picture that is left out; the text says where it lies and what is wrong with it."""


class _Feed:
    """The undecoded rows of one reader, batch after batch; units are read ahead in threads and dropped when used up."""

    def __init__(self, split: Split, plan: Plan, reader: Reader, start: int) -> None:
        self._split = split
        self._windows = plan.windows(reader, start)
        self._uses = plan.unit_uses(reader, start)
        self._upcoming: deque[Window] = deque()
        self._units: dict[int, Future[list[Row]]] = {}
        self._rows: dict[int, list[tuple[int, Row]]] = defaultdict(list)
        self._threads = ThreadPoolExecutor(4 if split.remote else 1, thread_name_prefix="reading")
        self._ahead = 4 if split.remote else 1
        self.next = start

    def take(self) -> list[tuple[int, Row]]:
        """Return the places and rows of the next batch."""
        self._look_ahead()
        while self._upcoming and self._upcoming[0].first_batch <= self.next:
            window = self._upcoming.popleft()
            self._look_ahead()
            self._open(window)
        self.next += 1
        return self._rows.pop(self.next - 1, [])

    def _look_ahead(self) -> None:
        while len(self._upcoming) <= self._ahead:
            window = next(self._windows, None)
            if window is None:
                return
            self._upcoming.append(window)
            for unit in np.unique(window.unit).tolist():
                if unit not in self._units:
                    self._units[unit] = self._threads.submit(read_unit, self._split, unit)

    def _open(self, window: Window) -> None:
        units = {unit: self._units[unit].result() for unit in np.unique(window.unit).tolist()}
        columns = (window.batch, window.place, window.unit, window.row)
        for batch, place, unit, row in zip(*(column.tolist() for column in columns), strict=True):
            self._rows[batch].append((place, units[unit][row]))
        for unit in units:
            self._uses[unit] -= 1
            if not self._uses[unit]:
                del self._units[unit]


class _Stream(Dataset[Any]):
    """Makes the parts of batches that it is asked for. A failure travels as a value, to keep its text."""

    def __init__(
        self,
        split: Split,
        plan: Plan,
        decoder: Decoder,
        *,
        size: tuple[int, int],
        rank: int,
        world_size: int,
        parts: int,
        start: int,
        num_classes: int | None,
        repeats: int,
        slots: int,
    ) -> None:
        self.split, self.plan, self.decoder, self.size = split, plan, decoder, size
        self.rank, self.world_size, self.parts, self.start = rank, world_size, parts, start
        self.num_classes, self.repeats = num_classes, repeats
        self.rows = plan.share(0, world_size) * repeats if plan.steps else 0
        self.ring = _Ring(slots, (self.rows, *size, 3)) if slots else None
        self.lent: deque[int] = deque()  # the slots of the batches asked for, in order
        self._feeds: dict[int, _Feed] = {}

    def reader(self, part: int) -> Reader:
        return Reader(self.rank * self.parts + part, self.world_size * self.parts)

    def __getitem__(self, job: _Job) -> _Part | InputError:
        try:
            feed = self._feeds.get(job.part)
            if feed is None or feed.next != job.batch:
                feed = self._feeds[job.part] = _Feed(self.split, self.plan, self.reader(job.part), job.batch)
            with streams_kept():
                return self._decode(job, feed.take())
        except InputError as error:
            return error
        except MemoryError:
            return InputError(f"not enough memory to prepare the images of {self.split.source}")

    def _decode(self, job: _Job, rows: list[tuple[int, Row]]) -> _Part:
        low, high = self.plan.places(job.batch, self.reader(job.part))
        count = (high - low) * self.repeats
        images = torch.empty((count, *self.size, 3), dtype=torch.uint8)
        if self.ring is not None and job.slot >= 0:
            first = (low - self.plan.places(job.batch, Reader(self.rank, self.world_size))[0]) * self.repeats
            images = torch.from_numpy(self.ring.array(job.slot)[first : first + count])
        part = _Part(
            images.numpy() if job.slot < 0 else None,
            np.zeros(count, np.int64), np.zeros(count, bool), np.zeros(count, bool), np.full(count, -1, np.int64), [],
        )  # fmt: skip
        for place, row in rows:
            copies = slice((place - low) * self.repeats, (place - low + 1) * self.repeats)
            part.indices[copies], label = row.number, self._label(row)
            try:
                picture = self._picture(row)  # decoded once, augmented several times
                for repeat in range(self.repeats):
                    at = copies.start + repeat
                    part.mirror[at] = self._augmented(row, repeat, picture, images[at].permute(2, 0, 1))
            except _Undecodable as error:
                images[copies] = 0  # masked, but batch statistics see them
                part.mirror[copies] = False
                part.skipped.append(str(error))
            else:
                part.labels[copies], part.mask[copies] = label, True
        return part

    def _picture(self, row: Row) -> Picture:
        """Read and decode. Errors: `_Undecodable`; `InputError` where a file may not be read or is out of reach."""
        data, path = (row.image.get("bytes"), row.image.get("path")) if row.image else (None, None)
        try:
            if data is None and path is None:
                raise InputError("there is no image in this row")
            return self.decoder.decode(self.split.row_files.read(cast(str, path)) if data is None else data)
        except UnavailableError as error:
            raise InputError(f"{self._name(row)}: {error}") from error
        except (InputError, OSError, TypeError, ValueError) as error:
            raise _Undecodable(f"{self._name(row)}: {error}") from error

    def _augmented(self, row: Row, repeat: int, picture: Picture, out: torch.Tensor) -> bool:
        """Write a copy into `out`, with draws of its own; whether it is still to be mirrored."""
        if self.plan.order is not None:
            reseed(self.plan.order.seed, self.plan.order.epoch, row.number, *([repeat] if repeat else []))
        try:
            return self.decoder.apply(picture, out)
        except InputError as error:
            raise _Undecodable(f"{self._name(row)}: {error}") from error
        except TransformError as error:
            raise InputError(f"{self._name(row)}: {error}; the picture itself is whole") from error

    def _name(self, row: Row) -> str:
        path = row.image.get("path") if row.image else None
        return self.split.place(row.number) + (f" ({path})" if path else "")

    def _label(self, row: Row) -> int:
        label = row.label
        if not isinstance(label, int) or label < 0 or (self.num_classes is not None and label >= self.num_classes):
            expected = "0 or more" if self.num_classes is None else f"0 to {self.num_classes - 1}"
            raise InputError(f"{self.split.place(row.number)}: label {label!r}, expected {expected}")
        return label


class _Ring:
    """A few batches in memory that a process shares with its workers; a slot is free again when nobody has its batch.

    Memory of its own kind instead of torch's shared tensors: these lie in /dev/shm, which is often small.
    """

    def __init__(self, slots: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._bytes = int(np.prod(shape))
        try:
            self._memory = mmap.mmap(-1, max(slots * self._bytes, 1))
        except (OSError, OverflowError, ValueError) as error:
            raise InputError(
                f"not enough memory for {slots} batches of {shape[0]:,} images of {shape[1]} x {shape[2]} pixels "
                f"({error}): choose a smaller batch or input size"
            ) from error
        self._free = deque(range(slots))

    def array(self, slot: int) -> np.ndarray:
        """Return a slot's memory."""
        flat = np.frombuffer(self._memory, np.uint8, self._bytes, slot * self._bytes)
        return flat.reshape(self.shape)

    def take(self) -> int:
        """Return a free slot, or -1."""
        return self._free.popleft() if self._free else -1

    def lend(self, slot: int) -> torch.Tensor:
        """Return a slot as a tensor; the slot is free again when the last tensor over this memory is gone."""
        flat = np.frombuffer(self._memory, np.uint8, self._bytes, slot * self._bytes)
        weakref.finalize(flat, self._free.append, slot).atexit = False
        return torch.from_numpy(flat).view(self.shape)


class Loader:
    """The batches of one epoch on one rank; iterate it. `len()` counts the batches that are left from its position.

    Each iteration begins at the position that was asked for. `state_dict()` says, in a few integers, where the running
    one is; any loader of the same split, seed and epoch continues there, also with other ranks or workers. `skipped`
    lists the pictures of this rank that could not be decoded.
    """

    def __init__(
        self,
        split: Split,
        plan: Plan,
        decoder: Decoder,
        *,
        size: tuple[int, int],
        num_classes: int | None,
        rank: int,
        world_size: int,
        workers: int,
        position: int = 0,
        repeats: int = 1,
        corrupt_share: float = 0.0,
    ) -> None:
        self.split, self.plan = split, plan
        self.skipped: list[str] = []
        self._decoder, self._size, self._num_classes = decoder, size, num_classes
        self._rank, self._world_size, self._workers = rank, world_size, workers
        self._start = self._next = position
        self._repeats, self._corrupt_share = repeats, corrupt_share

    def __len__(self) -> int:
        return max(self.plan.steps - self._start, 0)

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
        require_unchanged(self.split.source, self.split.shards, shards_now(self.split))
        self._next = self._start
        self.skipped.clear()
        if not len(self):
            return
        parts = self.plan.parts(self._world_size, self._workers) if self._workers else 1
        readers = self._world_size * parts
        if self._workers > parts or (self._workers and self.plan.lanes % readers):
            shared = ", which read some row groups twice" if self.plan.lanes % readers else ""
            log.warning(
                "%d of %d loader workers are used: the %d lanes of the plan are divided among %d x %d readers%s; "
                "set lanes to a multiple of ranks x workers",
                parts, self._workers, self.plan.lanes, self._world_size, parts, shared,
            )  # fmt: skip
        stream = _Stream(
            self.split, self.plan, self._decoder, size=self._size, rank=self._rank, world_size=self._world_size,
            parts=parts, start=self._start, num_classes=self._num_classes, repeats=self._repeats,
            slots=AHEAD + 2 if self._workers else 0,
        )  # fmt: skip
        workers = parts if self._workers else 0
        loader_of = partial(
            DataLoader, stream, batch_size=None, sampler=_Jobs(stream, self.plan.steps), collate_fn=_unchanged,
            prefetch_factor=AHEAD if workers else None,
        )  # fmt: skip
        answers, fingerprint, is_finalizing = Workers(loader_of, workers), self.split.fingerprint, sys.is_finalizing
        try:
            for batch in range(self._start, self.plan.steps):
                found = [answers.answer() for _ in range(parts)]
                for part in found:
                    if isinstance(part, InputError):
                        raise part
                self._next = batch + 1
                self._count_skipped([text for part in found for text in part.skipped])
                self.split.unit_hashes.save(fingerprint)
                yield self._assembled(batch, found, stream)
                del found
        finally:
            if not is_finalizing():  # at the interpreter's end modules are gone already, and so are the workers
                answers.close()
                self.split.unit_hashes.save(fingerprint, now=True)

    def _assembled(self, batch: int, parts: list[_Part], stream: _Stream) -> Batch:
        total = self.plan.batch_rows(batch) * self._repeats
        length = self.plan.share(batch, self._world_size) * self._repeats
        labels, mask, mirror, indices = (
            torch.from_numpy(np.concatenate([part[k] for part in parts])) for k in range(1, 5)
        )
        padding, undecodable = length - len(labels), len(mask) - int(mask.sum())
        own = [torch.from_numpy(part.images) for part in parts if part.images is not None]
        if own:
            images = (
                own[0]
                if len(own) == 1 and not padding
                else torch.cat([*own, own[0].new_zeros(padding, *self._size, 3)])
            )
        else:
            assert stream.ring is not None
            images = stream.ring.lend(stream.lent.popleft())[:length]
        if padding:
            # Another row's picture upsets batch statistics less than a black one.
            images[length - padding :] = images[length - padding - 1] if padding < length else 0
            labels = torch.nn.functional.pad(labels, (0, padding))
            mask, mirror = (torch.nn.functional.pad(flags, (0, padding)) for flags in (mask, mirror))
            indices = torch.nn.functional.pad(indices, (0, padding), value=-1)
        whole = not padding and not undecodable
        return Batch(images.permute(0, 3, 1, 2), labels, mask, total, mirror, indices, whole, undecodable)

    def _count_skipped(self, texts: list[str]) -> None:
        if not texts:
            return
        for text in texts:
            if text not in _named:  # once a process, and not in each epoch
                log.warning("left out: %s", text)
        _named.update(texts)
        self.skipped += texts
        named = "; ".join(self.skipped[:20]) + (" …" if len(self.skipped) > 20 else "")
        require_few_damaged(len(self.skipped), self.split, self._corrupt_share, named)


def most_damaged(split: Split, share: float) -> int:
    """Return how many images of a split may be undecodable: `share` of them, or a few where they are few.

    A few are 10, or a tenth of fewer than 100 images: one broken file of a small folder ends no run, and nothing trains
    on a folder of broken ones. A held-out part is judged by the collection that it was taken from. With `share=0` none
    may be.
    """
    return max(int(share * _collection(split)), min(FEW_DAMAGED, _collection(split) // 10)) if share else 0


def require_few_damaged(damaged: int, split: Split, share: float, named: str = "") -> None:
    """Raise `InputError` where more images are undecodable than may be (see `most_damaged`); says what to do."""
    most, images = most_damaged(split, share), _collection(split)
    if damaged <= most:
        return
    if not share:
        way_out = f"{damaged} undecodable, and no image may be left out here: repair or remove what is damaged"
    else:
        way_out = (
            f"{damaged} undecodable images, more than {most:,} of {images:,}: repair or remove what is damaged, or set "
            f"corrupt_share, the share that may be left out, to {math.ceil(1000 * damaged / images) / 1000:g}"
        )
    named = named or f"the output of the processes names the damaged images of {split.source}"
    raise InputError(f"{named} ({way_out})")


def _collection(split: Split) -> int:
    return sum(split.whole_unit_rows)


class _Jobs:
    """The questions for the workers, in order; asked for by torch's loader as it needs them."""

    def __init__(self, stream: _Stream, steps: int) -> None:
        self._stream, self._steps = stream, steps

    def __iter__(self) -> Iterator[_Job]:
        ring = self._stream.ring
        for batch in range(self._stream.start, self._steps):
            slot = ring.take() if ring is not None else -1
            if slot >= 0:
                self._stream.lent.append(slot)
            for part in range(self._stream.parts):
                yield _Job(batch, part, slot)


def _unchanged(part: Any) -> Any:
    return part


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

    The order depends on `seed` and `epoch` alone, the augmentation of a sample on these and the sample. `position` is
    the number of global batches to leave out at the start. The last batch may be smaller. Errors: see `open_split`.
    """
    if open_fields := following(recipe):
        raise InputError(f"recipe {recipe.name!r} leaves {', '.join(open_fields)} open: give them values")
    opened = source if isinstance(source, Split) else open_split(source, split)
    decoder = Decoder(transform_of(recipe), recipe.decoder)
    return Loader(
        opened, epoch_plan(opened, recipe, seed=seed, epoch=epoch), decoder, size=(recipe.input_size,) * 2,
        num_classes=recipe.num_classes or (len(opened.class_names) if opened.class_names else None),
        rank=rank, world_size=world_size, workers=workers, position=position, repeats=recipe.repeated_augmentation,
        corrupt_share=recipe.corrupt_share,
    )  # fmt: skip


def evaluation_loader(
    source: str | Split,
    split: str | None,
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
) -> Loader:
    """Return every image of a split once, unshuffled (`Batch.indices` number them); an undecodable one is an error.

    `batch_size` counts images over all ranks, `input_size` is the height and width that `transform` makes. With
    `corrupt_share` some may be undecodable (see `most_damaged`), and are masked.
    """
    opened = source if isinstance(source, Split) else open_split(source, split)
    plan = Plan(unit_rows=opened.unit_rows, batch_size=batch_size, lanes=lanes, order=None)
    return Loader(
        opened, plan, Decoder(transform, decoder), size=input_size, num_classes=num_classes, rank=rank,
        world_size=world_size, workers=workers, corrupt_share=corrupt_share,
    )  # fmt: skip
