"""A split of a data set: its units (row groups of parquet shards, or other shards), and what its labels mean."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from datasets import IterableDataset

from seresnet_hub.data.class_folders import ClassFolders
from seresnet_hub.data.mounts import is_far
from seresnet_hub.data.parquet_shards import ParquetShards
from seresnet_hub.data.picture_list import PictureList
from seresnet_hub.data.row_files import RowFiles
from seresnet_hub.data.shards import Shard, fingerprint_of
from seresnet_hub.data.unit_hashes import UnitHashes
from seresnet_hub.errors import InputError


class Subset(NamedTuple):
    """The rows that a part of a split keeps, unit by unit, and the whole split's name, rows a unit and labels."""

    whole_name: str
    whole_unit_rows: tuple[int, ...]
    rows: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]


class RightClasses(NamedTuple):
    """The classes that are right for each image, where that may be several, or none.

    `classes` has an entry for each row, in order; with `file_pattern`, an image has the entry of the number, counted
    from 1, that the pattern finds in its file's name.
    """

    classes: tuple[tuple[int, ...], ...]
    file_pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a streamed data set: its units (row groups or shards) and how many rows each has.

    A part of a split has a `subset`, which says which rows of each unit are in it. `siblings` names all splits of the
    data set. With `class_order`, label k of the data set is class `class_order[k]`. With `right_classes`, a row's label
    is the number of its image there. With `class_folders` or `pictures`, the rows are the pictures of these; else they
    come from `dataset`. Where `label_column` is "", rows have no labels.
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
    right_classes: RightClasses | None = field(default=None, repr=False)
    subset: Subset | None = field(default=None, repr=False, compare=False)
    siblings: tuple[str, ...] = field(default=(), repr=False, compare=False)
    files: tuple[str, ...] = field(default=(), repr=False, compare=False)
    row_files: RowFiles = field(default=RowFiles(""), repr=False, compare=False)
    unit_hashes: UnitHashes = field(repr=False, compare=False)
    dataset: IterableDataset | None = field(default=None, repr=False, compare=False)
    parquet: ParquetShards | None = field(default=None, repr=False, compare=False)
    class_folders: ClassFolders | None = field(default=None, repr=False, compare=False)
    pictures: PictureList | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """The number of images in the split."""
        return sum(self.unit_rows)

    @property
    def whole_unit_rows(self) -> tuple[int, ...]:
        """The rows of each unit in the whole split, of which this may be a part."""
        return self.unit_rows if self.subset is None else self.subset.whole_unit_rows

    @property
    def fingerprint(self) -> int:
        """A number that another split of other shards does not have."""
        return fingerprint_of(self.shards) if self.pictures is None else self.pictures.fingerprint

    @property
    def remote(self) -> bool:
        """Whether the files come over a network."""
        return any("://" in file for file in self.files)

    @property
    def streamed(self) -> bool:
        """Whether files of it are still fetched over a network."""
        return self.remote and not (self.parquet is not None and self.parquet.cache.is_whole)

    @property
    def is_far(self) -> bool:
        """Whether each reading waits for another machine, so that it is worth to read ahead."""
        if self.pictures is not None:
            return self.pictures.has_addresses or self._is_mounted
        return self.streamed or (not self.remote and self._is_mounted)

    @cached_property
    def _is_mounted(self) -> bool:
        if self.pictures is not None:
            file = self.pictures.first_file
        else:
            file = self.class_folders.index.root if self.class_folders else "".join(self.files[:1]).rpartition("::")[2]
        return bool(file) and is_far(file)

    def stream(self, unit: int) -> IterableDataset:
        """Return a stream of one unit's rows, where units are no row groups."""
        assert self.dataset is not None
        return self.dataset.shard(num_shards=self.dataset.num_shards, index=unit)

    def place(self, index: int) -> str:
        """Say where a row lies, counted as a viewer of the data set counts, and in which shard."""
        if self.pictures is not None:
            return self.pictures.name(index) or f"picture {index}"
        ends = list(accumulate(self.unit_rows))
        unit = bisect_right(ends, index)
        name, unit_rows = self.name, self.whole_unit_rows
        if self.subset is not None:
            row = self.subset.rows[unit][index - ends[unit] + self.unit_rows[unit]]
            name, index = self.subset.whole_name, sum(unit_rows[:unit]) + int(row)
        inside = ""
        if self.unit_shards:
            shard = self.unit_shards[unit]
            first = sum(rows for rows, owner in zip(unit_rows, self.unit_shards, strict=True) if owner < shard)
            inside = f" (row {index - first} of {self.shards[shard].name})"
        return f"row {index} of split {name!r} of {self.source}{inside}"

    def unit_place(self, unit: int) -> str:
        """Say which unit it is, and of which shard."""
        inside = f" (in {self.shards[self.unit_shards[unit]].name})" if self.unit_shards else ""
        return f"unit {unit} of split {self.name!r} of {self.source}{inside}"


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
