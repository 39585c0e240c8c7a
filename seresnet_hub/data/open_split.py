"""Open a split of a data set as a row of units, each readable on its own.

`datasets` finds its files and says what they hold. Its units are the row groups of its parquet shards, which are read
directly; of other formats they are its shards, which `datasets` streams.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from datasets import ClassLabel, Features, Image, IterableDataset, load_dataset_builder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import constants

from seresnet_hub.data.class_folders import ClassFolders, class_folders, has_no_classes
from seresnet_hub.data.folder_index import ENDINGS, index_of
from seresnet_hub.data.image_folders import left_out_of, refuse_unreadable, trouble_in
from seresnet_hub.data.parquet_shards import ParquetShards
from seresnet_hub.data.read_retries import OPENING_ATTEMPTS, reading, retrying
from seresnet_hub.data.row_files import RowFiles, folder_of
from seresnet_hub.data.shard_cache import folder_in_hub_cache
from seresnet_hub.data.shards import (
    READ_AHEAD,
    Shard,
    are_parquet,
    counted_once,
    keep_shards,
    kept_shards,
    shard_states,
)  # fmt: skip
from seresnet_hub.data.split import RightClasses, Split
from seresnet_hub.data.tar_archives import rows_of_archives
from seresnet_hub.data.unit_hashes import UnitHashes
from seresnet_hub.data.units import label_values, tables_of
from seresnet_hub.errors import InputError, PrintableLog

EMBEDDED = "digits"

log = PrintableLog(__name__)
Result = TypeVar("Result")


class OnlyTrainingError(InputError):
    """There is nothing to measure on by default: the data set has a training split and no other."""


class NoSplitError(InputError):
    """The data set has no split of this name."""


def public_name(source: str) -> str:
    """Return what others are told of where data lies: a Hub repository, or a path's last part.

    A machine's folders are its owner's.
    """
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not Path(source).exists()
    return source if is_hub_id else Path(source).name


def open_split(
    source: str,
    split: str | None,
    *,
    label_column: str | None = None,
    label_lists: bool = False,
    cache_gb: float | None = None,
    needs_labels: bool = True,
) -> Split:
    """Open one split of `source`: a folder, a Hub data set id, "digits", or a glob of files; reads metadata alone.

    Of other formats than parquet every row is counted once. `split=None` takes validation, else test, else the only
    one, unless that is called train. Private data sets need a token as huggingface_hub finds it (`hf auth login`, or
    HF_TOKEN). `label_column` is `label` or the only one of class numbers. With `label_lists` it may hold lists of them,
    which are read at once into `Split.right_classes`. What is read of remote parquet shards is kept on this machine:
    at most `cache_gb` gigabytes of the split, as many as the disk holds with room to spare (None), or none (0).
    Without `needs_labels`, a column of labels that cannot be told is none. Errors: `InputError` where the source, the
    split or the column does not exist or cannot be told, or the disk cannot hold so much; where a local folder's
    pictures are in no class folders, it says how to arrange them.
    """
    path = _embedded() if source == EMBEDDED else source
    looks_local = os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1
    path = os.path.expanduser(path)
    is_glob = "*" in path or "://" in path or (path.endswith((".parquet", ".tar")) and os.path.isfile(path))
    if looks_local and not is_glob and not os.path.exists(path):
        raise InputError(f"no data at {source}: the folder does not exist")
    local = os.path.exists(path)
    index = index_of(path) if os.path.isdir(path) else None
    if index is not None and (folders := class_folders(index, path)):
        return _of_class_folders(source, path, split, folders, label_column, label_lists)
    if index is not None and has_no_classes(index, path) and (wrong := trouble_in(index)):
        refuse_unreadable(index)
        raise InputError(f"{source}: {wrong}")

    def patiently(what: str, act: Callable[[], Result]) -> Result:
        return retrying(what, act, attempts=1 if local else OPENING_ATTEMPTS)

    try:
        builder, streams = patiently(f"open data set {source!r}", lambda: _open(path, is_glob))
    except Exception as error:  # datasets, huggingface_hub and fsspec each raise their own
        if index and (wrong := trouble_in(index)):
            raise InputError(f"{source}: {wrong}") from error
        if constants.HF_HUB_OFFLINE and not (local or is_glob):
            raise InputError(_offline(source)) from error
        hint = "" if local or is_glob else " (it is no folder here, so it was looked for on the Hub)"
        raise InputError(f"cannot open data set {source!r}{hint}: {error or type(error).__name__}") from error
    name = _default_split(source, list(streams)) if split is None else split
    if name not in streams:
        raise _no_split(source, name, streams)
    features = streams[name].features
    labelled = features is not None and (set(features) - {"image"} or not needs_labels)
    if not labelled and index and (wrong := trouble_in(index)):
        raise InputError(f"{source}: {wrong}")
    if isinstance(builder, ImageFolder) and index and (warning := left_out_of(index)):
        log.warning(warning)
    if features is None:
        raise InputError(f"data set {source!r} declares no columns, so no images can be told from other data")
    image_column, label_column = _columns(source, features, label_column, label_lists, needs_labels)
    label = _class_feature(features[label_column]) if label_column else None
    files = tuple(str(file) for file in (builder.config.data_files or {}).get(name, []))
    shards = patiently(f"look at the files of {source!r}", lambda: shard_states(files))
    columns = [image_column, *([label_column] if label_column else [])]
    stream = streams[name].decode(False).select_columns(columns)
    parquet = ParquetShards(files, shards, cache_gb) if files and are_parquet(files) else None
    unit_rows, unit_shards = _units(files, parquet, shards, name, stream)
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
        row_files=RowFiles.of(path, files, lists_pictures=isinstance(builder, ImageFolder)),
        unit_hashes=UnitHashes(len(unit_rows), columns=columns, folder=folder_of(files)),
        dataset=stream,
        siblings=tuple(streams),
        parquet=parquet,
    )
    if label is None or label is features[label_column]:
        return opened
    lists = [given for unit in range(len(unit_rows)) for given in label_values(opened, unit).to_pylist()]
    for row, given in enumerate(lists):
        if any(not isinstance(number, int) or number < 0 for number in given or ()):
            raise InputError(f"{opened.place(row)}: labels {given!r}, expected class numbers")
    return replace(opened, right_classes=RightClasses(tuple(tuple(given or ()) for given in lists)))


def _offline(source: str) -> str:
    """Say how to read a data set of the Hub without asking the Hub: from its folder in the Hub's cache."""
    text = f"cannot open data set {source!r}: HF_HUB_OFFLINE=1 is set, and {source} is no folder here"
    with suppress(OSError, ValueError):  # no name of a repository, or none of it is there
        folder = folder_in_hub_cache(source)
        commit = (folder / "refs" / "main").read_text().strip()
        if (folder / "snapshots" / commit).is_dir():
            return (
                f"{text}; where all of it was fetched, give its folder in the Hub's cache: {folder}/snapshots/{commit}"
            )
    return text


def _of_class_folders(
    source: str, path: str, split: str | None, folders: Mapping[str, ClassFolders], label_column: str | None,
    label_lists: bool,
) -> Split:  # fmt: skip
    name = _default_split(source, list(folders)) if split is None else split
    if name not in folders:
        raise _no_split(source, name, folders)
    rows = folders[name]
    if warning := left_out_of(rows.index):
        log.warning(warning)
    features = Features({"image": Image(), "label": ClassLabel(names=list(rows.class_names))})
    image_column, label_column = _columns(source, features, label_column, label_lists)
    opened = Split(
        source=source,
        name=name,
        unit_rows=(len(rows),),
        image_column=image_column,
        label_column=label_column,
        class_names=rows.class_names,
        shards=rows.shards,
        row_files=RowFiles.of(path, (), lists_pictures=True),
        unit_hashes=UnitHashes(0),
        class_folders=rows,
        siblings=tuple(folders),
    )
    if kept_shards(opened.fingerprint) != list(rows.shards):
        keep_shards(rows.shards, [[len(rows)]])
    return opened


def _no_split(source: str, name: str, names: Iterable[str]) -> NoSplitError:
    return NoSplitError(f"data set {source!r} has no split {name!r}; it has: {', '.join(names)}")


def _open(path: str, is_glob: bool) -> tuple[Any, dict[str, IterableDataset]]:
    options = {"hf": {"block_size": READ_AHEAD}}  # streaming takes them from the builder, not from a DownloadConfig
    if is_glob:
        kind = "webdataset" if path.endswith(".tar") else "parquet"
        builder = load_dataset_builder(kind, data_files=path, storage_options=options)
    else:
        builder = load_dataset_builder(path, storage_options=options)
    if isinstance(builder, ImageFolder):  # pictures of other formats are not opened, so they are no rows
        builder.EXTENSIONS = [ending for ending in builder.EXTENSIONS if ending in ENDINGS]
    return builder, cast(dict[str, IterableDataset], builder.as_streaming_dataset())


def _embedded() -> str:
    from seresnet_hub.data.digits import digits_folder  # scikit-learn, a second of import time, is for this one only

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


def _columns(
    source: str, features: Features, label_column: str | None, label_lists: bool, needs_labels: bool = True
) -> tuple[str, str]:
    """Return the names of the image and the label column: `image` and `label`, else the only ones of their kind."""
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    labels += [name for name in ("label", "cls") if name in features and name not in labels]
    image = _only(source, "image", images, features)
    if label_column is not None and label_column not in features:
        raise InputError(f"data set {source!r} has no column {label_column!r}; its columns are: {', '.join(features)}")
    if label_column is None and not needs_labels:
        whole = [name for name in labels if _holds_class_numbers(features[name])]
        return image, "label" if "label" in whole else whole[0] if len(whole) == 1 else ""
    label = label_column or _only(source, "label", labels, features)
    kind, inner = features[label], _class_feature(features[label])
    if not _holds_class_numbers(inner):
        raise InputError(
            f"data set {source!r}: column {label!r} holds {getattr(kind, 'dtype', kind)}, not class numbers"
        )
    if inner is not kind and not label_lists:
        raise InputError(
            f"data set {source!r}: column {label!r} holds lists, not class numbers; lists of them can be validated on, "
            "not trained on"
        )
    return image, label


def _holds_class_numbers(feature: Any) -> bool:
    return isinstance(feature, ClassLabel) or str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


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


def _units(
    files: Sequence[str], parquet: ParquetShards | None, shards: Sequence[Shard], split: str, stream: IterableDataset
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rows and the shard of each unit: from parquet's footers where there are some, else counted once."""
    if parquet is not None:
        groups = parquet.row_groups()
        rows = [count for counts in groups for count in counts]
        return tuple(rows), tuple(shard for shard, counts in enumerate(groups) for _ in counts)
    number = stream.num_shards

    def read_everything() -> list[list[int]]:
        if number == len(files) and all(file.endswith(".tar") for file in files):
            return [[rows] for rows in rows_of_archives(files, shards)]
        units = [stream.shard(num_shards=number, index=unit) for unit in range(number)]
        return [[sum(table.num_rows for table in tables_of(unit))] for unit in units]

    count = partial(counted_once, shards, number, read_everything)
    rows = [rows for (rows,) in reading(f"count the rows of split {split!r}", count, remote=False)]
    return tuple(rows), tuple(range(len(rows))) if len(rows) == len(shards) else ()
