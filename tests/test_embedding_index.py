"""An index of embeddings must be read whole, in blocks, in order, and what cannot be one is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from embedding_files import write_index
from pyarrow import parquet

from seresnet_hub.errors import InputError
from seresnet_hub.inference import nearest_rows
from seresnet_hub.inference.embedding_index import open_index

VECTORS = np.random.default_rng(0).standard_normal((100, 6)).astype(np.float32)


@pytest.mark.parametrize(("group", "block"), [(1000, 1000), (7, 1000), (30, 8), (1000, 1)])
def test_the_blocks_hold_every_row_once(
    group: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest_rows, "BLOCK_VALUES", block * 6)
    missing = {0, 13, 14, 99}
    index = open_index(write_index(tmp_path / "index.parquet", VECTORS, missing=missing, group=group))
    blocks = list(index.blocks())
    assert max(len(one.positions) for one in blocks) <= min(group, block)
    rows = [row for row in range(100) if row not in missing]
    assert torch.cat([one.positions for one in blocks]).tolist() == rows
    np.testing.assert_array_equal(torch.cat([one.vectors for one in blocks]), VECTORS[rows])
    assert (index.rows, index.channels, index.facts) == (100, 6, {})


def test_a_folder_of_shards_is_one_index(tmp_path: Path) -> None:
    labels = np.arange(100) % 3
    labels[5] = -1
    names = ["kot", "pies", "żaba"]
    for number, part in enumerate(np.array_split(np.arange(100), 3)):
        write_index(
            tmp_path / f"data-{number}.parquet", VECTORS[part], labels=labels[part], names=names, group=20,
            images=[f"{row}.jpg" for row in part], predicted=[f"class {row}" for row in part], facts={"model": "m"},
        )  # fmt: skip
    index = open_index(tmp_path)
    np.testing.assert_array_equal(torch.cat([one.vectors for one in index.blocks()]), VECTORS)
    assert torch.cat([one.positions for one in index.blocks()]).tolist() == list(range(100))
    assert index.labels().tolist() == labels.tolist()
    assert index.label_names() == dict(enumerate(names))
    assert index.facts == {"model": "m"}
    records = index.records([99, 5, 34, 5])
    assert {position: record["image"] for position, record in records.items()} == {
        99: "99.jpg", 5: "5.jpg", 34: "34.jpg",
    }  # fmt: skip
    assert (records[5]["label"], records[5]["label_name"], records[99]["name_1"]) == (None, None, "class 99")


def test_other_lists_of_numbers_are_read_too(tmp_path: Path) -> None:
    """As pandas writes them: lists of any length, of float64; an index of stages and halves too."""
    path = tmp_path / "index.parquet"
    table = pyarrow.table({
        "features": pyarrow.array([None, *VECTORS.astype(np.float64).tolist()]),
        "features_stage2": pyarrow.array([None, *VECTORS.astype(np.float16)], pyarrow.list_(pyarrow.float16())),
    })  # fmt: skip
    parquet.write_table(table, path)
    (block,) = open_index(path).blocks()
    np.testing.assert_array_equal(block.vectors, VECTORS)
    assert block.positions[0] == 1
    (block,) = open_index(path, 2).blocks()
    np.testing.assert_array_equal(block.vectors, VECTORS.astype(np.float16).astype(np.float32))
    assert open_index(path).records([3]) == {3: {"row": 3}}


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad\n.parquet"

    def refusal(table: pyarrow.Table | None, stage: int | None = None) -> str:
        if table is not None:
            parquet.write_table(table, path)
        with pytest.raises(InputError) as refused:
            list(open_index(path, stage).blocks())
        return str(refused.value)

    assert "no such file" in refusal(None)
    path.write_bytes(b"PAR1 and nothing of the kind PAR1")
    assert "no parquet file" in refusal(None)
    for other in (b"", b"row,image\n0,a.jpg\n"):
        path.write_bytes(other)
        assert refusal(None).endswith(" is no parquet file: an index is a .parquet that predict --features wrote")
    assert "write it with predict --features" in refusal(pyarrow.table({"image": ["a"]}))
    assert "has no column 'features_stage1'; it has features" in refusal(pyarrow.table({"features": [[1.0]]}), 1)
    assert "holds string, not lists" in refusal(pyarrow.table({"features": ["a"]}))
    assert "not lists of floating-point numbers" in refusal(pyarrow.table({"features": [[1]]}))
    assert "does not hold 2 numbers in each row" in refusal(pyarrow.table({"features": [[1.0, 2.0], [3.0]]}))
    assert "does not hold 2 numbers in each row" in refusal(pyarrow.table({"features": [[1.0, 2.0], [3.0, None]]}))
    assert "features of row 1 are not finite" in refusal(pyarrow.table({"features": [[1.0, 2.0], [3.0, float("nan")]]}))
    table = pyarrow.table({"features": [[1.0]]}).replace_schema_metadata({"seresnet_hub": "{"})
    assert "is no JSON" in refusal(table)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no parquet files in this folder"):
        open_index(tmp_path / "empty")


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = write_index(tmp_path / "index.parquet", VECTORS)
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)  # the pages, and not the footer
    path.write_bytes(data)
    with pytest.raises(InputError, match="index.parquet: no parquet file, or a damaged one"):
        list(open_index(path).blocks())
