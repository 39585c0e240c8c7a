"""Thumbnails must keep a picture's proportions and colours, and a page must hold them without any other file."""

from __future__ import annotations

import urllib.request

import numpy as np
import pytest
from PIL import Image

from seresnet_hub.data.read_image import read_image
from seresnet_hub.inference.thumbnails import as_jpeg_data_uri, thumbnail


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 300), (100, 75)), ((30, 40), (75, 100)), ((8, 8), (100, 100)), ((5000, 2), (100, 1)), ((1, 900), (1, 100))],
)
def test_the_longer_side_is_as_asked_for(size: tuple[int, int], expected: tuple[int, int]) -> None:
    small = thumbnail(Image.new("RGB", size, (10, 200, 30)), 100)
    assert small.size == expected
    assert small.getpixel((0, 0)) == (10, 200, 30)


def test_any_mode_becomes_rgb(photo: Image.Image) -> None:
    assert {thumbnail(photo.convert(mode), 20).mode for mode in ("RGB", "L", "P", "CMYK", "1")} == {"RGB"}


def test_an_address_holds_the_picture(photo: Image.Image) -> None:
    address = as_jpeg_data_uri(photo)
    with urllib.request.urlopen(address) as answer:  # a data: address, read without a network
        assert answer.headers["Content-Type"] == "image/jpeg"
        image = read_image(answer.read())
    difference = np.abs(np.asarray(image, int) - np.asarray(photo, int))
    assert (image.size, difference.mean() < 4) == (photo.size, True)
