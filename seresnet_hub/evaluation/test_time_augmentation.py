"""Test-time augmentation: a model's answer to a picture is the mean over several views of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from seresnet_hub.data.transforms import Transform, evaluation_transform
from seresnet_hub.errors import InputError

TestTimeAugmentation = Literal["flip", "tencrop"]


def require_augmentation(name: str | None) -> None:
    """Raise `InputError` where there is no test-time augmentation of this name."""
    if name not in (None, "flip", "tencrop"):
        raise InputError(f"tta={name}: must be flip or tencrop")


def resized_transform(config: dict[str, Any]) -> tuple[Transform, tuple[int, int]]:
    """Return the transform that makes the square from whose corners and centre ten crops are taken, and its size.

    It is what timm's evaluation transform takes its crop from, without what lies beyond the longer side of the square
    (section 4.1 of Krizhevsky, Sutskever and Hinton 2012). `config` is what timm's `resolve_model_data_config` returns.
    Errors: `InputError` where there is no margin around a crop.
    """
    height, width = (math.floor(side / config["crop_pct"]) for side in config["input_size"][-2:])
    if (height, width) == tuple(config["input_size"][-2:]):
        raise InputError(
            f"tta=tencrop: with crop_pct={config['crop_pct']:g} a crop is the whole picture, so that all ten are one: "
            "give a smaller one, as --crop-pct 0.875"
        )
    return evaluation_transform(**{**config, "input_size": (3, height, width), "crop_pct": 1.0}), (height, width)


def views(images: torch.Tensor, name: TestTimeAugmentation | None, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Yield the views of a batch, each `(batch, 3, *size)`.

    For "flip" they are the images and their mirror images; for "tencrop" the four corners and the centre of the images,
    and those of their mirror images, in the order of torchvision's `TenCrop`.
    """
    if name is None:
        yield images
    elif name == "flip":
        yield from (images, images.flip(-1))
    else:
        height, width = size
        bottom, right = images.shape[-2] - height, images.shape[-1] - width
        centre = (round(bottom / 2), round(right / 2))
        for picture in (images, images.flip(-1)):
            for top, left in ((0, 0), (0, right), (bottom, 0), (bottom, right), centre):
                yield picture[..., top : top + height, left : left + width].contiguous(
                    memory_format=torch.channels_last
                )


def answer(
    model: nn.Module, images: torch.Tensor, *, name: TestTimeAugmentation | None, size: tuple[int, int],
    classes: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return a model's logits of a batch, `(batch, classes)`, over all its classes or those that `classes` numbers.

    With several views the probabilities are averaged, as in AlexNet (Krizhevsky et al. 2012, section 4.1) and VGG
    (arXiv 1409.1556, section 3.2), and the answer is the logarithm of the mean, whose softmax it is.
    """
    answers = []
    for view in views(images, name, size):
        logits: torch.Tensor = model(view)
        answers.append(logits if classes is None else logits[:, classes])
        if name is not None:  # at once: a compiled model writes its next answer into the same memory
            answers[-1] = answers[-1].log_softmax(1, dtype=torch.float32)
    if name is None:
        return answers[0]
    return torch.stack(answers).logsumexp(0) - math.log(len(answers))
