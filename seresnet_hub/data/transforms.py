"""Turn pictures into the tensors that a model takes, and seed the random streams that this draws from."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as timms_augmentation
from timm.data import create_transform, resolve_model_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import nn
from torchvision import transforms

from seresnet_hub.data.read_image import MOST_PIXELS
from seresnet_hub.errors import InputError

Transform = Callable[[Image.Image], torch.Tensor]

TRIVIAL_AUGMENT = "ta_wide"  # torchvision's name for what timm has not
GEOMETRIC = (RandomResizedCropAndInterpolation, transforms.RandomHorizontalFlip)  # how timm's training transform begins


def evaluation_transform(
    *, input_size: Sequence[int], interpolation: str, crop_pct: float, crop_mode: str = "center", **_: Any
) -> Transform:
    """Return timm's evaluation transform, stopped before normalisation: picture to uint8 `(3, height, width)`.

    Takes the keys of `timm.data.resolve_model_data_config` (mean and std are applied later, by `normalize`). Errors:
    `InputError` where a picture would be resized to more than `MOST_PIXELS` pixels.
    """
    height, width = input_size[-2:]
    if not 0 < crop_pct < math.inf or not 0 < height * width / crop_pct**2 <= MOST_PIXELS:
        raise InputError(
            f"input size {width} x {height} with crop_pct={crop_pct:g}: pictures would be resized to sides that long "
            f"over crop_pct, and may have {MOST_PIXELS:,} pixels at most"
        )
    transform: Transform = create_transform(
        tuple(input_size), interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, normalize=False
    )
    return transform


def require_resizable(transform: Any, size: tuple[int, int]) -> None:
    """Raise `InputError` where a transform resizes a picture of this width and height to more pixels than there may be.

    A resize of the shorter side makes a very long picture out of a very narrow one.
    """
    first = next(iter(getattr(transform, "transforms", [])), None)
    side = getattr(first, "size", None)
    side = side[0] if isinstance(side, (list, tuple)) and len(side) == 1 else side
    if not isinstance(first, transforms.Resize) or not isinstance(side, int):
        return
    if side * side * max(size) / max(min(size), 1) > MOST_PIXELS:
        raise InputError(f"a picture of {size[0]} x {size[1]} pixels: too narrow to be resized to {side} pixels")


def training_transform(
    *,
    crop: str,
    input_size: Sequence[int],
    interpolation: str,
    crop_padding: int,
    scale: tuple[float, float],
    horizontal_flip: float,
    auto_augment: str | None = None,
    color_jitter: float = 0.0,
) -> Transform:
    """Return the training transform, stopped before normalisation: picture to uint8 `(3, height, width)`.

    `crop="resized"` is timm's RandomResizedCrop over `scale` of the area; `crop="pad"` resizes to the input size, pads
    by `crop_padding` black pixels on each side and crops back (arXiv 1512.03385, section 4.2). `auto_augment` is a text
    in timm's language ("rand-m9-mstd0.5", "original", "3a"), its gaps filled with ImageNet's mean, or "ta_wide",
    torchvision's TrivialAugment with black gaps as in its training reference; `color_jitter` is a strength, left out
    beside any of them but "3a". Errors: `InputError` where `auto_augment` is none of these.
    """
    trivial = auto_augment == TRIVIAL_AUGMENT
    try:
        timms: Transform = create_transform(
            tuple(input_size), is_training=True, scale=scale, hflip=horizontal_flip,
            color_jitter=None if trivial else color_jitter or None, auto_augment=None if trivial else auto_augment,
            interpolation=interpolation, normalize=False,
        )  # fmt: skip
    except (AssertionError, KeyError, ValueError) as error:  # what timm raises at a text that it cannot read
        if auto_augment is None:
            raise
        raise InputError(
            f"auto_augment={auto_augment}: timm cannot read it ({error or type(error).__name__})"
        ) from error
    steps: list[Any] = timms.transforms  # type: ignore[attr-defined]
    if trivial:
        steps.insert(-1, transforms.TrivialAugmentWide(interpolation=transforms.InterpolationMode(interpolation)))
    for operation in _operations(steps):
        if operation.aug_fn is timms_augmentation.posterize:
            operation.aug_fn = _posterized
    if crop == "resized":
        return timms
    size = tuple(input_size)[-2:]
    distort = [step for step in steps if not isinstance(step, GEOMETRIC)]
    composed: Transform = transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.RandomCrop(size, padding=crop_padding or None),
            transforms.RandomHorizontalFlip(horizontal_flip),
            *distort,  # ends with the tensor
        ]
    )
    return composed


def _operations(step: Any) -> Iterator[Any]:
    """Yield the single operations of timm's automatic augmentations, wherever they are within `step`."""
    if isinstance(step, timms_augmentation.AugmentOp):
        yield step
    inner = getattr(step, "ops", getattr(step, "policy", step))
    for part in inner if isinstance(inner, (list, tuple)) else ():
        yield from _operations(part)


def _posterized(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    """Posterize as timm does, and to black where no bit is kept, which Pillow does itself before version 13."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = timms_augmentation.posterize(image, bits_to_keep, **options)
    return posterized


def normalize(
    images: torch.Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return uint8 images `(batch, 3, height, width)` in [0, 1], less `mean`, over `std`, in channels_last layout."""
    center, spread = (_by_channel(tuple(values), images.device) for values in (mean, std))
    # The layout while they are bytes; the division reads bytes and writes the only new floats.
    floats = images.contiguous(memory_format=torch.channels_last).div(255).sub_(center).div_(spread)
    return floats.to(dtype)


@cache  # a tensor made of numbers waits for a GPU
def _by_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # it may be used in training next
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


def model_transform(model: nn.Module, **overrides: Any) -> tuple[Transform, dict[str, Any]]:
    """Return the evaluation transform that a model's own config asks for, and that config."""
    config: dict[str, Any] = resolve_model_data_config(model, args=overrides or None)
    channels = getattr(model, "in_chans", config["input_size"][0])
    if channels != 3:
        raise InputError(f"the model takes {channels} channels; pictures have 3 (RGB)")
    return evaluation_transform(**config), config


def seed_from(*entropy: int) -> int:
    """Return a seed in [0, 2**63) that depends on all of `entropy`, well mixed."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) % 2**63


def reseed(*entropy: int) -> None:
    """Begin random streams that depend on `entropy` alone: those timm's and torchvision's transforms draw from.

    They are `random`, NumPy and torch (CPU).
    """
    seed = seed_from(*entropy)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def streams_kept() -> Iterator[None]:
    """Give back the three random streams afterwards as they were before."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


@contextlib.contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Draw random numbers from streams that depend on `entropy` alone, and give back the old ones afterwards."""
    with streams_kept():
        reseed(*entropy)
        yield
