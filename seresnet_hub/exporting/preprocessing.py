"""Prepare pictures inside an exported graph: resize as Pillow does, crop, normalise, in operations that any engine has.

Resizing is linear along each side: an output pixel is a weighted mean of the input pixels under a filter that is wider
the more the picture is shrunk. So both sides are products with matrices, which are made in the graph from the picture's
size, for those pixels alone that the crop keeps. Between the two, and after them, values are rounded to whole levels,
as in pictures of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from seresnet_hub.engines.export_facts import CROP_MODES
from seresnet_hub.errors import InputError


def _triangle(x: torch.Tensor) -> torch.Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Return the Catmull-Rom spline, a cubic convolution with a = -0.5, for distances >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


FILTERS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"bilinear": _triangle, "bicubic": _cubic}


class Preparation(nn.Module):
    """What timm's evaluation transform does to a picture, for batches of pictures of one size."""

    mean: torch.Tensor
    std: torch.Tensor
    fill: torch.Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Take the keys of `timm.data.resolve_model_data_config`. Errors: `InputError` for a filter not known here."""
        super().__init__()
        if config["interpolation"] not in FILTERS:
            raise InputError(
                f"preprocessing inside the file knows {' and '.join(FILTERS)}, and the model's pictures are resized "
                f"by {config['interpolation']}: export without it"
            )
        self.filter = FILTERS[config["interpolation"]]
        self.crop_mode = config.get("crop_mode") or "center"
        if self.crop_mode not in CROP_MODES:
            raise InputError(f"preprocessing inside the file does not know the crop mode {self.crop_mode!r}")
        self.size = tuple(config["input_size"])[-2:]
        self.scaled = tuple(math.floor(side / config["crop_pct"]) for side in self.size)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name], dtype=torch.float32).view(1, -1, 1, 1))
        levels = [round(255 * value) for value in config["mean"]] if self.crop_mode == "border" else [0, 0, 0]
        self.register_buffer("fill", torch.tensor(levels, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return normalised images `(batch, 3, height, width)` for uint8 RGB `(batch, any height, any width, 3)`."""
        sides = [torch.arange(pictures.shape[dimension], device=pictures.device) for dimension in (1, 2)]
        height, width = (side.max() + 1 for side in sides)
        (rows, has_row), (columns, has_column) = (
            self._weights(side, old, new, crop)
            for side, old, new, crop in zip(
                sides, (height, width), self._resized(height, width), self.size, strict=True
            )
        )
        levels = _to_levels(pictures.permute(0, 3, 1, 2).float() @ columns.transpose(0, 1))
        levels = _to_levels(rows @ levels)
        levels = torch.where(has_row[:, None] & has_column[None, :], levels, self.fill)
        return (levels / 255 - self.mean) / self.std

    def _resized(self, height: torch.Tensor, width: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return height and width after resizing, as whole numbers."""
        new_height, new_width = (torch.full_like(height, side) for side in self.scaled)
        if self.crop_mode == "squash":
            return new_height, new_width
        if self.crop_mode == "center" and self.scaled[0] == self.scaled[1]:  # torchvision's Resize
            shorter = torch.minimum(height, width)
            return new_height * height // shorter, new_width * width // shorter
        # timm's ResizeKeepRatio; sides are compared by their shares of what they are to become.
        is_flatter = height * new_width <= width * new_height
        to_height = is_flatter if self.crop_mode == "center" else ~is_flatter
        return (
            torch.where(to_height, new_height, _rounded(height * new_width, width)),
            torch.where(to_height, _rounded(width * new_height, height), new_width),
        )

    def _weights(
        self, side: torch.Tensor, old: torch.Tensor, new: torch.Tensor, crop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights `(crop, old)` of pixels in those that the crop keeps, and which of these exist."""
        kept = torch.arange(crop, device=side.device) + _first_kept(new, crop)
        # Distances of the pixels' middles, in old pixels, times 2 * new: whole numbers, so exact for any picture.
        distance = ((2 * side + 1)[None, :] * new - (2 * kept + 1)[:, None] * old).abs()
        # The filter is stretched where the picture is shrunk.
        weights = self.filter(distance.float() / (2 * torch.maximum(old, new)).float())
        exists = (kept >= 0) & (kept < new)
        total = weights.sum(1, keepdim=True)
        return weights / torch.where(exists[:, None], total, torch.ones_like(total)), exists


def _first_kept(new: torch.Tensor, crop: int) -> torch.Tensor:
    """Return where the middle crop of a side begins, below 0 where it is wider than the side, as torchvision has it."""
    spare = new - crop
    half = spare // 2  # downwards; a half is rounded to the even number
    cut = half + (spare % 2) * (half % 2)
    return torch.where(spare < 0, -((crop - new) // 2), cut)


def _rounded(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Return a quotient of positive whole numbers rounded to the nearest whole number, halves to the even one."""
    nearest = (2 * numerator + denominator) // (2 * denominator)
    is_half = (2 * numerator + denominator) % (2 * denominator) == 0
    return nearest - torch.where(is_half, nearest % 2, torch.zeros_like(nearest))


def _to_levels(values: torch.Tensor) -> torch.Tensor:
    return (values + 0.5).floor().clamp(0, 255)
