"""Names of a million pictures must take little memory, and each must lead to its picture, however odd it is."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import encode
from PIL import Image

from seresnet_hub.data.picture_list import UNIT_ROWS, PictureList, as_rgb, read_named
from seresnet_hub.errors import InputError

ODD = ["a b.png", "new\nline \x1b[31m.png", os.fsdecode(b"no utf-8 \xff.png"), "\N{SNOWMAN}.png", "%41#?.png"]


def test_odd_names_lead_to_their_files(tmp_path: Path) -> None:
    pictures = PictureList()
    for number, name in enumerate(ODD):
        (tmp_path / name).write_bytes(bytes([number]))
        pictures.add(tmp_path / name)
    found = [pictures.name(row) or "" for row in range(len(pictures))]
    assert found == [str(tmp_path / name) for name in ODD]
    assert [read_named(name) for name in found] == [bytes([number]) for number in range(len(ODD))]


def test_a_million_names_take_little_more_than_their_letters() -> None:
    """Below 100 bytes each, where a list of texts has twice as many."""
    tracemalloc.start()
    try:
        pictures = PictureList()
        for number in range(100_000):
            pictures.add(f"/data/photos/class_{number % 1000:04}/IMG_{number:08}.jpg")
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    letters = len("/data/photos/class_0000/IMG_00000000.jpg")
    assert held < most < 100_000 * (letters + 60)
    assert pictures.name(99_999) == "/data/photos/class_0999/IMG_00099999.jpg"
    assert sum(pictures.unit_rows) == 100_000
    assert max(pictures.unit_rows) == UNIT_ROWS


def test_the_fingerprint_is_of_names_and_of_what_is_in_memory() -> None:
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)

    def fingerprint(*given: object) -> int:
        pictures = PictureList()
        for one in given:
            pictures.add(one) if isinstance(one, str) else pictures.hold(one)
        return pictures.fingerprint

    lists = [
        ("ab", "c"), ("a", "bc"), ("ab",), ("c", "ab"), (b"ab",), (array,), (array.reshape(2, 8, 3),), (array + 1,),
        (Image.fromarray(array + 2),), ("ab", array), (array, "ab"),
    ]  # fmt: skip
    found = [fingerprint(*given) for given in lists]
    assert len(set(found)) == len(lists)
    assert found == [fingerprint(*given) for given in lists]


def test_what_is_in_memory_is_the_picture_it_shows(photo: Image.Image) -> None:
    assert np.array_equal(as_rgb(np.asarray(photo)), np.asarray(photo))
    assert np.array_equal(as_rgb(photo.convert("L")), np.asarray(photo.convert("L").convert("RGB")))
    pictures = PictureList()
    pictures.hold(memoryview(encode(photo)), "-")
    assert (pictures.held(0), pictures.name(0)) == (encode(photo), "-")
    with pytest.raises(InputError, match="NoneType is no picture: give paths"):
        pictures.hold(None)  # type: ignore[arg-type]
