"""Read the embeddings of a parquet file that predictions with features were written to, block by block."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from torch.utils.dlpack import from_dlpack

from seresnet_hub.environment import usable_cpus
from seresnet_hub.errors import InputError, message_of
from seresnet_hub.inference.nearest_rows import MOST_ROWS, Block, block_rows
from seresnet_hub.inference.run_batches import name_of
from seresnet_hub.inference.table_files import METADATA

# Row groups that are read ahead: so many, each of at most so many values, 64 MB in float32.
MOST_THREADS, MOST_AHEAD = 8, 2**24
PARQUET_MAGIC = b"PAR1"  # at the beginning of each file
# What is told of a row that was found, where the index has it.
TOLD = ("row", "image", "label", "label_name", "name_1")


@dataclass(frozen=True, kw_only=True)
class EmbeddingIndex:
    """The rows of parquet files with a column of embeddings, in order; a row's position is its number among them.

    `facts` is what the file says of the model that made them: its name, the sha256 of its weights, and more.
    """

    path: Path
    files: tuple[Path, ...]
    stage: int | None
    column: str
    channels: int
    rows: int
    facts: dict[str, Any] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)

    def require_weights(self, tensors_sha256: str, model: str = "the model") -> None:
        """Raise `InputError` where the index was made by other weights (see `model_identity.tensors_sha256`)."""
        recorded = self.facts.get("tensors_sha256", tensors_sha256)
        if recorded != tensors_sha256:
            raise InputError(
                f"{self.path} was made by other weights than those of {model} (sha256 of the tensors "
                f"{recorded[:12]}…, not {tensors_sha256[:12]}…): name the model that made it, or make it anew"
            )

    def blocks(self, among: Sequence[int] | None = None) -> Iterator[Block]:
        """Yield the embeddings in blocks, in order, of all rows or those `among` some; rows without any are left out.

        Threads read some row groups ahead, so that those and a block are in memory, and not more. Errors: `InputError`
        where a file is damaged, or embeddings are of different lengths or no finite numbers.
        """
        wanted = None if among is None else np.unique(np.asarray(among, np.int64))
        waiting: deque[Future[list[Block]]] = deque()
        with ThreadPoolExecutor(ahead := min(usable_cpus(), MOST_THREADS)) as pool:
            for path, metadata, group, first, rows in self._groups():
                if wanted is not None and not np.diff(np.searchsorted(wanted, [first, first + rows])):
                    continue
                read = partial(self._group, path, metadata, group, first, wanted)
                if rows * self.channels > MOST_AHEAD:
                    while waiting:
                        yield from waiting.popleft().result()
                    yield from read()
                    continue
                waiting.append(pool.submit(list, read()))
                if len(waiting) > ahead:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _groups(self) -> Iterator[tuple[Path, Any, int, int, int]]:
        """Yield the row groups: file, its metadata, number of the group in it, its first row, and how many it has."""
        first = 0
        for path in self.files:
            with _opened(path) as file:
                metadata = file.metadata
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                yield path, metadata, group, first, rows
                first += rows

    def _group(self, path: Path, metadata: Any, group: int, first: int, wanted: np.ndarray | None) -> Iterator[Block]:
        with _opened(path, metadata) as file:
            # Of one group, since those of several are read ahead by pyarrow, however long that takes.
            for batch in file.iter_batches(block_rows(self.channels), row_groups=[group], columns=[self.column]):
                block = self._block(path, first, batch.column(0))
                if wanted is not None:
                    inside = torch.from_numpy(np.isin(block.positions.numpy(), wanted))
                    block = Block(block.positions[inside], block.vectors[inside])
                yield block
                first += batch.num_rows

    def _block(self, path: Path, first: int, column: Any) -> Block:
        there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        lengths = column.drop_null().value_lengths().to_numpy(zero_copy_only=False)
        values = column.flatten()  # without those of rows that have none
        if (lengths != self.channels).any() or values.null_count:
            raise InputError(f"{path}: column {self.column!r} does not hold {self.channels} numbers in each row")
        vectors = from_dlpack(values.cast(pyarrow.float32())).view(len(there), self.channels)
        if not vectors.sum().isfinite() and not (finite := vectors.isfinite().all(dim=1)).all():
            row = first + int(there[~finite.numpy()][0])
            raise InputError(f"{path}: the {self.column} of row {row} are not finite numbers")
        return Block(torch.from_numpy(first + there), vectors)

    def records(self, positions: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return what the index tells of these rows (those of `TOLD` that it has), by position; reads their groups."""
        names = [name for name in TOLD if name in self.columns]
        wanted = sorted(set(positions))
        found: dict[int, dict[str, Any]] = {position: {"row": position} for position in wanted}
        for path, metadata, group, first, rows in self._groups() if names else ():
            if inside := wanted[bisect_left(wanted, first) : bisect_left(wanted, first + rows)]:
                with _opened(path, metadata) as file:
                    table = file.read_row_group(group, columns=names).take([one - first for one in inside])
                for position, record in zip(inside, table.to_pylist(), strict=True):
                    found[position].update(record)
        return found

    def require_labels(self) -> None:
        """Raise `InputError` where the index has no labels."""
        if "label" not in self.columns:
            raise InputError(
                f"{self.path} has no column 'label': write it from a data set or with --labels-from-folder"
            )

    def labels(self) -> np.ndarray:
        """Return the label of each row, int64, -1 where there is none.

        Errors: `InputError` where the index has no labels.
        """
        self.require_labels()
        parts = [np.empty(0, np.int64)]
        for path in self.files:
            with _opened(path) as file:
                column = file.read(columns=["label"]).column(0)
                parts.append(column.cast(pyarrow.int64()).fill_null(-1).to_numpy())
        return np.concatenate(parts)

    def label_names(self) -> dict[int, str]:
        """Return the name of each label that occurs, as far as the index has names."""
        found: dict[int, str] = {}
        for path in self.files if {"label", "label_name"} <= set(self.columns) else ():
            with _opened(path) as file:
                table = file.read(columns=["label", "label_name"]).drop_null()
                pairs = table.group_by(["label", "label_name"]).aggregate([])
                found |= dict(zip(pairs["label"].to_pylist(), pairs["label_name"].to_pylist(), strict=True))
        return found


def open_index(path: str | Path, stage: int | None = None) -> EmbeddingIndex:
    """Open a parquet file, or a folder of such shards, that `predict --features` wrote; reads the footers alone.

    `stage` takes the features of that stage, not those before the classifier. Errors: `InputError` where there is no
    such file or column.
    """
    path = Path(path)
    column = name_of(stage)
    files = tuple(sorted(path.glob("*.parquet"))) if path.is_dir() else (path,)
    if not files:
        raise InputError(f"{path}: no parquet files in this folder")
    rows, schemas = 0, []
    for file in files:
        with _opened(file) as opened:
            rows += opened.metadata.num_rows
            schemas.append(opened.schema_arrow)
            if column not in opened.schema_arrow.names:
                others = sorted(name for name in opened.schema_arrow.names if name.startswith(name_of(None)))
                has = f"it has {', '.join(others)}" if others else "write it with predict --features"
                raise InputError(f"{file} has no column {column!r}; {has}")
    kind = schemas[0].field(column).type
    if not isinstance(kind, pyarrow.FixedSizeListType | pyarrow.ListType | pyarrow.LargeListType) or not (
        pyarrow.types.is_floating(kind.value_type)
    ):
        raise InputError(f"{files[0]}: column {column!r} holds {kind}, not lists of floating-point numbers")
    if rows > MOST_ROWS:
        raise InputError(f"{path}: {rows:,} rows, of which {MOST_ROWS:,} are searched at most")
    try:
        facts = json.loads((schemas[0].metadata or {}).get(METADATA.encode(), b"{}"))
    except ValueError as error:
        raise InputError(f"{files[0]}: its metadata {METADATA!r} is no JSON ({error})") from error
    return EmbeddingIndex(
        path=path, files=files, stage=stage, column=column, channels=_channels(files, column, kind), rows=rows,
        facts=facts if isinstance(facts, dict) else {}, columns=tuple(schemas[0].names),
    )  # fmt: skip


def _channels(files: Sequence[Path], column: str, kind: Any) -> int:
    """Return how many numbers the embeddings have: as the type says, else as the first of them has."""
    if isinstance(kind, pyarrow.FixedSizeListType):
        return int(kind.list_size)
    for path in files:
        with _opened(path) as file:
            for batch in file.iter_batches(1024, columns=[column]):
                if len(lists := batch.column(0).drop_null()):
                    return len(lists[0])
    return 0


@contextmanager
def _opened(path: Path, metadata: Any = None) -> Iterator[Any]:
    """Open a parquet file, and name it where it cannot be read."""
    try:
        with parquet.ParquetFile(path, metadata=metadata) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, pyarrow.ArrowException) as error:
        if _is_of_another_kind(path):
            raise InputError(
                f"{path} is no parquet file: an index is a .parquet that predict --features wrote"
            ) from error
        raise InputError(f"{path}: no parquet file, or a damaged one ({message_of(error)})") from error


def _is_of_another_kind(path: Path) -> bool:
    """Whether a file that can be read does not begin as parquet does."""
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET_MAGIC)) != PARQUET_MAGIC
    except OSError:
        return False
