"""Stream labelled images in an order that depends on the seed and the epoch alone, each exactly once.

A data set is read through `datasets` in streaming mode as a row of units: the row groups of its parquet shards (for
other formats, its shards). The order of an epoch permutes the units, then the rows inside a window of units. Every
process walks the same order and decodes only its own part of each batch, so any number of ranks and workers makes the
same batches. Each of them reads the raw bytes of the whole stream.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, cast

import fsspec
import numpy as np
import pyarrow.parquet
import torch
from datasets import ClassLabel, Features, Image, IterableDataset, load_dataset_builder
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset

from seresnet_hub.errors import InputError
from seresnet_hub.images import Transform, read_image, seeded, training_transform
from seresnet_hub.recipes import Recipe

EMBEDDED = "digits"


class Batch(NamedTuple):
    """One rank's part of a global batch: uint8 `images` `(rows, 3, height, width)`, `labels`, and which rows count.

    Rows with a false `mask` repeat another row, so that every rank has one; `total` counts the real rows of all ranks.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    total: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a streamed data set: its units (row groups or shards) and how many rows each has."""

    source: str
    name: str
    unit_rows: tuple[int, ...]
    image_column: str
    label_column: str
    class_names: tuple[str, ...] | None
    dataset: IterableDataset = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        """The number of images in the split."""
        return sum(self.unit_rows)


class Row(NamedTuple):
    """An undecoded sample and where it lies."""

    unit: int
    number: int
    image: dict[str, Any] | None
    label: Any


def open_split(source: str, split: str | None) -> Split:
    """Open one split of `source`: a folder, a Hub data set id, or "digits"; reads parquet's metadata alone.

    Of other formats every row is counted once.

    `split=None` takes validation, else test, else the only one. Errors: `InputError` where the source or the split
    does not exist, or no image and label column can be told.
    """
    path = _embedded() if source == EMBEDDED else source
    looks_local = os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1
    path = os.path.expanduser(path)
    if looks_local and not os.path.exists(path):
        raise InputError(f"no data at {source}: the folder does not exist")
    try:
        builder = load_dataset_builder(path)
        streams = cast(dict[str, IterableDataset], builder.as_streaming_dataset())
    except Exception as error:  # datasets, huggingface_hub and fsspec each raise their own
        hint = "" if os.path.exists(path) else " (it is no folder here, so it was looked for on the Hub)"
        raise InputError(f"cannot open data set {source!r}{hint}: {error or type(error).__name__}") from error
    name = _default_split(source, list(streams)) if split is None else split
    if name not in streams:
        raise InputError(f"data set {source!r} has no split {name!r}; it has: {', '.join(streams)}")
    features = streams[name].features
    if features is None:
        raise InputError(f"data set {source!r} declares no columns, so no images can be told from other data")
    image_column, label_column = _columns(source, features)
    label = features[label_column]
    stream = streams[name].decode(False).select_columns([image_column, label_column]).reshard()
    return Split(
        source=source,
        name=name,
        unit_rows=_unit_rows(builder, name, stream),
        image_column=image_column,
        label_column=label_column,
        class_names=tuple(label.names) if isinstance(label, ClassLabel) else None,
        dataset=stream,
    )


def _embedded() -> str:
    from seresnet_hub.digits import digits_folder  # scikit-learn, a second of import time, is for this one only

    return str(digits_folder())


def _default_split(source: str, names: Sequence[str]) -> str:
    for name in ("validation", "test"):
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise InputError(f"data set {source!r} has neither a validation nor a test split; name one of: {', '.join(names)}")


def _columns(source: str, features: Features) -> tuple[str, str]:
    """Return the names of the image and the label column: `image` and `label`, else the only ones of their kind."""
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    labels += [name for name in ("label", "cls") if name in features and name not in labels]
    image = _only(source, "image", images, features)
    label = _only(source, "label", labels, features)
    kind = features[label]
    if not isinstance(kind, ClassLabel) and not str(getattr(kind, "dtype", "")).startswith(("int", "uint")):
        raise InputError(
            f"data set {source!r}: column {label!r} holds {getattr(kind, 'dtype', kind)}, not class numbers"
        )
    return image, label


def _only(source: str, wanted: str, found: list[str], features: Features) -> str:
    if wanted in found:
        return wanted
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"data set {source!r} has several {wanted} columns, none named {wanted!r}: {', '.join(found)}")
    raise InputError(f"data set {source!r} has no {wanted} column; its columns are: {', '.join(features)}")


def _unit_rows(builder: Any, split: str, stream: IterableDataset) -> tuple[int, ...]:
    """Return the rows of each unit: from the parquet footers where there are some, else by counting once."""
    files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    if files and all(file.endswith(".parquet") for file in files):
        with ThreadPoolExecutor(16) as pool:
            rows = [count for counts in pool.map(_row_groups, files) for count in counts]
        if len(rows) == stream.num_shards:
            return tuple(rows)
    try:
        return tuple(sum(table.num_rows for table in _tables(stream, unit)) for unit in range(stream.num_shards))
    except Exception as error:  # every format has its own
        raise InputError(f"cannot count the rows of split {split!r}: {error or type(error).__name__}") from error


def _row_groups(file: str) -> list[int]:
    try:
        with fsspec.open(file, "rb") as handle:
            metadata = pyarrow.parquet.read_metadata(handle)
    except Exception as error:  # fsspec and pyarrow each raise their own
        raise InputError(f"cannot read parquet shard {file}: {error}") from error
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _tables(stream: IterableDataset, unit: int) -> Iterable[Any]:
    one = stream.shard(num_shards=stream.num_shards, index=unit)
    return cast(Iterable[Any], one.with_format("arrow").iter(batch_size=1024))


def _read_unit(split: Split, unit: int) -> list[Row]:
    """Read one unit whole, so that no reader is ever left half-way (an open one can abort the interpreter at exit)."""
    rows: list[Row] = []
    if split.unit_rows[unit] == 0:  # a row group may be empty, but cannot be read as a stream
        return rows
    try:
        for table in _tables(split.dataset, unit):
            images = table.column(split.image_column).to_pylist()
            labels = table.column(split.label_column).to_pylist()
            rows += [Row(unit, len(rows) + k, image, labels[k]) for k, image in enumerate(images)]
    except Exception as error:
        raise InputError(f"cannot read {_place(split, unit)}: {error or type(error).__name__}") from error
    if len(rows) != split.unit_rows[unit]:
        raise InputError(f"{_place(split, unit)} gave {len(rows)} rows, not the {split.unit_rows[unit]} it announced")
    return rows


def _place(split: Split, unit: int, index: int | None = None) -> str:
    """Say where a row lies: the row of the split, counted as a viewer of the data set counts."""
    if index is None:
        return f"part {unit} of split {split.name!r} of {split.source}"
    return f"row {sum(split.unit_rows[:unit]) + index} of split {split.name!r} of {split.source}"


def epoch_windows(
    unit_rows: Sequence[int], *, seed: int, epoch: int, window: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield the training order of one epoch: lists of units, and a permutation of the rows those units hold together.

    Units are permuted, then gathered until they hold at least `window` rows; a pure function of the arguments.
    """
    random = np.random.default_rng([seed, epoch])
    units: list[int] = []
    rows = 0
    order = random.permutation(len(unit_rows))
    for position, unit in enumerate(order):
        units.append(int(unit))
        rows += unit_rows[unit]
        if rows >= window or position == len(order) - 1:
            yield units, random.permutation(rows)
            units, rows = [], 0


class _Stream(TorchIterableDataset[Any]):
    """The batches of one rank; a worker yields every n-th of them. A failure travels as a value, to keep its text."""

    def __init__(
        self,
        split: Split,
        transform: Transform,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        num_classes: int | None,
        order: tuple[int, int, int] | None,
        position: int,
    ) -> None:
        self.split, self.transform = split, transform
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_classes, self.order, self.position = num_classes, order, position

    def __iter__(self) -> Iterator[Batch | InputError]:
        worker = get_worker_info()
        step, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        try:
            for number, rows in enumerate(self._global_batches()):
                if number % step == offset:
                    yield self._decode(rows)
        except InputError as error:
            yield error
        except MemoryError:
            yield InputError(f"not enough memory to prepare the images of {self.split.source}")

    def _global_batches(self) -> Iterator[list[Row]]:
        """Yield the rows of each global batch from `position` on; windows that lie before it are not read."""
        skip = self.position * self.batch_size
        waiting: list[Row] = []
        for units, permutation in self._windows():
            if skip >= len(permutation):
                skip -= len(permutation)
                continue
            rows = [row for unit in units for row in _read_unit(self.split, unit)]
            waiting += [rows[k] for k in permutation[skip:]]
            skip = 0
            while len(waiting) >= self.batch_size:
                yield waiting[: self.batch_size]
                waiting = waiting[self.batch_size :]
        if waiting:
            yield waiting

    def _windows(self) -> Iterator[tuple[list[int], np.ndarray]]:
        if self.order is None:
            return (([unit], np.arange(rows)) for unit, rows in enumerate(self.split.unit_rows))
        seed, epoch, window = self.order
        return epoch_windows(self.split.unit_rows, seed=seed, epoch=epoch, window=window)

    def _decode(self, rows: list[Row]) -> Batch:
        """Decode this rank's share of a global batch: consecutive rows, equally many on every rank."""
        share = -(-len(rows) // self.world_size)
        mine = rows[self.rank * share : (self.rank + 1) * share]
        mask = torch.arange(share) < len(mine)
        mine = mine + (mine or rows)[-1:] * (share - len(mine))
        images = torch.stack([self._image(row) for row in mine])
        labels = torch.tensor([self._label(row) for row in mine])
        return Batch(images, labels, mask, len(rows))

    def _image(self, row: Row) -> torch.Tensor:
        data, path = (row.image.get("bytes"), row.image.get("path")) if row.image else (None, None)
        try:
            if data is None and path is None:
                raise InputError("there is no image in this row")
            if data is None:
                with fsspec.open(path, "rb") as handle:
                    data = cast(io.BufferedIOBase, handle).read()
            picture = read_image(data)
        except (InputError, OSError, TypeError, ValueError) as error:
            name = f" ({path})" if path else ""
            raise InputError(f"{_place(self.split, row.unit, row.number)}{name}: {error}") from error
        if self.order is None:
            return self.transform(picture)
        seed, epoch, _ = self.order
        with seeded(seed, epoch, row.unit, row.number):
            return self.transform(picture)

    def _label(self, row: Row) -> int:
        label = row.label
        if not isinstance(label, int) or label < 0 or (self.num_classes is not None and label >= self.num_classes):
            expected = "0 or more" if self.num_classes is None else f"0 to {self.num_classes - 1}"
            raise InputError(f"{_place(self.split, row.unit, row.number)}: label {label!r}, expected {expected}")
        return label


@dataclass(frozen=True, kw_only=True)
class Loader:
    """The batches of one epoch on one rank; iterate it. `len()` counts the batches that are left from `position`."""

    split: Split
    stream: _Stream = field(repr=False)
    workers: int

    def __len__(self) -> int:
        return -(-self.split.rows // self.stream.batch_size) - self.stream.position

    def __iter__(self) -> Iterator[Batch]:
        workers = min(self.workers, len(self))
        batches = DataLoader(
            self.stream, batch_size=None, num_workers=workers, worker_init_fn=_start_worker if workers else None
        )
        try:
            for batch in batches:
                if isinstance(batch, InputError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):  # how torch reports a worker that was killed
                raise
            raise InputError(
                f"{error}: a loader worker died, perhaps for want of memory; try --set workers=0"
            ) from error


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to report
    torch.set_num_threads(1)
    sys.excepthook = _report_unless_hung_up


def _report_unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception, unless it only says that the main process left while a batch was being handed over."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def loader(
    source: str | Split,
    split: str | None,
    recipe: Recipe,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    seed: int = 0,
    epoch: int = 0,
    position: int = 0,
) -> Loader:
    """Return the training batches of one epoch: `recipe.batch_size` images over all ranks, augmented as it says.

    The order depends on `seed` and `epoch` alone, the augmentation of a sample on these and the sample. `position` is
    the number of global batches to leave out at the start. The last batch may be smaller. Errors: see `open_split`.
    """
    opened = source if isinstance(source, Split) else open_split(source, split)
    transform = training_transform(
        crop=recipe.crop,
        input_size=(3, recipe.input_size, recipe.input_size),
        interpolation=recipe.interpolation,
        crop_padding=recipe.crop_padding,
        scale=recipe.scale,
        horizontal_flip=recipe.horizontal_flip,
    )
    stream = _Stream(
        opened, transform, batch_size=recipe.batch_size, rank=rank, world_size=world_size,
        num_classes=recipe.num_classes or (len(opened.class_names) if opened.class_names else None),
        order=(seed, epoch, recipe.shuffle_window), position=position,
    )  # fmt: skip
    return Loader(split=opened, stream=stream, workers=workers)


def evaluation_loader(
    source: str | Split,
    split: str | None,
    transform: Transform,
    *,
    batch_size: int,
    num_classes: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Loader:
    """Return every image of a split once, in its own order; `batch_size` counts images over all ranks."""
    opened = source if isinstance(source, Split) else open_split(source, split)
    stream = _Stream(
        opened, transform, batch_size=batch_size, rank=rank, world_size=world_size,
        num_classes=num_classes, order=None, position=0,
    )  # fmt: skip
    return Loader(split=opened, stream=stream, workers=workers)
