"""Open labelled images as a row of units, each readable on its own; `units` reads them.

A data set is read through `datasets` in streaming mode. Its units are the row groups of its parquet shards (for other
formats, its shards).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow.dataset
from datasets import ClassLabel, Features, Image, IterableDataset, load_dataset_builder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from seresnet_hub.data.image_folders import ENDINGS, left_out_of, trouble_in
from seresnet_hub.data.row_files import RowFiles, folder_of
from seresnet_hub.data.shards import (
    READ_AHEAD,
    Shard,
    are_parquet,
    counted_once,
    fingerprint_of,
    keep_shards,
    kept_shards,
    row_groups,
    shard_states,
)
from seresnet_hub.data.unit_hashes import UnitHashes
from seresnet_hub.data.units import (
    RightClasses,
    Row,
    Split,
    Subset,
    label_values,
    labels_of,
    read_unit,
    require_same_shards,
    tables_of,
    unit_labels,
)
from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.retry import OPENING_ATTEMPTS, retrying

__all__ = [
    "EMBEDDED",
    "HELD_OUT",
    "OnlyTrainingError",
    "RightClasses",
    "Row",
    "Shard",
    "Split",
    "Subset",
    "hold_out",
    "in_class_order",
    "labels_of",
    "open_split",
    "open_splits",
    "read_unit",
    "require_same_shards",
    "whole_of",
]  # fmt: skip

EMBEDDED = "digits"
HELD_OUT = "held-out"  # the name of the part of a training split that is measured on

log = PrintableLog(__name__)
Result = TypeVar("Result")


class OnlyTrainingError(InputError):
    """There is nothing to measure on by default: the data set has a training split and no other."""


def open_split(source: str, split: str | None, *, label_column: str | None = None, label_lists: bool = False) -> Split:
    """Open one split of `source`: a folder, a Hub data set id, "digits", or a glob of files; reads metadata alone.

    Of other formats than parquet every row is counted once. `split=None` takes validation, else test, else the only
    one, unless that is called train. Private data sets need a token as huggingface_hub finds it (`hf auth login`, or
    HF_TOKEN). `label_column` is `label` or the only one of class numbers. With `label_lists` it may hold lists of them,
    which are read at once into `Split.right_classes`. Errors: `InputError` where the source, the split or the column
    does not exist or cannot be told; where a local folder's pictures are in no class folders, it says how to arrange
    them.
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
        row_files=RowFiles.of(path, files, lists_pictures=isinstance(builder, ImageFolder)),
        unit_hashes=UnitHashes(len(unit_rows), columns=(image_column, label_column), folder=folder_of(files)),
        dataset=stream,
        siblings=tuple(streams),
    )
    if label is features[label_column]:
        return opened
    return replace(
        opened, right_classes=RightClasses(tuple(_class_list(opened, *row) for row in enumerate(_lists(opened))))
    )


def _lists(split: Split) -> list[Any]:
    return [given for unit in range(len(split.unit_rows)) for given in label_values(split, unit).to_pylist()]


def _class_list(split: Split, row: int, given: list[Any] | None) -> tuple[int, ...]:
    if any(not isinstance(number, int) or number < 0 for number in given or ()):
        raise InputError(f"{split.place(row)}: labels {given!r}, expected class numbers")
    return tuple(given or ())


def in_class_order(split: Split, order: Sequence[int]) -> Split:
    """Return the split with its classes renumbered: its class k becomes class `order[k]`."""
    names = split.class_names
    renamed = tuple(names[order.index(number)] for number in range(len(order))) if names else None
    if split.right_classes is None:
        return replace(split, class_order=tuple(order), class_names=renamed)
    try:
        classes = tuple(tuple(order[k] for k in numbers) for numbers in split.right_classes.classes)
    except IndexError:
        raise InputError(f"split {split.name!r} of {split.source} has labels beyond its {len(order)} classes") from None
    return replace(split, right_classes=split.right_classes._replace(classes=classes), class_names=renamed)


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
    labels = tuple(unit_labels(split, unit) for unit in range(len(split.unit_rows)))
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
        subset = Subset(split.name, split.unit_rows, rows, labels)
        return replace(split, name=name, unit_rows=tuple(map(len, rows)), subset=subset)

    return part(~chosen, split.name), part(chosen, HELD_OUT)


def whole_of(part: Split) -> Split:
    """Return the split that `hold_out` divided, of one of its parts."""
    assert part.subset is not None
    return replace(part, name=part.subset.whole_name, unit_rows=part.whole_unit_rows, subset=None)


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


def _units(
    files: Sequence[str], shards: Sequence[Shard], split: str, stream: IterableDataset
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rows and the shard of each unit: from parquet's footers where there are some, else counted once."""
    if files and are_parquet(files):

        def read_footers() -> list[list[int]]:
            with ThreadPoolExecutor(16) as pool:
                return list(pool.map(row_groups, files))

        if any("://" in file for file in files):
            groups = counted_once(shards, len(files), read_footers)
        else:  # reading the footers takes no longer than it would to know that what was kept of them is right
            groups = read_footers()
            if kept_shards(fingerprint_of(shards)) != list(shards):
                keep_shards(shards, groups)
        rows = [count for counts in groups for count in counts]
        return tuple(rows), tuple(shard for shard, counts in enumerate(groups) for _ in counts)
    number = stream.num_shards

    def read_everything() -> list[list[int]]:
        units = [stream.shard(num_shards=number, index=unit) for unit in range(number)]
        return [[sum(table.num_rows for table in tables_of(unit))] for unit in units]

    try:
        rows = [count for (count,) in counted_once(shards, number, read_everything)]
    except Exception as error:  # every format has its own
        raise InputError(f"cannot count the rows of split {split!r}: {error or type(error).__name__}") from error
    return tuple(rows), tuple(range(len(rows))) if len(rows) == len(shards) else ()
