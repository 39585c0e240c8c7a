"""The pictures of a folder of class folders, row by row, without an object for each.

The splits, the classes and the order of the rows are those of `datasets`' own `imagefolder`. A folder with anything
in it that `datasets` may understand in another way is left to `datasets`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from seresnet_hub.data.folder_index import ENDINGS, Folder, FolderIndex, forget
from seresnet_hub.data.read_image import UnavailableError
from seresnet_hub.data.row_files import folder_of
from seresnet_hub.data.shards import Shard
from seresnet_hub.errors import InputError

# What says more of a data set than its folders do.
DESCRIPTIONS = (".huggingface.yaml", "dataset_infos.json")
EXAMPLES = 3  # of the files that changed, for each class folder

_SPLIT_OF = {keyword: str(split) for split, keywords in SPLIT_KEYWORDS.items() for keyword in keywords}
_APART = f"[{NON_WORDS_CHARS}]"
# Where a name has a split's name in it, apart from the rest: as val_256, or as ILSVRC2012_val_1.JPEG.
_KEYWORDS = re.compile(rf"(?:(?<={_APART})|(?<![^/]))({'|'.join(_SPLIT_OF)})(?={_APART}|/|$)")


class ClassFolders:
    """The pictures of one split: those of some folders of an index, each of the class that its folder names."""

    def __init__(self, index: FolderIndex, split: str, folders: Sequence[Folder], class_names: Sequence[str]) -> None:
        self.index, self.split, self.folders, self.class_names = index, split, tuple(folders), tuple(class_names)
        numbers = {name: number for number, name in enumerate(class_names)}
        self._classes = np.array([numbers[_class_of(folder)] for folder in folders], np.int64)
        self._starts = np.cumsum([0, *(len(folder.sizes) for folder in folders)])
        # Where each name ends in its folder's names.
        separators = [np.flatnonzero(np.frombuffer(folder.names, np.uint8) == ord("/")) for folder in folders]
        self._ends = np.concatenate([np.array([], np.int64), *separators]).astype(np.uint32)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def labels(self) -> np.ndarray:
        """The class number of each row."""
        return np.repeat(self._classes, np.diff(self._starts))

    def path(self, row: int) -> str:
        """Return a row's file."""
        number, name = self._place(row)
        return "/".join([self.index.root, self.folders[number].path, name])

    def label(self, row: int) -> int:
        """Return a row's class number."""
        return int(self._classes[self._place(row)[0]])

    def size(self, row: int) -> int:
        """Return how many bytes a row's file had when its folder was listed."""
        number, _ = self._place(row)
        return int(self.folders[number].sizes[row - self._starts[number]])

    def _place(self, row: int) -> tuple[int, str]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        first = int(self._ends[row - 1]) + 1 if row > self._starts[number] else 0
        return number, self.folders[number].names[first : int(self._ends[row])].decode()

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """Each class folder as a shard: its path, its pictures' bytes, and their number and a hash of names and sizes.

        Times of change are left out, so that a copy of a folder is the same.
        """
        return tuple(map(_shard, self.folders))

    def names_and_sizes(self) -> list[tuple[str, int]]:
        """Return each file's name, from the innermost folder that has all files, and its bytes."""
        common = folder_of([f"{folder.path}/" for folder in self.folders])
        return [
            (f"{folder.path}/{name}".removeprefix(f"{common}/"), size)
            for folder in self.folders
            for name, size in zip(folder.pictures(), folder.sizes.tolist(), strict=True)
        ]

    def paths(self) -> list[str]:
        """Return all files."""
        return ["/".join([self.index.root, folder.path, name]) for folder in self.folders for name in folder.pictures()]

    def require_unchanged(self, source: str) -> None:
        """Raise `InputError` where files or classes are others than at the opening; it names some of them.

        Looks at each folder, and at the files of those that changed.
        """
        index = self.index.now()
        if index is self.index:
            return
        splits = splits_in(index)
        now = ClassFolders(index, self.split, splits.get(self.split, ()), class_names_of(splits))
        changes = [f"{folder.path} cannot be read ({folder.error})" for folder in index.unreadable]
        changes += _changes(*({one.path: one for one in rows.folders} for rows in (self, now)))
        if not changes and self.class_names != now.class_names:
            changes = [f"it has {len(now.class_names):,} classes now, {len(self.class_names):,} then"]
        if changes:
            more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
            raise InputError(
                f"the files of {source} have changed, so the run cannot go on as the same run: "
                f"{'; '.join(changes[:5])}{more}"
            )
        self.index = index

    def changed_in_place(self, now: int, before: int) -> UnavailableError:
        """Return the error for a file that has another size now; its folder is listed anew the next time.

        The folder's own time of change does not tell it.
        """
        forget(self.index.root)
        return UnavailableError(
            f"the file has {now:,} bytes, not the {before:,} it had when its folder was listed: it was changed in "
            "place; restore it, or begin a new run"
        )


def _class_of(folder: Folder) -> str:
    return folder.path.rpartition("/")[2]


def _shard(folder: Folder) -> Shard:
    digest = hashlib.sha256(folder.names + folder.sizes.astype("<i8").tobytes()).hexdigest()
    return Shard(folder.path, int(folder.sizes.sum()), f"{len(folder.sizes)} files {digest[:32]}")


def _changes(before: Mapping[str, Folder], now: Mapping[str, Folder]) -> Iterator[str]:
    """Yield for each class folder which files changed."""
    for path in sorted({*before, *now}):
        old, new = (
            dict(zip(folder.pictures(), folder.sizes.tolist(), strict=True)) if folder else {}
            for folder in (before.get(path), now.get(path))
        )
        kinds = {
            "new": sorted(new.keys() - old.keys()),
            "missing": sorted(old.keys() - new.keys()),
            "of another size": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
        }
        for kind, names in kinds.items():
            if names:
                more = " …" if len(names) > EXAMPLES else ""
                yield f"{len(names):,} {kind} in {path} ({', '.join(names[:EXAMPLES])}{more})"


# ------------------------------------------------------------------ what `datasets` makes of it


def class_folders(index: FolderIndex, path: str) -> dict[str, ClassFolders]:
    """Return the splits of a folder that was given as `path`; none where it is left to `datasets`."""
    splits = {} if _describes_itself(index.root, path) else splits_in(index)
    names = class_names_of(splits)
    return {split: ClassFolders(index, split, folders, names) for split, folders in splits.items()}


def has_no_classes(index: FolderIndex, path: str) -> bool:
    """Return whether `datasets` finds pictures alone, and no classes; it takes an hour to say so of a million files."""
    splits = {} if _describes_itself(index.root, path) else _picture_folders(index)
    return len(_depths(splits)) > 1 or len(class_names_of(splits)) == 1


def class_names_of(splits: Mapping[str, Sequence[Folder]]) -> list[str]:
    """Return the classes in the order of their numbers, those of all splits."""
    return sorted({_class_of(folder) for folders in splits.values() for folder in folders})


def _describes_itself(root: str, path: str) -> bool:
    """Return whether a card, a script or the path itself may say something else to `datasets` than the folders do."""
    if path in _PACKAGED_DATASETS_MODULES or re.search(r"[*?\[\n\\]|::", root):
        return True
    names = (*DESCRIPTIONS, f"{os.path.basename(root)}.py")
    if any(os.path.lexists(os.path.join(root, name)) for name in names):
        return True
    try:
        with open(os.path.join(root, "README.md"), "rb") as card:
            return card.read(4096).lstrip().startswith(b"---")
    except FileNotFoundError:
        return False
    except OSError:
        return True


def splits_in(index: FolderIndex) -> dict[str, list[Folder]]:
    """Return each split's folders with pictures, in the order of their rows; none where it is left to `datasets`."""
    splits = _picture_folders(index)
    if not splits or len(_depths(splits)) != 1 or len(class_names_of(dict([next(iter(splits.items()))]))) < 2:
        return {}
    return splits


def _depths(splits: Mapping[str, Sequence[Folder]]) -> set[int]:
    return {folder.depth for folders in splits.values() for folder in folders}


def _picture_folders(index: FolderIndex) -> dict[str, list[Folder]]:
    """Return each split's folders with pictures, whether or not they are classes."""
    if any(folder.special for folder in index.folders):
        return {}
    filled = [folder for folder in index.folders if len(folder.sizes) or folder.others]
    if any(_KEYWORDS.search(folder.path) for folder in filled):
        splits = _by_top_folder(filled)
    else:
        splits = _by_file_name(filled)
    if not all(_are_pictures(folders) for folders in splits.values()):
        return {}
    return {name: [folder for folder in folders if len(folder.sizes)] for name, folders in splits.items()}


def _by_top_folder(folders: Sequence[Folder]) -> dict[str, list[Folder]]:
    """Return the folders of each split, where each folder at the top is one, and none below is called like one."""
    tops = {folder.path.partition("/")[0] for folder in folders if folder.path}
    split_of = {top: [_SPLIT_OF[name] for name in _KEYWORDS.findall(top)] for top in tops}
    found = [splits[0] for splits in split_of.values() if len(splits) == 1]
    pictures_at_the_top = any(not folder.path and len(folder.sizes) for folder in folders)
    if pictures_at_the_top or len(found) != len(tops) or len(set(found)) != len(found):
        return {}
    if any(_KEYWORDS.search(folder.path.partition("/")[2]) for folder in folders):
        return {}
    order = [name for name in dict.fromkeys(_SPLIT_OF.values()) if name in found]
    top_of = {splits[0]: top for top, splits in split_of.items()}
    return {name: [one for one in folders if one.path.partition("/")[0] == top_of[name]] for name in order}


def _by_file_name(folders: Sequence[Folder]) -> dict[str, list[Folder]]:
    """Return all folders as one split: train, or what every file's name says, as in ILSVRC2012_val_1.JPEG."""
    if any(_named(name) for folder in folders for name in folder.other_names):
        return {}
    words = [keyword.encode() for keyword in _SPLIT_OF]
    if not any(word in folder.names for folder in folders for word in words):
        return {"train": list(folders)}
    named = {tuple(_named(name)) for folder in folders for name in folder.pictures()}
    if named == {()}:
        return {"train": list(folders)}
    if len(named) == 1 and len(only := next(iter(named))) == 1:
        return {_SPLIT_OF[only[0][0]]: list(folders)}
    return {}


def _named(name: str) -> list[tuple[str, bool]]:
    """Return the names of splits in a file's name that another part follows, and whether each is at its beginning."""
    return [(found[1], not found.start()) for found in _KEYWORDS.finditer(name) if found.end() < len(name)]


def _are_pictures(folders: Sequence[Folder]) -> bool:
    """Return whether most files of a split are pictures, more than there are of any other kind."""
    counts: dict[str, int] = {}
    for folder in folders:
        for ending, count in folder.endings.items():
            counts[ending] = counts.get(ending, 0) + count
    pictures = {ending for ending in counts if f".{ending}" in ENDINGS}
    most = max((counts[ending] for ending in pictures), default=0)
    return most > max((counts[ending] for ending in counts.keys() - pictures), default=0)
