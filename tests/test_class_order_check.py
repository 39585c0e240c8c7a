"""Shards that are sorted by class must be noticed before a run is trained on batches of few classes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import WriteSplit, numbered_picture
from small_runs import SMALL

from seresnet_hub.data.class_order_check import few_classes
from seresnet_hub.data.loader import epoch_plan
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.split import Split
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import train as training

RECIPE = replace(get_recipe("digits"), lanes=4, shuffle_window=16, batch_size=12)
LABELS = np.repeat(np.arange(60), 8)  # 60 classes of 8 rows, in 120 row groups of 4


def warning(split: Split, window: int = 16, lanes: int = 4) -> str | None:
    return few_classes(split, epoch_plan(split, replace(RECIPE, lanes=lanes, shuffle_window=window), seed=0, epoch=0))


@pytest.fixture
def write_labels(write_split: WriteSplit) -> object:
    def write(labels: np.ndarray, folder: str, groups: int = 4) -> Split:
        shards = [[groups] * 10] * (len(labels) // groups // 10)
        images = [numbered_picture(0)] * len(labels)
        root = write_split(shards, classes=60, labels=labels.tolist(), images=images, folder=folder)
        return open_split(str(root), "train")

    return write


def test_sorted_shards_are_named_with_the_way_out(write_labels) -> None:  # type: ignore[no-untyped-def]
    split = write_labels(LABELS, "sorted")
    line = warning(split)
    assert line is not None
    assert "\n" not in line
    found = re.search(r"the 16 that are shuffled together are of about (\d+) of 60 classes", line)
    assert found is not None
    # Four row groups of one class each, drawn from 120.
    draws = [len(set(LABELS.reshape(120, 4)[np.random.default_rng(k).permutation(120)[:4]].ravel())) for k in range(99)]
    assert int(found[1]) == round(float(np.mean(draws)))
    assert "shuffle the rows when the data set is written" in line
    assert warning(split, window=480) is None
    assert warning(split, lanes=40) is None  # a window has a row group of each lane at least


@pytest.mark.parametrize("label", [2**62, -(2**63)])
def test_labels_that_are_no_classes_take_no_memory(write_labels, label: int) -> None:  # type: ignore[no-untyped-def]
    """Footers are written by whoever made the data set; which label is wrong is said where its row is read."""
    folder = Path(write_labels(LABELS[:40], "odd").source)
    (shard,) = folder.rglob("*.parquet")
    table = pyarrow.parquet.read_table(shard)
    at = table.column_names.index("label")
    labels = pyarrow.array([*LABELS[:39].tolist(), label], table.schema.field(at).type)
    pyarrow.parquet.write_table(table.set_column(at, table.schema.field(at), labels), shard, row_group_size=4)
    assert warning(open_split(str(folder), "train")) is None


def test_shuffled_shards_are_not(write_labels) -> None:  # type: ignore[no-untyped-def]
    assert warning(write_labels(np.random.default_rng(0).permutation(LABELS), "shuffled", groups=8)) is None
    assert warning(write_labels(LABELS % 3, "three")) is None


def test_where_footers_say_nothing_there_is_no_warning(write_labels, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    split = write_labels(LABELS, "sorted")
    (tmp_path / "silent").mkdir()
    for number, shard in enumerate(split.shards):
        table = pyarrow.parquet.read_table(tmp_path / "sorted" / shard.name)
        pyarrow.parquet.write_table(
            table, tmp_path / "silent" / f"train-{number}.parquet", row_group_size=4, write_statistics=False
        )
    assert warning(open_split(str(tmp_path / "silent"), "train")) is None


def test_folders_are_shuffled_over_all_rows(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "pictures" / "train" / f"class{number // 2:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(numbered_picture(number))
    assert warning(open_split(str(tmp_path / "pictures"), "train")) is None


def test_training_says_it(write_labels, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    split = write_labels(LABELS, "sorted")
    recipe = replace(SMALL, lanes=4, shuffle_window=16, eval_split="train")
    training.train(recipe, data=split.source, output=tmp_path / "run", max_steps=1)
    assert capfd.readouterr().err.count("warning: the rows of ") == 1
