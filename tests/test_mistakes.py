"""The mistakes that are shown must be the surest ones, and their pictures those of their rows, read and no others."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import WriteSplit, encode, numbered_picture
from huggingface_hub import constants
from image_records import records_of
from PIL import Image

from seresnet_hub.data import shard_cache, units
from seresnet_hub.data.held_out import hold_out
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.parquet_shards import ParquetShards
from seresnet_hub.data.shards import Shard
from seresnet_hub.evaluation.mistakes import confident_mistakes, confused_pairs, pictures_of, unread_rows


def test_the_surest_mistakes_of_a_class() -> None:
    logits = np.array([[0, 3, 0], [0, 0, 5], [4, 0, 0], [0, 1, 0], [0, 9, 0]], float)
    labels = np.array([0, 0, 0, 0, 1])
    records = records_of(logits, labels)
    found = confident_mistakes(records, 0, 2)
    assert [(one.row, one.label, one.predicted) for one in found] == [(1, 0, 2), (0, 0, 1)]
    total = np.exp(5) + 2
    assert (found[0].score, found[0].label_score) == pytest.approx((np.exp(5) / total, 1 / total))
    assert [one.row for one in confident_mistakes(records, 0, 9, predicted=1)] == [0, 3]
    assert confident_mistakes(records, 1, 9) == []


def test_pairs_of_most_images_come_first() -> None:
    confusion = np.array([[50, 3, 0], [5, 100, 3], [0, 0, 4]])
    assert [tuple(pair) for pair in confused_pairs(confusion, 9)] == [(1, 0, 5, 108), (0, 1, 3, 53), (1, 2, 3, 108)]
    assert len(confused_pairs(confusion, 1)) == 1
    assert confused_pairs(np.eye(4, dtype=int), 3) == []


def shade(picture: Image.Image | None) -> int:
    assert picture is not None
    return picture.getpixel((0, 0))[0]  # type: ignore[index]


def test_only_units_with_wanted_rows_are_read(write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [numbered_picture(row) for row in range(30)]
    images[22] = b"no picture"
    split = open_split(str(write_split([[10, 0, 5], [10, 5]], images=images)), "train")
    read: list[int] = []

    read_unit = units.read_unit

    def spy(split: object, unit: int) -> object:
        read.append(unit)
        return read_unit(split, unit)  # type: ignore[arg-type]

    monkeypatch.setattr(units, "read_unit", spy)
    found = {one.row: one for one in pictures_of(split, [29, 16, 14, 16, 22, 10])}
    assert read == [2, 3, 4]
    assert {row: shade(one.picture) for row, one in found.items() if row != 22} == {k: k for k in (10, 14, 16, 29)}
    assert (found[10].name, found[22].picture, found[22].error) == (
        "10.png", None, "not an image of a kind that is read (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)",
    )  # fmt: skip


def test_of_a_remote_data_set_one_row_group_is_fetched(
    write_split: WriteSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve pictures of 200 KB in six row groups, of which the tail is read to find them."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 256, 256, 3), np.uint8)
    local = open_split(str(write_split([[2] * 6], images=[encode(Image.fromarray(one)) for one in noise])), "train")
    data = Path(local.files[0]).read_bytes()
    address = f"hf://datasets/someone/noise@{'0123456789' * 4}/data/train-0.parquet"
    fetched: list[int] = []

    def fetch_range(_: str, start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return data[start:stop]

    monkeypatch.setattr(shard_cache, "fetch_range", fetch_range)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "own"))
    shards = (Shard(address, len(data), hashlib.sha256(data).hexdigest()),)
    split = replace(local, files=(address,), shards=shards, parquet=ParquetShards([address], shards, None))
    (found,) = pictures_of(split, [9])
    assert np.array_equal(np.asarray(found.picture), noise[9])
    assert 2 * 196_000 < sum(fetched) < 4 * 196_000 < len(data)


def test_a_unit_that_cannot_be_read_costs_no_other(write_split: WriteSplit) -> None:
    folder = write_split([[5], [5]])
    split = open_split(str(folder), "train")
    (folder / "train-00001-of-00002.parquet").write_bytes(b"gone")
    found = list(pictures_of(split, range(4, 7)))
    assert [one.row for one in found if one.picture is not None] == [4]
    assert all(one.error and "train-00001-of-00002.parquet" in one.error for one in found[1:])


def test_rows_of_folders_and_of_parts(tmp_path: Path, write_split: WriteSplit) -> None:
    for row in range(6):
        (tmp_path / "pets" / "ab"[row // 3]).mkdir(parents=True, exist_ok=True)
        file = tmp_path / "pets" / "ab"[row // 3] / f"{row}.png"
        file.write_bytes(encode(Image.new("RGB", (4, 4), (40 * row, 0, 0))))
    found = list(pictures_of(open_split(str(tmp_path / "pets"), "train"), [1, 5]))
    assert [(shade(one.picture), Path(one.name or "").name) for one in found] == [(40, "1.png"), (200, "5.png")]
    _, part = hold_out(open_split(str(write_split([[30], [30]])), "train"), 0.2, seed=0)
    assert part.subset is not None
    whole = [int(row) + 30 * unit for unit, rows in enumerate(part.subset.rows) for row in rows]
    assert [shade(one.picture) for one in pictures_of(part, range(part.rows))] == whole
    assert 5 < len(whole) < 30


def test_rows_without_a_record_were_not_read(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[4]])), "train")
    records = records_of(np.eye(3)[[0, 1, 2, 0]], np.zeros(4, int)).labelled()
    assert unread_rows(records, split).tolist() == []
    without = records_of(np.eye(3)[[0, 1]], np.zeros(2, int))
    assert unread_rows(without, split).tolist() == [2, 3]
