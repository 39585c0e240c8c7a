"""A shard whose bytes changed must be noticed although its size and its end are as before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from conftest import WriteSplit, numbered_picture, numbers_in

from seresnet_hub.data.loader import loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.shards import kept_file
from seresnet_hub.data.unit_hashes import SUFFIX, UnitHashes
from seresnet_hub.data.units import require_same_shards
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe

RECIPE = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, batch_size=10, shuffle_window=9
)


@pytest.fixture
def shard(write_split: WriteSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of one shard of two row groups, longer than what its hash takes of its end, in a cache of its own."""
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "cache"))
    images = [numbered_picture(k) + np.random.default_rng(k).bytes(5000) for k in range(40)]
    root = write_split([[20, 20]], images=images)
    (found,) = root.glob("*.parquet")
    return found


def change(shard: Path) -> None:
    """Change one byte behind the first picture's own, where no decoder looks."""
    data = bytearray(shard.read_bytes())
    at = data.index(np.random.default_rng(0).bytes(5000)[1000:2000])
    assert at < len(data) - 65536
    data[at + 500] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_change_between_two_epochs_is_named(shard: Path, workers: int) -> None:
    split = open_split(str(shard.parent), "train")
    list(loader(split, None, RECIPE, workers=workers))
    change(shard)
    with pytest.raises(InputError, match=r"unit 0 of split 'train' .*train-00000.*holds other bytes than when"):
        list(loader(split, None, RECIPE, epoch=1, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_change_between_a_run_and_its_going_on_is_named(shard: Path, workers: int) -> None:
    first = loader(str(shard.parent), "train", RECIPE, workers=workers)
    stream = iter(first)
    next(stream)
    state = first.state_dict()
    stream.close()  # type: ignore[attr-defined]
    again = loader(str(shard.parent), "train", RECIPE, workers=workers)
    again.load_state_dict(state)
    assert len(list(again)) == 3
    change(shard)
    again = loader(str(shard.parent), "train", RECIPE, workers=workers)
    again.load_state_dict(state)
    with pytest.raises(InputError, match="holds other bytes than when it was last read"):
        list(again)


def test_a_new_run_takes_the_data_as_they_are(shard: Path) -> None:
    list(loader(str(shard.parent), "train", RECIPE))
    change(shard)
    batches = list(loader(str(shard.parent), "train", RECIPE))
    assert sorted(number for batch in batches for number in numbers_in(batch.images)) == list(range(40))


def test_a_copy_is_the_same_data(shard: Path, tmp_path: Path) -> None:
    split = open_split(str(shard.parent), "train")
    list(loader(split, None, RECIPE))
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    (copy / shard.name).write_bytes(shard.read_bytes())
    other = open_split(str(copy), "train")
    require_same_shards(other, split.fingerprint)
    assert len(list(loader(other, None, RECIPE))) == 4


def test_a_folder_of_pictures_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows have no bytes, but whole paths."""
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "cache"))
    for k in range(12):
        path = tmp_path / "one" / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered_picture(k))
    split = open_split(str(tmp_path / "one"), "train")
    list(loader(split, None, RECIPE))
    (tmp_path / "one").rename(tmp_path / "two")
    moved = open_split(str(tmp_path / "two"), "train")
    require_same_shards(moved, split.fingerprint)
    (batch, _) = loader(moved, None, replace(RECIPE, batch_size=6))
    assert batch.mask.all()


def test_what_was_read_of_another_column_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "cache"))
    labels = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"image": datasets.Image(), "label": labels, "other": labels})
    images = [{"bytes": numbered_picture(k), "path": None} for k in range(12)]
    columns = {"image": images, "label": [0, 1] * 6, "other": [1, 0] * 6}
    (tmp_path / "data").mkdir()
    table = pyarrow.table(columns, features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    splits = [open_split(str(tmp_path / "data"), "train", label_column=name) for name in ("label", "other")]
    for split in splits:
        list(loader(split, None, RECIPE))
    for name in ("label", "other"):
        again = open_split(str(tmp_path / "data"), "train", label_column=name)
        require_same_shards(again, splits[0].fingerprint)
        assert again.unit_hashes.hashes.all()  # what was read of its own column is known
        assert sum(int(batch.mask.sum()) for batch in loader(again, None, RECIPE)) == 12


def test_labels_count_too() -> None:
    hashes = UnitHashes(2)
    rows = [({"bytes": b"12", "path": None}, 1), ({"bytes": b"3", "path": None}, 2)]
    assert hashes.match(0, rows)
    assert hashes.match(0, rows)
    for changed in (
        [(rows[0][0], 2), rows[1]], rows[:1], [*rows, rows[0]], [rows[1], rows[0]], [(None, 1), rows[1]],
        [({"bytes": b"1", "path": None}, 1), ({"bytes": b"23", "path": None}, 2)],
    ):  # fmt: skip
        assert not hashes.match(0, changed)
    assert hashes.match(1, rows[:1])


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b'{"sha256": "", "facts": "{}"}'])
def test_a_damaged_record_is_as_none(shard: Path, content: bytes) -> None:
    split = open_split(str(shard.parent), "train")
    list(loader(split, None, RECIPE))
    kept = kept_file(split.fingerprint, SUFFIX)
    assert kept.is_file()
    kept.write_bytes(content)
    change(shard)
    again = open_split(str(shard.parent), "train")
    require_same_shards(again, split.fingerprint)
    assert len(list(loader(again, None, RECIPE))) == 4
