"""What is done to a batch on the device: mirroring, normalising, mixing, erasing; and bringing it there in time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Literal

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch.nn import functional as F

from seresnet_hub.data.loader import Batch
from seresnet_hub.data.transforms import normalize, seeded
from seresnet_hub.recipes.recipe import Recipe


def finish(
    batch: Batch, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return a batch's images as a model takes them: mirrored where asked for, normalised, in channels_last layout."""
    images = batch.images
    if images.device.type != "cpu" or batch.mirror.any():  # asking a GPU would wait for it
        # As bytes: four times as many pixels pass in the same time.
        images = torch.where(batch.mirror[:, None, None, None], images.flip(-1), images)
    return normalize(images, mean=mean, std=std, dtype=dtype)


class Mixer:
    """Mixup or cutmix, then random erasing, as timm does them, by a recipe; draws depend on the seed.

    timm's loader mixes before it erases, so an erased patch hides a part of both images. It is filled with noise.
    """

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device) -> None:
        self._num_classes, self._smoothing = num_classes, recipe.label_smoothing
        self._erase = RandomErasing(recipe.erasing, mode="pixel", device=str(device)) if recipe.erasing else None
        self._mix = None
        if recipe.mixup or recipe.cutmix:
            self._mix = Mixup(
                mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, label_smoothing=recipe.label_smoothing,
                num_classes=num_classes,
            )  # fmt: skip

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor | Literal[True], *seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and targets: labels, or class probabilities `(batch, classes)` where the recipe mixes.

        `images` may be overwritten. `counts` is which rows count, or True where all are known to. A batch of an odd
        number is not mixed, nor is a row whose partner does not count. Draws depend on `seed` alone, but for erasing's
        noise on a GPU, which is of the device's own stream.
        """
        with seeded(*seed):
            if self._mix is not None:
                images, labels = self._mixed(images, labels, counts)
            return images if self._erase is None else self._erase(images), labels

    def _mixed(
        self, images: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor | Literal[True]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._mix is not None
        exact = F.one_hot(labels, self._num_classes).float() * (1 - self._smoothing)
        exact += self._smoothing / self._num_classes
        if len(images) % 2:
            return images, exact
        mixed: torch.Tensor
        if isinstance(counts, bool):
            mixed, targets = self._mix(images, labels)
            return mixed, targets
        plain = images.clone()
        mixed, targets = self._mix(images, labels)
        both = counts & counts.flip(0)  # timm mixes a batch with itself, turned round
        return torch.where(both[:, None, None, None], mixed, plain), torch.where(both[:, None], targets, exact)


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on `device`; to a GPU each is copied on a stream of its own while the one before is in use."""
    if device.type != "cuda":
        for batch in batches:
            yield batch if device.type == "cpu" else _moved(batch, device)
        return
    stream = _copying_stream(device)
    waiting: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = _moved(batch, device, pin=True)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in (copied.images, copied.labels, copied.mask, copied.mirror, copied.indices):
            tensor.record_stream(torch.cuda.current_stream(device))
        waiting = copied
    if waiting is not None:
        yield waiting


@cache  # a GPU's memory that was freed on a stream is kept for that stream: one a loop would keep that of each loop
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _moved(batch: Batch, device: torch.device, *, pin: bool = False) -> Batch:
    """Return a batch on the device; with `pin` by way of pinned memory, without waiting for the copy."""
    values: Any = [
        (value.pin_memory() if pin else value).to(device, non_blocking=pin)
        if isinstance(value, torch.Tensor)
        else value
        for value in batch
    ]
    return Batch(*values)
