"""Say what is wrong with a folder of pictures, what in it is not read, and how to arrange it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from seresnet_hub.data.folder_index import OF_THE_SYSTEM, FolderIndex
from seresnet_hub.errors import InputError

# What lies beside pictures and is none.
BESIDE = frozenset(
    {"", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".md", ".pdf", ".txt", ".xml", ".yaml", ".yml"}
)
HOW = "put the pictures of each class into a folder of its own"
CONVERT = "save them as JPEG or PNG to use them"


def trouble_in(index: FolderIndex) -> str:
    """Return in one sentence why a folder's pictures have no classes and what to do, or nothing if that is not it."""
    found: Counter[str] = Counter()
    classes: Counter[tuple[str, ...]] = Counter()
    for folder in index.folders:
        found.update(folder.others)
        if len(folder.sizes):
            classes[Path(folder.path).parts] += len(folder.sizes)
    pictures = classes.total()
    name = Path(index.root).name
    example = f"{name}/cat/1.jpg, {name}/dog/1.jpg"
    if not pictures:
        if set(found) & {".parquet", ".tar", ".arrow", ".csv", ".jsonl", ".zip"}:
            return ""  # another format: what is wrong with it is not known here
        others = ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in found.most_common(3))
        return f"there are no pictures in it (it has {others or 'no files'}): {HOW} ({example})"
    if set(classes) == {()}:
        return f"its {pictures:,} pictures are in no class: {HOW} ({example})"
    if () in classes:
        return f"{classes[()]:,} of its {pictures:,} pictures are in no class folder: move them into one ({example})"
    if len({parts[-1] for parts in classes}) == 1:
        only = "/".join(next(iter(classes)))
        return f"all its pictures are of one class, {only!r}: a classifier needs two or more, so {HOW} ({example})"
    depths = {len(parts) for parts in classes}
    if len(depths) > 1:
        deep = "/".join(next(parts for parts in classes if len(parts) == max(depths)))
        return f"its class folders are not all at one depth ({deep!r} lies deeper than others): {HOW} ({example})"
    return ""


def refuse_unreadable(index: FolderIndex) -> None:
    """Raise `InputError` where a folder may not be read: its pictures would silently be missing."""
    for folder in index.unreadable:
        raise InputError(
            f"{Path(index.root, folder.path)}: this folder cannot be read ({folder.error}), so its pictures would be "
            "missing: change its permissions, or move it elsewhere"
        )


def left_out_of(index: FolderIndex) -> str:
    """Return in one sentence which files in a folder are no pictures that can be read, or nothing if there are none.

    Errors: `InputError` where a class folder has nothing but such files or may not be read, so that a class would be
    missing.
    """
    endings: Counter[str] = Counter()
    refuse_unreadable(index)
    for folder in index.folders:
        if OF_THE_SYSTEM in folder.path.split("/"):
            continue
        place = Path(index.root, folder.path)
        others = {ending: count for ending, count in folder.others.items() if ending not in BESIDE}
        if others and not folder.folders and not len(folder.sizes):
            raise InputError(f"{place}: none of its files can be read ({_counted(others)}); {CONVERT}")
        endings.update(others)
    return f"{index.root}: {_counted(endings)} left out: {CONVERT}" if endings else ""


def _counted(endings: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {ending}" for ending, count in Counter(endings).most_common(5))
