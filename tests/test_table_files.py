"""A table must hold the same values in every format, be read by the usual programs, and appear whole or not at all."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seresnet_hub.errors import InputError
from seresnet_hub.inference import table_files
from seresnet_hub.inference.table_files import COUNTS, METADATA, description, format_of, require_place, write_table

NAMES = ["a.jpg", 'with "quotes", and a comma', "two\nlines", "\x1b[31m", "", "ünï\u2028code", "=1+1", "-1", "+1e5"]
METADATA_WRITTEN = {"model": "m", "class_names": ["ü"]}
FORMATS = ["t.parquet", "t.csv", "t.jsonl", "folder"]


def batches(rows: int, *, step: int = 4, channels: int = 3) -> Iterator[pa.RecordBatch]:
    for first in range(0, rows, step):
        numbers = np.arange(first, min(first + step, rows))
        lists = np.random.default_rng(first).normal(size=(len(numbers), channels)).astype(np.float32)
        failed = numbers % 5 == 1
        yield pa.record_batch(
            {
                "row": pa.array(numbers, pa.int64()),
                "image": pa.array([NAMES[k % len(NAMES)] for k in numbers]),
                "error": pa.array(["broken" if bad else None for bad in failed], pa.string()),
                "score_1": pa.array((1 / (3 + numbers)).astype(np.float32), mask=failed),
                "features": pa.FixedSizeListArray.from_arrays(pa.array(lists.ravel()), channels, mask=pa.array(failed)),
            }
        )


def count(batch: pa.RecordBatch) -> Counter[str]:
    return Counter(rows=batch.num_rows, failed=batch.num_rows - batch.column("error").null_count)


def write(path: Path, rows: int = 18, **options: Any) -> Counter[str]:
    return write_table(
        path, batches(rows, **options), rows=rows, metadata=METADATA_WRITTEN, schema_metadata=lambda _: {}, count=count
    )


def expected(rows: int = 18) -> list[dict[str, Any]]:
    return pa.Table.from_batches(batches(rows)).to_pylist()


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_says_what_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert description(path) is None
    assert write(path) == {"rows": 18, "failed": 4}
    said = description(path)
    assert said is not None
    assert (said[METADATA], said[COUNTS]) == (METADATA_WRITTEN, {"rows": 18, "failed": 4})
    beside = {f"{name}.json"} if name in ("t.csv", "t.jsonl") else set()
    assert {one.name for one in tmp_path.iterdir()} == {name, *beside}


def test_parquet_holds_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "GROUP_ROWS", 8)
    write(tmp_path / "t.parquet")
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [8, 8, 2]
    assert file.read().to_pylist() == expected()
    assert pandas.read_parquet(tmp_path / "t.parquet").image.tolist() == [row["image"] for row in expected()]


def test_a_folder_holds_shards_of_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "SHARD_BYTES", 2 * next(batches(18)).nbytes)
    write(tmp_path / "folder")
    names = [f"predictions-0000{k}-of-00003.parquet" for k in range(3)]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == names
    assert [pq.read_metadata(tmp_path / "folder" / name).num_rows for name in names] == [8, 8, 2]
    assert pq.read_table(tmp_path / "folder").to_pylist() == expected()
    write(tmp_path / "folder", 4)  # in place of the first
    assert pq.read_table(tmp_path / "folder").num_rows == 4
    (tmp_path / "folder" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt"):
        write(tmp_path / "folder", 4)
    (tmp_path / "folder" / "notes.txt").unlink()
    next((tmp_path / "folder").iterdir()).unlink()
    assert description(tmp_path / "folder") is None


def test_json_lines_are_json_with_the_values_of_float32(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = (tmp_path / "t.jsonl").read_bytes().decode().split("\n")
    found = [json.loads(line, parse_constant=refuse) for line in lines[:-1]]
    assert lines[-1] == ""
    for row, wanted in zip(found, expected(), strict=True):
        assert list(row) == list(wanted)
        assert {**row, "score_1": None, "features": None} == {**wanted, "score_1": None, "features": None}
        for name in ("score_1", "features"):
            same = row[name] is None if wanted[name] is None else np.array_equal(np.float32(row[name]), wanted[name])
            assert same


def test_csv_is_quoted_and_a_formula_is_none(tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file, strict=True))
    names = {"=1+1": "'=1+1"}
    assert [row["image"] for row in found] == [names.get(row["image"], row["image"]) for row in expected()]
    assert [row["error"] for row in found] == [row["error"] or "" for row in expected()]
    for row, wanted in zip(found, expected(), strict=True):
        for name in ("score_1", "features"):
            values = None if wanted[name] is None else np.float32(wanted[name])
            assert (row[name] == "") if values is None else np.array_equal(np.float32(json.loads(row[name])), values)
    assert pandas.read_csv(tmp_path / "t.csv").shape == (18, 5)


@pytest.mark.parametrize("text", ["@cmd", "-a.jpg", "+b", "\tx", "\rx", "=HYPERLINK(1)"])
def test_what_a_spreadsheet_would_run_is_written_as_text(text: str) -> None:
    assert table_files._harmless(pa.array([text, None])).to_pylist() == [f"'{text}", None]
    assert table_files._harmless(pa.array(["-1", "+1.5e3", "a=b", ""])).to_pylist() == ["-1", "+1.5e3", "a=b", ""]


def test_duckdb_reads_every_format(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    for name in FORMATS:
        write(tmp_path / name)
        files = tmp_path / name / "*.parquet" if name == "folder" else tmp_path / name
        counted, failed = duckdb.sql(f"SELECT count(*), count(error) FROM '{files}'").fetchall()[0]
        assert (counted, failed) == (18, 4)
        first = duckdb.sql(f"SELECT score_1 FROM '{files}' WHERE row = 0").fetchall()[0][0]
        assert np.float32(first) == np.float32(1 / 3)


def test_another_file_is_no_table_of_ours(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet", store_schema=False)  # as DuckDB's: no metadata
    (tmp_path / "folder").mkdir()
    write(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", "a") as file:
        file.write("more\n")
    (tmp_path / "t.jsonl").write_text("{}\n")
    assert [description(tmp_path / name) for name in FORMATS] == [None] * 4


def test_places_that_cannot_be_are_refused_before_any_work(tmp_path: Path) -> None:
    assert [format_of(name) for name in ("a.PARQUET", "b.csv", "c.jsonl", "d", "d/", tmp_path)] == [
        ".parquet", ".csv", ".jsonl", "folder", "folder", "folder",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"e\.x/: a table is written as .* make this folder"):
        format_of("e.x/")  # as a Path it would be without the stroke
    (tmp_path / "d.csv").mkdir()
    for name, message in ((tmp_path / "d.csv", "is a folder"), (Path("x.txt"), "is written as .parquet, .csv, .jsonl")):
        with pytest.raises(InputError, match=message):
            format_of(name)
    with pytest.raises(InputError, match="there is no folder"):
        require_place(tmp_path / "missing" / "t.csv")
