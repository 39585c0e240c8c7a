"""Write tables as parquet, CSV, JSON lines or a folder of parquet shards, row by row, and say what a written one is."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import read_json, replacing, write_json
from seresnet_hub.files.leftovers import partial_of

METADATA, COUNTS = "seresnet_hub", "seresnet_hub_counts"  # keys of parquet's metadata, whose values are JSON
ENDINGS = (".parquet", ".csv", ".jsonl")
FOLDER = "folder"
# A row group: what is held in memory until it is written, and what is read at once.
GROUP_ROWS, GROUP_BYTES = 65_536, 2**24
SHARD_BYTES = 2**28  # before compression
SHARD = re.compile(r"predictions-(\d{5,})-of-(\d{5,})\.parquet")
# What begins so is a formula to a spreadsheet, which may run it, unless it is a number.
FORMULA = r"^[=+\-@\t\r]"
NUMBER = r"^[+\-]?[0-9.]+([eE][+\-]?[0-9]+)?$"
Count = Callable[[pa.RecordBatch], Counter[str]]


class Writer(Protocol):
    """What writes a table of one format; `close` is told what the counts are."""

    def write(self, batch: pa.RecordBatch) -> None: ...

    def close(self, counts: Mapping[str, Any]) -> None: ...


def format_of(output: str | Path) -> str:
    """Return the ending that says how the file is written, or "folder". Errors: `InputError` where it says nothing."""
    ending = Path(output).suffix.lower()
    if os.path.isdir(output) or not ending:
        if ending in ENDINGS:
            raise InputError(f"{output} is a folder: a table in one {ending} file needs another name")
        return FOLDER
    if ending not in ENDINGS:
        raise InputError(
            f"{output}: a table is written as {', '.join(ENDINGS)}, or into a folder: make this folder, or name one "
            "without a dot"
        )
    return ending


def require_place(output: Path) -> None:
    """Raise `InputError` where nothing can be written at `output`, before any work."""
    folder = output.parent
    if not folder.is_dir():
        raise InputError(f"{output}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {output}: {folder} allows no writing")


def write_table(
    output: Path,
    batches: Iterator[pa.RecordBatch],
    *,
    rows: int,
    metadata: Mapping[str, Any],
    schema_metadata: Callable[[pa.Schema], Mapping[bytes, bytes]],
    count: Count,
) -> Counter[str]:
    """Write all `rows` to `output`, whole or not at all, and return the sum of what `count` counts in each batch.

    `metadata` goes into the file; CSV and JSON lines, which have no place for it, get a file `OUTPUT.json` beside them.
    """
    kind, first = format_of(output), next(batches)
    schema = first.schema.with_metadata(
        {**schema_metadata(first.schema), METADATA.encode(): json.dumps(metadata).encode()}
    )
    if kind == FOLDER:
        return _write_shards(output, schema, first, batches, rows, count)
    with replacing(output) as temporary:
        counts = _write_file(temporary, kind, schema, chain([first], batches), count)
    if kind != ".parquet":
        write_json(_beside(output), {METADATA: metadata, COUNTS: counts, "bytes": output.stat().st_size})
    return counts


def description(output: Path) -> dict[str, Any] | None:
    """Return the metadata and counts of a table that was written whole, None where there is none of ours.

    They are under the keys `METADATA` and `COUNTS`.
    """
    kind = format_of(output)
    try:
        if kind == FOLDER:
            return _description_of_shards(output)
        if kind == ".parquet":
            return _description_of_parquet(output)
        said = read_json(_beside(output))
        return said if said.get("bytes") == output.stat().st_size and METADATA in said and COUNTS in said else None
    except (InputError, OSError, pa.ArrowException, ValueError, KeyError):
        return None


def require_replaceable(output: Path) -> None:
    """Raise `InputError` where a folder holds anything but shards of a table."""
    others = [name for name in os.listdir(output) if not SHARD.fullmatch(name)]
    if others:
        raise InputError(f"{output} holds what is no shard of a table ({others[0]}): choose another folder")


def json_texts(column: pa.Array) -> list[str]:
    """Return each value of a column as JSON: float32 by the fewest digits that give the same float32 again."""
    if pa.types.is_string(column.type):
        return [json.dumps(value, ensure_ascii=False) for value in column.to_pylist()]
    if pa.types.is_fixed_size_list(column.type):
        column = _list_texts(column)
    return pc.fill_null(column.cast(pa.string()), "null").to_pylist()


def _list_texts(column: pa.FixedSizeListArray) -> pa.Array:
    texts = column.cast(pa.list_(column.type.value_type)).cast(pa.list_(pa.string()))
    return pc.binary_join_element_wise("[", pc.binary_join(texts, ", "), "]", "")


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


# ------------------------------------------------------------------ the formats


class _Parquet:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=texts)
        self._schema = schema
        self._held: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0  # of what is held

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._rows, self._bytes = self._rows + batch.num_rows, self._bytes + batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes > GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            table = pa.Table.from_batches(self._held).replace_schema_metadata(self._schema.metadata)
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._held, self._rows, self._bytes = [], 0, 0

    def close(self, counts: Mapping[str, Any]) -> None:
        self._flush()
        self._writer.add_key_value_metadata({COUNTS: json.dumps(counts)})
        self._writer.close()


class _Csv:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._lists = [pa.types.is_fixed_size_list(field.type) for field in schema]
        types = [pa.string() if is_list else field.type for field, is_list in zip(schema, self._lists, strict=True)]
        self._schema = pa.schema(list(zip(schema.names, types, strict=True)))
        self._writer = pa_csv.CSVWriter(str(path), self._schema)

    def write(self, batch: pa.RecordBatch) -> None:
        columns = [
            _list_texts(column) if is_list else _harmless(column) if pa.types.is_string(column.type) else column
            for column, is_list in zip(batch.columns, self._lists, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def close(self, counts: Mapping[str, Any]) -> None:
        self._writer.close()


def _harmless(column: pa.Array) -> pa.Array:
    """Return texts with an apostrophe before what a spreadsheet would take for a formula and run."""
    formula = pc.and_(pc.match_substring_regex(column, FORMULA), pc.invert(pc.match_substring_regex(column, NUMBER)))
    return pc.if_else(formula, pc.binary_join_element_wise("'", column, ""), column)


class _JsonLines:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._keys = [json.dumps(name) for name in schema.names]

    def write(self, batch: pa.RecordBatch) -> None:
        for values in zip(*map(json_texts, batch.columns), strict=True):
            pairs = (f"{key}: {value}" for key, value in zip(self._keys, values, strict=True))
            self._file.write(f"{{{', '.join(pairs)}}}\n")

    def close(self, counts: Mapping[str, Any]) -> None:
        self._file.close()


WRITERS: Mapping[str, Callable[[Path, pa.Schema], Writer]] = {".parquet": _Parquet, ".csv": _Csv, ".jsonl": _JsonLines}


def _write_file(
    path: Path, kind: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], count: Count
) -> Counter[str]:
    writer, counts = WRITERS[kind](path, schema), Counter[str]()
    for batch in batches:
        writer.write(batch)
        counts.update(count(batch))
    writer.close(counts)
    return counts


# ------------------------------------------------------------------ a folder of shards


def _write_shards(
    output: Path, schema: pa.Schema, first: pa.RecordBatch, batches: Iterator[pa.RecordBatch], rows: int, count: Count
) -> Counter[str]:
    """Write shards of as many whole batches as fit, and return what was counted in all of them."""
    in_a_shard = max(1, SHARD_BYTES // max(first.nbytes, 1)) * first.num_rows
    number, rest, counts = -(-rows // in_a_shard), chain([first], batches), Counter[str]()
    with replacing(output) as temporary:
        temporary.mkdir()
        for k in range(number):
            path = temporary / f"predictions-{k:05d}-of-{number:05d}.parquet"
            some = _taken(rest, min(in_a_shard, rows - k * in_a_shard))
            counts.update(_write_file(path, ".parquet", schema, some, count))
        if output.is_dir():
            require_replaceable(output)
            with partial_of(output) as old:
                os.replace(output, old)
    return counts


def _taken(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    while rows > 0 and (batch := next(batches, None)) is not None:
        rows -= batch.num_rows
        yield batch


def _description_of_shards(output: Path) -> dict[str, Any] | None:
    found = sorted(path for path in output.iterdir() if SHARD.fullmatch(path.name))
    number = int(SHARD.fullmatch(found[0].name)[2]) if found else 0  # type: ignore[index]
    if not found or len(found) != number:
        return None
    said = [_description_of_parquet(path) for path in found]
    return {METADATA: said[0][METADATA], COUNTS: sum((Counter(one[COUNTS]) for one in said), Counter())}


def _description_of_parquet(path: Path) -> dict[str, Any]:
    metadata = pq.read_metadata(path).metadata or {}
    return {key: json.loads(metadata[key.encode()]) for key in (METADATA, COUNTS)}
