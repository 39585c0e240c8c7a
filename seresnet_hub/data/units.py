"""Read the units of a split, each whole: their rows, or their labels alone."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple, cast, overload

import numpy as np
import pyarrow
from datasets import Features, IterableDataset
from PIL import Image

from seresnet_hub.data.picture_list import PictureList, as_rgb, read_named
from seresnet_hub.data.read_image import read_image
from seresnet_hub.data.read_retries import reading
from seresnet_hub.data.shards import fingerprint_of, kept_file, kept_shards, require_unchanged, shard_states
from seresnet_hub.data.split import Split
from seresnet_hub.data.tar_archives import kept_count
from seresnet_hub.errors import InputError


class Row(NamedTuple):
    """An undecoded sample and its number in the split; the bytes of `image` may be a view of others' memory."""

    number: int
    image: dict[str, Any] | None
    label: Any


def require_same_shards(split: Split, fingerprint: int) -> None:
    """Raise `InputError` where a fingerprint is of other shards; names those that changed, if they were read here.

    The shards' contents are then compared, as they are read, with what was last read of them on this machine.
    """
    if fingerprint == split.fingerprint:
        split.unit_hashes.load(fingerprint)
        return
    before = kept_shards(fingerprint)
    now = split.shards
    if split.class_folders and (not before or before[0].etag.isdigit()):  # of a version that looked at each file's time
        now = shard_states(split.class_folders.paths())
        if fingerprint == fingerprint_of(now):
            return
    if before:
        require_unchanged(split.source, before, now)
    raise InputError(f"{split.source} has other shards than the run began with")


def require_unchanged_files(split: Split) -> None:
    """Raise `InputError` that names the files which are not what they were at the opening."""
    if split.class_folders is not None:
        split.class_folders.require_unchanged(split.source)
    if split.class_folders is not None or split.pictures is not None:
        return
    now = reading(f"look at the shards of {split.source}", partial(shard_states, split.files))
    require_unchanged(split.source, split.shards, now)


def labels_of(split: Split) -> np.ndarray:
    """Return the label of each row, in order; reads the label column, of a part of a split nothing."""
    if split.subset is None:
        labels = labels_of_units(split)
    else:
        labels = [unit[rows] for unit, rows in zip(split.subset.labels, split.subset.rows, strict=True)]
    return np.concatenate(labels) if labels else np.array([], np.int64)


def labels_of_units(split: Split) -> list[np.ndarray]:
    """Return the labels of each unit; over a network, many are asked for at once."""
    with ThreadPoolExecutor(16 if split.streamed else 1) as pool:
        return list(pool.map(partial(unit_labels, split), range(len(split.unit_rows))))


def unit_labels(split: Split, unit: int) -> np.ndarray:
    labels = label_values(split, unit).to_numpy(zero_copy_only=False)
    if labels.dtype.kind not in "iu":
        raise InputError(f"cannot read the labels of {split.unit_place(unit)}: some rows have no label")
    return labels


def label_values(split: Split, unit: int) -> pyarrow.Array:
    """Read the label column of one unit; a parquet file's images are not read."""
    if split.class_folders is not None:
        return pyarrow.array(split.class_folders.labels)
    if split.unit_rows[unit] == 0:
        return pyarrow.array([], pyarrow.int64())

    def read() -> pyarrow.Array:
        tables = _tables(split, unit, [split.label_column])
        return pyarrow.chunked_array(
            [chunk for table in tables for chunk in table.column(split.label_column).chunks]
        ).combine_chunks()

    return reading(f"read the labels of {split.unit_place(unit)}", read, remote=split.remote)


def _tables(
    split: Split, unit: int, columns: list[str], needed: Callable[[int], bool] = lambda _: False
) -> Iterable[pyarrow.Table]:
    """Return the rows of a unit; of one that has to be fetched, units that are `needed` later may come with it."""
    if split.parquet is None:
        return tables_of(split.stream(unit).select_columns(columns))
    shard = split.unit_shards[unit]
    first = bisect_left(split.unit_shards, shard)
    assert split.dataset is not None
    features = Features({name: (split.dataset.features or {})[name] for name in columns})
    return [split.parquet.read(shard, unit - first, features, needed=lambda group: needed(first + group))]


def tables_of(stream: IterableDataset) -> Iterable[Any]:
    return cast(Iterable[Any], stream.with_format("arrow").iter(batch_size=1024))


class _LazyRows(Sequence[Row]):
    """Rows with consecutive numbers, each made when it is asked for, by `make` from its number."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def make(self, number: int) -> Row:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self.make(number) for number in self._numbers[place]]
        return self.make(self._numbers[place])


class PictureRows(_LazyRows):
    """The rows of a folder of class folders, or of a part of it."""

    def __init__(self, split: Split) -> None:
        super().__init__(range(split.rows))
        self._split = split

    def make(self, number: int) -> Row:
        folders, subset = self._split.class_folders, self._split.subset
        assert folders is not None
        row = number if subset is None else int(subset.rows[0][number])
        image = {"bytes": None, "path": folders.path(row), "size": folders.size(row)}
        found = Row(number, image, folders.label(row))
        return found._replace(label=_label(self._split, found))


class ListedRows(_LazyRows):
    """Some rows of a list of pictures."""

    def __init__(self, pictures: PictureList, numbers: range) -> None:
        super().__init__(numbers)
        self._pictures = pictures

    def make(self, number: int) -> Row:
        held = self._pictures.held(number)
        if held is None:
            return Row(number, {"bytes": None, "path": self._pictures.name(number)}, None)
        return Row(number, {"bytes": held if isinstance(held, bytes) else None, "path": None, "picture": held}, None)


def picture_bytes(split: Split, image: dict[str, Any]) -> bytes:
    """Return a row's encoded picture, from the row itself or from the file that it names.

    Errors: as of `RowFiles.read`; `InputError` where there is neither, or the file was changed since it was listed.
    """
    data = image.get("bytes")
    if data is not None:
        return cast(bytes, data.result() if isinstance(data, Future) else data)
    if image.get("path") is None:
        raise InputError("there is no image in this row")
    if split.pictures is not None:
        return read_named(image["path"])
    data = split.row_files.read(image["path"])
    if split.class_folders is not None and len(data) != image["size"]:
        raise split.class_folders.changed_in_place(len(data), image["size"])
    return data


def read_unit(split: Split, unit: int, needed: Callable[[int], bool] = lambda _: False) -> Sequence[Row]:
    """Read one unit whole, so that no reader is ever left half-way (an open one can abort the interpreter at exit).

    Over a network, what fails is tried again; units that are `needed` later may be fetched with it, and kept on the
    disk. Errors: `InputError` names the unit.
    """
    if split.unit_rows[unit] == 0:  # a row group may be empty, but cannot be read as a stream
        return []
    if split.class_folders is not None:
        return PictureRows(split)
    first = sum(split.unit_rows[:unit])
    if split.pictures is not None:
        return ListedRows(split.pictures, range(first, first + split.unit_rows[unit]))

    def read() -> list[Row]:
        rows: list[Row] = []
        columns = [split.image_column, *([split.label_column] if split.label_column else [])]
        for table in _tables(split, unit, columns, needed):
            images = [image for chunk in table.column(split.image_column).chunks for image in _images(chunk)]
            labels = table.column(split.label_column).to_pylist() if split.label_column else [None] * len(images)
            rows += [Row(first + len(rows) + k, image, labels[k]) for k, image in enumerate(images)]
        announced = split.whole_unit_rows[unit]
        if len(rows) != announced:
            with suppress(OSError):  # what was kept may be wrong: it is counted anew the next time
                kept_file(split.fingerprint).unlink(missing_ok=True)
                for shard in split.unit_shards[unit : unit + 1]:
                    kept_count(split.shards[shard]).unlink(missing_ok=True)
            raise InputError(f"it gave {len(rows)} rows, not the {announced} it announced")
        if not split.unit_hashes.match(unit, ((row.image, row.label) for row in rows)):
            raise InputError(
                "it holds other bytes than when it was last read, although its size and its end are the same: its "
                "file was changed or damaged; restore it, or begin a new run"
            )
        if split.subset is not None:
            rows = [rows[row]._replace(number=first + k) for k, row in enumerate(split.subset.rows[unit].tolist())]
        return rows

    rows = reading(f"read {split.unit_place(unit)}", read, remote=split.remote)
    return [row._replace(label=_label(split, row)) for row in rows]


def rows_of(split: Split, numbers: Iterable[int]) -> Iterator[tuple[int, Row | InputError]]:
    """Read rows by their numbers: each unit that has one of them once, and no other; in rising order.

    Of a unit that cannot be read, each row comes with the same error.
    """
    wanted = sorted({number for number in numbers if number < split.rows})
    ends = np.cumsum(split.unit_rows)
    for unit, inside in groupby(wanted, key=lambda number: int(np.searchsorted(ends, number, side="right"))):
        first = int(ends[unit]) - split.unit_rows[unit]
        found: Sequence[Row] | InputError
        try:
            found = read_unit(split, unit)
        except InputError as error:
            found = error
        for number in inside:
            yield number, found if isinstance(found, InputError) else found[number - first]


def picture_of(split: Split, row: Row) -> Image.Image:
    """Return a row's picture as 8-bit RGB. Errors: `InputError` where it cannot be read."""
    image = row.image or {}
    if image.get("picture") is not None and image["bytes"] is None:
        return as_rgb(image["picture"])
    return read_image(picture_bytes(split, image))


def _images(chunk: Any) -> list[dict[str, Any] | None]:
    """Return the pictures of an Arrow array as `datasets` has them, their bytes as views of Arrow's memory."""
    names = [column.name for column in chunk.type] if pyarrow.types.is_struct(chunk.type) else []
    columns = dict(zip(names, chunk.flatten(), strict=True)) if names else {}
    encoded = columns.get("bytes")
    if encoded is None or not len(encoded) or not pyarrow.types.is_binary(encoded.type):
        pictures: list[dict[str, Any] | None] = chunk.to_pylist()
        return pictures
    _, offsets, values = encoded.buffers()
    ends = np.frombuffer(offsets, np.int32)[encoded.offset : encoded.offset + len(encoded) + 1].tolist()
    memory = memoryview(values or b"").cast("B")  # Arrow's own views are of signed bytes
    views = [memory[first:end] for first, end in pairwise(ends)]
    known = encoded.is_valid().to_pylist()
    paths = columns["path"].to_pylist() if "path" in columns else [None] * len(views)
    return [
        {"bytes": view if has_bytes else None, "path": path} if is_there else None
        for view, has_bytes, path, is_there in zip(views, known, paths, chunk.is_valid().to_pylist(), strict=True)
    ]


def _label(split: Split, row: Row) -> Any:
    """Return a row's label in the model's numbering; unchanged where it is no class number."""
    if split.right_classes is not None and split.right_classes.file_pattern is not None:
        path = (row.image or {}).get("path") or ""
        found = re.search(split.right_classes.file_pattern, path)
        if found is None:
            raise InputError(
                f"{split.place(row.number)}: the image's file is called {path!r}, but it must be named as "
                f"{split.right_classes.file_pattern} to look up its labels"
            )
        return int(found[1]) - 1
    if split.right_classes is not None:
        return row.number
    if split.class_order is not None and isinstance(row.label, int) and 0 <= row.label < len(split.class_order):
        return split.class_order[row.label]
    return row.label
