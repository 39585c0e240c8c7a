"""Open labelled images as a row of units, each readable on its own, and read them in spite of a bad network.

A data set is read through `datasets` in streaming mode. Its units are the row groups of its parquet shards (for other
formats, its shards).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import fsspec
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
from datasets import ClassLabel, Features, Image, IterableDataset, load_dataset_builder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub.errors import OfflineModeIsEnabled

from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.folder import cache_folder, replacing
from seresnet_hub.photographs import left_out_of, trouble_in

EMBEDDED = "digits"
HELD_OUT = "held-out"  # the name of the part of a training split that is measured on
# A failed read is tried again after 1, 2, 4 … seconds, at most a minute: 4 minutes in all.
ATTEMPTS, OPENING_ATTEMPTS = 9, 4
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
HOPELESS_STATUS = frozenset({400, 401, 403, 404, 410})
HOPELESS = (FileNotFoundError, PermissionError, OfflineModeIsEnabled, MemoryError)
# A cut-off answer shows as an error of pyarrow. Which HTTP client there is differs between versions of huggingface_hub.
MAY_PASS = (InputError, OSError, pyarrow.ArrowException)
HTTP_CLIENTS = ("httpx", "httpcore", "aiohttp", "requests")
# fsspec reads this many bytes more than it is asked for, by default five million: bytes of the next row group.
READ_AHEAD = 1

log = PrintableLog(__name__)
Result = TypeVar("Result")


class Shard(NamedTuple):
    """A file of a data set, as it was when the data set was opened: two equal ones hold the same bytes."""

    name: str
    size: int
    etag: str


class Kept(NamedTuple):
    """The rows that a part of a split keeps, unit by unit, and the whole split's name, rows a unit and labels."""

    split: str
    unit_rows: tuple[int, ...]
    rows: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]


class OnlyTrainingError(InputError):
    """There is nothing to measure on by default: the data set has a training split and no other."""


class Answers(NamedTuple):
    """The classes that are right for each image, where that may be several, or none.

    The images are the rows in order; with `file_pattern`, those whose number, counted from 1, it finds in file names.
    """

    classes: tuple[tuple[int, ...], ...]
    file_pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a streamed data set: its units (row groups or shards) and how many rows each has.

    `kept` says of a part of a split which rows it has; `siblings` are the names of all splits of the data set. With
    `class_order` a label of the data set stands for the class at that place of it. With `answers` a row's label is the
    number of its image there.
    """

    source: str
    name: str
    unit_rows: tuple[int, ...]
    image_column: str
    label_column: str
    class_names: tuple[str, ...] | None
    shards: tuple[Shard, ...] = ()
    unit_shards: tuple[int, ...] = field(default=(), repr=False)
    class_order: tuple[int, ...] | None = field(default=None, repr=False)
    answers: Answers | None = field(default=None, repr=False)
    kept: Kept | None = field(default=None, repr=False, compare=False)
    siblings: tuple[str, ...] = field(default=(), repr=False, compare=False)
    files: tuple[str, ...] = field(default=(), repr=False, compare=False)
    dataset: IterableDataset = field(repr=False, compare=False)
    _of_one_file: dict[int, IterableDataset] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """The number of images in the split."""
        return sum(self.unit_rows)

    @property
    def fingerprint(self) -> int:
        """A number that another split of other shards does not have."""
        return _fingerprint(self.shards)

    @property
    def remote(self) -> bool:
        """Whether the files come over a network."""
        return any("://" in file for file in self.files)

    def stream(self, unit: int) -> IterableDataset:
        """Return a stream of one unit's rows; cuts a parquet shard into its row groups when it is first needed."""
        if not self.files or not _are_parquet(self.files):
            return self.dataset.shard(num_shards=self.dataset.num_shards, index=unit)
        file = self.unit_shards[unit]
        if file not in self._of_one_file:
            self._of_one_file[file] = self.dataset.shard(num_shards=len(self.files), index=file).reshard()
        one_file = self._of_one_file[file]
        return one_file.shard(num_shards=one_file.num_shards, index=unit - bisect_left(self.unit_shards, file))

    def place(self, index: int) -> str:
        """Say where a row lies, counted as a viewer of the data set counts, and in which shard."""
        ends = list(accumulate(self.unit_rows))
        unit = bisect_right(ends, index)
        name, unit_rows = self.name, self.unit_rows
        if self.kept is not None:
            row = self.kept.rows[unit][index - ends[unit] + self.unit_rows[unit]]
            name, unit_rows = self.kept.split, self.kept.unit_rows
            index = sum(unit_rows[:unit]) + int(row)
        inside = ""
        if self.unit_shards:
            shard = self.unit_shards[unit]
            first = sum(rows for rows, owner in zip(unit_rows, self.unit_shards, strict=True) if owner < shard)
            inside = f" (row {index - first} of {self.shards[shard].name})"
        return f"row {index} of split {name!r} of {self.source}{inside}"

    def unit_place(self, unit: int) -> str:
        """Say which unit it is, and of which shard."""
        inside = f" (in {self.shards[self.unit_shards[unit]].name})" if self.unit_shards else ""
        return f"part {unit} of split {self.name!r} of {self.source}{inside}"


class Row(NamedTuple):
    """An undecoded sample and its number in the split; the bytes of `image` may be a view of others' memory."""

    number: int
    image: dict[str, Any] | None
    label: Any


def open_split(source: str, split: str | None, *, label_column: str | None = None, label_lists: bool = False) -> Split:
    """Open one split of `source`: a folder, a Hub data set id, "digits", or a glob of files; reads metadata alone.

    Of other formats than parquet every row is counted once. `split=None` takes validation, else test, else the only
    one, unless that is called train. Private data sets need a token as huggingface_hub finds it (`hf auth login`, or
    HF_TOKEN). `label_column` is `label` or the only one of class numbers. With `label_lists` it may hold lists of them,
    which are read at once into `Split.answers`. Errors: `InputError` where the source, the split or the column does not
    exist, or none can be told; where a local folder's pictures are in no class folders, it says how to arrange them.
    """
    path = _embedded() if source == EMBEDDED else source
    looks_local = os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1
    path = os.path.expanduser(path)
    is_glob = "*" in path or "://" in path
    if looks_local and not is_glob and not os.path.exists(path):
        raise InputError(f"no data at {source}: the folder does not exist")
    local = os.path.exists(path)

    def patiently(what: str, act: Callable[[], Result]) -> Result:
        return retrying(what, act, attempts=1 if local else OPENING_ATTEMPTS)

    try:
        builder, streams = patiently(f"open data set {source!r}", lambda: _open(path, is_glob))
    except Exception as error:  # datasets, huggingface_hub and fsspec each raise their own
        if wrong := trouble_in(Path(path)):
            raise InputError(f"{source}: {wrong}") from error
        hint = "" if local or is_glob else " (it is no folder here, so it was looked for on the Hub)"
        raise InputError(f"cannot open data set {source!r}{hint}: {error or type(error).__name__}") from error
    name = _default_split(source, list(streams)) if split is None else split
    if name not in streams:
        raise InputError(f"data set {source!r} has no split {name!r}; it has: {', '.join(streams)}")
    features = streams[name].features
    labelled = features is not None and set(features) - {"image"}
    if not labelled and (wrong := trouble_in(Path(path))):
        raise InputError(f"{source}: {wrong}")
    if isinstance(builder, ImageFolder) and local and (warning := left_out_of(Path(path))):
        log.warning(warning)
    if features is None:
        raise InputError(f"data set {source!r} declares no columns, so no images can be told from other data")
    image_column, label_column = _columns(source, features, label_column, label_lists)
    label = _class_feature(features[label_column])
    files = tuple(str(file) for file in (builder.config.data_files or {}).get(name, []))
    shards = patiently(f"look at the files of {source!r}", lambda: shard_states(files))
    stream = streams[name].decode(False).select_columns([image_column, label_column])
    unit_rows, unit_shards = _units(files, shards, name, stream)
    opened = Split(
        source=source,
        name=name,
        unit_rows=unit_rows,
        image_column=image_column,
        label_column=label_column,
        class_names=tuple(label.names) if isinstance(label, ClassLabel) else None,
        shards=shards,
        unit_shards=unit_shards,
        files=files,
        dataset=stream,
        siblings=tuple(streams),
    )
    if label is features[label_column]:
        return opened
    return replace(opened, answers=Answers(tuple(_class_list(opened, *row) for row in enumerate(_lists(opened)))))


def _lists(split: Split) -> list[Any]:
    return [given for unit in range(len(split.unit_rows)) for given in _label_values(split, unit).to_pylist()]


def _class_list(split: Split, row: int, given: list[Any] | None) -> tuple[int, ...]:
    if any(not isinstance(number, int) or number < 0 for number in given or ()):
        raise InputError(f"{split.place(row)}: labels {given!r}, expected class numbers")
    return tuple(given or ())


def in_class_order(split: Split, order: Sequence[int]) -> Split:
    """Return the split with its classes renumbered: its class k becomes class `order[k]`."""
    names = split.class_names
    renamed = tuple(names[order.index(number)] for number in range(len(order))) if names else None
    if split.answers is None:
        return replace(split, class_order=tuple(order), class_names=renamed)
    try:
        classes = tuple(tuple(order[number] for number in numbers) for numbers in split.answers.classes)
    except IndexError:
        raise InputError(f"split {split.name!r} of {split.source} has labels beyond its {len(order)} classes") from None
    return replace(split, answers=split.answers._replace(classes=classes), class_names=renamed)


def open_splits(
    source: str, train: str, evaluation: str | None, *, holdout: float = 0.0, seed: int = 0
) -> tuple[Split, Split]:
    """Open the split to train on and the one to measure on.

    `evaluation=None` is validation, else test, else the share `holdout` of the training images (see `hold_out`), which
    are then not trained on. Errors: as for `open_split`; `InputError` where there is nothing to measure on.
    """
    training = open_split(source, train)
    named = evaluation or next((name for name in ("validation", "test") if name in training.siblings), None)
    if named is not None:
        return training, open_split(source, named)
    if not holdout:
        raise InputError(
            f"data set {source!r} has neither a validation nor a test split, only {', '.join(training.siblings)}: "
            "name one with --set eval_split=NAME, or hold out a fifth of the training images with --set holdout=0.2"
        )
    return hold_out(training, holdout, seed)


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Divide a split in two, and return the rest and what is held out; reads every label once.

    Of each class `share` is held out, rounded, but at least one image where there are two or more, and never all.
    Which ones depends on the seed and the order of the rows alone. Errors: `InputError` where nothing can be held out.
    """
    labels = tuple(_labels(split, unit) for unit in range(len(split.unit_rows)))
    chosen = np.zeros(split.rows, dtype=bool)
    together = np.concatenate(labels)
    for label in np.unique(together):
        rows = np.flatnonzero(together == label)
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        random_numbers = np.random.default_rng([seed, int(label) % 2**63])
        chosen[random_numbers.permutation(rows)[:count]] = True
    if not chosen.any():
        raise InputError(
            f"{split.source} has one image a class, so none can be held out to measure on: add images, or a folder of "
            "them named test"
        )
    cuts = np.cumsum(split.unit_rows)[:-1]

    def part(mask: np.ndarray, name: str) -> Split:
        rows = tuple(np.flatnonzero(unit) for unit in np.split(mask, cuts))
        kept = Kept(split.name, split.unit_rows, rows, labels)
        return replace(split, name=name, unit_rows=tuple(map(len, rows)), kept=kept)

    return part(~chosen, split.name), part(chosen, HELD_OUT)


def whole_of(part: Split) -> Split:
    """Return the split that `hold_out` divided, of one of its parts."""
    assert part.kept is not None
    return replace(part, name=part.kept.split, unit_rows=part.kept.unit_rows, kept=None)


def labels_of(split: Split) -> np.ndarray:
    """Return the label of each row, in order; reads the label column, of a part of a split nothing."""
    if split.kept is None:
        labels = [_labels(split, unit) for unit in range(len(split.unit_rows))]
    else:
        labels = [unit[rows] for unit, rows in zip(split.kept.labels, split.kept.rows, strict=True)]
    return np.concatenate(labels) if labels else np.array([], np.int64)


def _labels(split: Split, unit: int) -> np.ndarray:
    labels = _label_values(split, unit).to_numpy(zero_copy_only=False)
    if labels.dtype.kind not in "iu":
        raise InputError(f"cannot read the labels of {split.unit_place(unit)}: some rows have no label")
    return labels


def _label_values(split: Split, unit: int) -> pyarrow.Array:
    """Read the label column of one unit; a parquet file's images are not read."""
    if split.unit_rows[unit] == 0:
        return pyarrow.array([], pyarrow.int64())

    def read() -> pyarrow.Array:
        tables = _tables(split.stream(unit).select_columns([split.label_column]))
        return pyarrow.chunked_array(
            [chunk for table in tables for chunk in table.column(split.label_column).chunks]
        ).combine_chunks()

    place = split.unit_place(unit)
    try:
        return retrying(f"read the labels of {place}", read, attempts=ATTEMPTS if split.remote else 1)
    except Exception as error:  # each library raises its own
        raise InputError(f"cannot read the labels of {place}: {error or type(error).__name__}") from error


def _open(path: str, is_glob: bool) -> tuple[Any, dict[str, IterableDataset]]:
    options = {"hf": {"block_size": READ_AHEAD}}  # streaming takes them from the builder, not from a DownloadConfig
    if is_glob:
        kind = "webdataset" if path.endswith(".tar") else "parquet"
        builder = load_dataset_builder(kind, data_files=path, storage_options=options)
    else:
        builder = load_dataset_builder(path, storage_options=options)
    if hasattr(builder.config, "fragment_scan_options") and os.path.exists(path):
        # Reading a row group of a local file at once gains nothing, and holds it twice.
        builder.config.fragment_scan_options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
    return builder, cast(dict[str, IterableDataset], builder.as_streaming_dataset())


def _embedded() -> str:
    from seresnet_hub.digits import digits_folder  # scikit-learn, a second of import time, is for this one only

    return str(digits_folder())


def _default_split(source: str, names: Sequence[str]) -> str:
    for name in ("validation", "test"):
        if name in names:
            return name
    if list(names) == ["train"]:
        raise OnlyTrainingError(
            f"data set {source!r} has only a train split, which a model may have been trained on: measure it by name, "
            "with --split train"
        )
    if len(names) == 1:
        return names[0]
    raise InputError(f"data set {source!r} has neither a validation nor a test split; name one of: {', '.join(names)}")


def _columns(source: str, features: Features, label_column: str | None, label_lists: bool) -> tuple[str, str]:
    """Return the names of the image and the label column: `image` and `label`, else the only ones of their kind."""
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    labels += [name for name in ("label", "cls") if name in features and name not in labels]
    image = _only(source, "image", images, features)
    if label_column is not None and label_column not in features:
        raise InputError(f"data set {source!r} has no column {label_column!r}; its columns are: {', '.join(features)}")
    label = label_column or _only(source, "label", labels, features)
    kind, inner = features[label], _class_feature(features[label])
    if not isinstance(inner, ClassLabel) and not str(getattr(inner, "dtype", "")).startswith(("int", "uint")):
        raise InputError(
            f"data set {source!r}: column {label!r} holds {getattr(kind, 'dtype', kind)}, not class numbers"
        )
    if inner is not kind and not label_lists:
        raise InputError(
            f"data set {source!r}: column {label!r} holds lists, not class numbers; lists of them can be validated on, "
            "not trained on"
        )
    return image, label


def _class_feature(feature: Any) -> Any:
    """Return what a column of lists holds, and of others the column's own kind."""
    return getattr(feature, "feature", feature)


def _only(source: str, wanted: str, found: list[str], features: Features) -> str:
    if wanted in found:
        return wanted
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"data set {source!r} has several {wanted} columns, none named {wanted!r}: {', '.join(found)}")
    raise InputError(f"data set {source!r} has no {wanted} column; its columns are: {', '.join(features)}")


def shard_states(files: Sequence[str]) -> tuple[Shard, ...]:
    """Return name, size and etag of each file as they are now.

    The etag of a local parquet shard is the hash of its end, where it says what it holds, so that a copy is the same
    shard; of other local files it is the time of the last change.
    """
    prefix = os.path.commonprefix([file.rpartition("/")[0] + "/" for file in files])  # noqa: RUF071  # cut below
    common = len(prefix.rpartition("/")[0]) + 1
    with ThreadPoolExecutor(16) as pool:
        folders = {file.rpartition("/")[0] for file in files if file.startswith("hf://")}
        listed = {key: info for infos in pool.map(_hub_folder, folders) for key, info in infos.items()}
        return tuple(pool.map(lambda file: Shard(file[common:], *_size_and_etag(file, listed)), files))


def shards_now(split: Split) -> tuple[Shard, ...]:
    """Return the states of a split's shards as they are now. Errors: `InputError` where they are out of reach."""
    try:
        return retrying(f"look at the shards of {split.source}", partial(shard_states, split.files))
    except Exception as error:  # each library raises its own
        raise InputError(f"cannot look at the shards of {split.source}: {error or type(error).__name__}") from error


def _fingerprint(shards: Sequence[Shard]) -> int:
    return int(hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:15], 16)


def _hub_folder(folder: str) -> dict[str, Mapping[str, Any]]:
    filesystem, path = fsspec.core.url_to_fs(folder)
    return {info["name"]: info for info in filesystem.ls(path, detail=True, refresh=True)}


def _size_and_etag(file: str, listed: Mapping[str, Mapping[str, Any]]) -> tuple[int, str]:
    if "::" in file:  # a member of an archive: it changes with the archive
        return 0, file
    if "://" not in file:
        state = os.stat(file)
        if not file.endswith(".parquet"):
            return state.st_size, str(state.st_mtime_ns)
        with open(file, "rb") as handle:
            handle.seek(max(state.st_size - 65536, 0))
            return state.st_size, hashlib.sha256(handle.read()).hexdigest()
    filesystem, path = fsspec.core.url_to_fs(file)
    info = listed.get(path) or filesystem.info(path)
    lfs = info.get("lfs") or {}
    etag = lfs.get("sha256") or info.get("blob_id") or info.get("ETag") or info.get("mtime") or ""
    return int(info.get("size") or 0), str(etag)


def require_same_shards(split: Split, fingerprint: int) -> None:
    """Raise `InputError` where a fingerprint is of other shards; names those that changed, if they were read here."""
    if fingerprint == split.fingerprint:
        return
    kept = _kept(fingerprint)
    if kept.is_file():
        before = [Shard(*shard) for shard in json.loads(kept.read_text())["shards"]]
        require_unchanged(split.source, before, split.shards)
    raise InputError(f"{split.source} has other shards than the run began with")


def require_unchanged(source: str, before: Sequence[Shard], now: Sequence[Shard]) -> None:
    """Raise `InputError` that names the shards which are not what they were."""
    new = {shard.name: shard for shard in now}
    changed = [
        f"{shard.name} (was {shard.size:,} bytes, etag {shard.etag[:20]}; "
        + (f"now {found.size:,} bytes, etag {found.etag[:20]})" if (found := new.get(shard.name)) else "now missing)")
        for shard in before
        if new.get(shard.name) != shard
    ]
    known = {shard.name for shard in before}
    changed += [f"{shard.name} (new)" for shard in now if shard.name not in known]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise InputError(
            f"the shards of {source} have changed, so the run cannot go on as the same run: "
            f"{'; '.join(changed[:5])}{more}"
        )


def _units(
    files: Sequence[str], shards: Sequence[Shard], split: str, stream: IterableDataset
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rows and the shard of each unit: from parquet's footers where there are some, else counted once."""
    if files and _are_parquet(files):

        def read_footers() -> list[list[int]]:
            with ThreadPoolExecutor(16) as pool:
                return list(pool.map(_row_groups, files))

        groups = _counted_once(shards, len(files), read_footers)
        rows = [count for counts in groups for count in counts]
        return tuple(rows), tuple(shard for shard, counts in enumerate(groups) for _ in counts)
    number = stream.num_shards

    def read_everything() -> list[list[int]]:
        units = [stream.shard(num_shards=number, index=unit) for unit in range(number)]
        return [[sum(table.num_rows for table in _tables(unit))] for unit in units]

    try:
        rows = [count for (count,) in _counted_once(shards, number, read_everything)]
    except Exception as error:  # every format has its own
        raise InputError(f"cannot count the rows of split {split!r}: {error or type(error).__name__}") from error
    return tuple(rows), tuple(range(len(rows))) if len(rows) == len(shards) else ()


def _counted_once(shards: Sequence[Shard], number: int, count: Callable[[], list[list[int]]]) -> list[list[int]]:
    """Return `count()`, `number` lists, which is kept in the cache folder for as long as the shards do not change."""
    kept = _kept(_fingerprint(shards))
    if shards and kept.is_file():
        found: list[list[int]] = json.loads(kept.read_text())["row_groups"]
        if len(found) == number:
            return found
    groups = count()
    with suppress(InputError), replacing(kept) as temporary:  # without a cache folder they are read again next time
        temporary.write_text(json.dumps({"shards": shards, "row_groups": groups}))
    return groups


def _kept(fingerprint: int) -> Path:
    return cache_folder() / "shards" / f"{fingerprint}.json"


def _row_groups(file: str) -> list[int]:
    def read() -> list[int]:
        options = {"block_size": READ_AHEAD} if file.startswith("hf://") else {}
        with fsspec.open(file, "rb", **options) as handle:
            metadata = pyarrow.parquet.read_metadata(handle)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    try:
        return retrying(f"read the footer of {file}", read, attempts=ATTEMPTS if "://" in file else 1)
    except Exception as error:  # fsspec and pyarrow each raise their own
        raise InputError(f"cannot read parquet shard {file}: {error}") from error


def _are_parquet(files: Sequence[str]) -> bool:
    return all(file.endswith(".parquet") for file in files)


def _tables(stream: IterableDataset) -> Iterable[Any]:
    return cast(Iterable[Any], stream.with_format("arrow").iter(batch_size=1024))


def read_unit(split: Split, unit: int) -> list[Row]:
    """Read one unit whole, so that no reader is ever left half-way (an open one can abort the interpreter at exit).

    Over a network, what fails is tried again. Errors: `InputError` names the unit.
    """
    if split.unit_rows[unit] == 0:  # a row group may be empty, but cannot be read as a stream
        return []
    first = sum(split.unit_rows[:unit])

    def read() -> list[Row]:
        rows: list[Row] = []
        for table in _tables(split.stream(unit)):
            images = [image for chunk in table.column(split.image_column).chunks for image in _images(chunk)]
            labels = table.column(split.label_column).to_pylist()
            rows += [Row(first + len(rows) + k, image, labels[k]) for k, image in enumerate(images)]
        whole = split.unit_rows if split.kept is None else split.kept.unit_rows
        if len(rows) != whole[unit]:
            raise InputError(f"it gave {len(rows)} rows, not the {whole[unit]} it announced")
        if split.kept is not None:
            rows = [rows[row]._replace(number=first + k) for k, row in enumerate(split.kept.rows[unit].tolist())]
        return rows

    place = split.unit_place(unit)
    try:
        rows = retrying(f"read {place}", read, attempts=ATTEMPTS if split.remote else 1)
    except Exception as error:  # each library raises its own
        raise InputError(f"cannot read {place}: {error or type(error).__name__}") from error
    return [row._replace(label=_label(split, row)) for row in rows]


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
    """Return a row's label as `Split` has it, the data set's own where it is none that could be looked up."""
    if split.answers is not None and split.answers.file_pattern is not None:
        path = (row.image or {}).get("path") or ""
        found = re.search(split.answers.file_pattern, path)
        if found is None:
            raise InputError(
                f"{split.place(row.number)}: the image's file is called {path!r}, but it must be named as "
                f"{split.answers.file_pattern} to look up its labels"
            )
        return int(found[1]) - 1
    if split.answers is not None:
        return row.number
    if split.class_order is not None and isinstance(row.label, int) and 0 <= row.label < len(split.class_order):
        return split.class_order[row.label]
    return row.label


def retrying(what: str, act: Callable[[], Result], *, attempts: int = ATTEMPTS) -> Result:
    """Return `act()`, tried again with growing pauses after a fault of the network; the last error is raised."""
    delay = FIRST_DELAY
    for attempt in range(1, attempts + 1):
        try:
            return act()
        except Exception as error:
            if attempt == attempts or not _may_pass(error):
                raise
            log.warning("cannot %s (%s): trying again in %.0f s (%d of %d)", what, error, delay, attempt, attempts - 1)
            time.sleep(delay * random.uniform(0.8, 1.2))
            delay = min(2 * delay, LONGEST_DELAY)
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: BaseException) -> bool:
    """Return whether an error may be a fault of the network: not a refusal, and nothing wrong with the data set."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    statuses = {getattr(getattr(one, "response", None), "status_code", None) for one in chain}
    if statuses & HOPELESS_STATUS or any(isinstance(one, HOPELESS) for one in chain):
        return False
    if statuses - {None}:
        return True
    return any(isinstance(one, MAY_PASS) or type(one).__module__.startswith(HTTP_CLIENTS) for one in chain)
