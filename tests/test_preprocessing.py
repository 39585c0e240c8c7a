"""Pictures prepared inside a graph must be those that Pillow and timm's evaluation transform prepare, to the level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from seresnet_hub.errors import InputError
from seresnet_hub.exporting.preprocessing import Preparation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int, width: int) -> np.ndarray:
    """Noise over a slope: what a wrong filter, or one shifted by a fraction of a pixel, shows in."""
    noise = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3))
    slope = np.linspace(0, 255, height)[:, None, None] + np.linspace(0, 255, width)[None, :, None]
    return (noise / 2 + slope / 4).astype(np.uint8)


def config(**changes: object) -> dict[str, object]:
    usual = {"input_size": (3, 56, 56), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
    return {**usual, "mean": MEAN, "std": STD, **changes}


@pytest.mark.parametrize("size", [(64, 64), (90, 131), (200, 75), (30, 41), (77, 300), (333, 500)])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"interpolation": "bilinear"}, {"crop_pct": 1.0}, {"crop_mode": "squash"}, {"crop_mode": "border"},
        {"input_size": (3, 40, 64)}, {"input_size": (3, 57, 56), "crop_mode": "border", "crop_pct": 0.9},
        {"crop_pct": 1.2},
    ],
)  # fmt: skip
def test_pictures_are_prepared_as_timm_does(size: tuple[int, int], changes: dict[str, object]) -> None:
    asked = config(**changes)
    pixels = picture(*size)
    expected = create_transform(**asked)(Image.fromarray(pixels))
    found = Preparation(asked)(torch.from_numpy(pixels)[None])[0]
    assert found.shape == expected.shape
    levels = (found - expected).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.max() < 1.01  # Pillow weighs in whole numbers of 2^-22, so a value near a half may go the other way
    # Bilinear means of a few levels may be halves, which Pillow's own weights, fractions of 2^22, round either way.
    # Newer versions of Pillow resize the height of pictures before the width that are more than twice as high.
    if size[0] <= 2 * size[1]:
        assert (levels > 0.01).float().mean() < (0.01 if asked["interpolation"] == "bilinear" else 0.002)


def test_a_batch_is_prepared_picture_by_picture() -> None:
    pixels = torch.from_numpy(np.stack([picture(90, 80), picture(90, 80)[::-1]]))
    both = Preparation(config())(pixels)
    for one, alone in zip(both, pixels, strict=True):
        torch.testing.assert_close(one, Preparation(config())(alone[None])[0])


@pytest.mark.parametrize("changes", [{"interpolation": "lanczos"}, {"crop_mode": "corner"}])
def test_what_it_does_not_know_is_one_error(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="preprocessing inside the file"):
        Preparation(config(**changes))
