"""Say what is wrong with a folder of pictures, what in it is not read, and how to arrange it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from seresnet_hub.data import read_image as image_files
from seresnet_hub.errors import InputError

ENDINGS = frozenset(ImageFolder.EXTENSIONS) & image_files.ENDINGS
# What lies beside pictures and is none.
BESIDE = frozenset(
    {"", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".md", ".pdf", ".txt", ".xml", ".yaml", ".yml"}
)
OF_THE_SYSTEM = "lost+found"  # a folder at the top of many disks, which only the system reads
HOW = "put the pictures of each class into a folder of its own"
CONVERT = "save them as JPEG or PNG to use them"


def trouble_in(folder: Path) -> str:
    """Return in one sentence why a folder's pictures have no classes and what to do, or nothing if that is not it."""
    if not folder.is_dir():
        return ""
    found: Counter[str] = Counter()
    classes: Counter[tuple[str, ...]] = Counter()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            ending = Path(name).suffix.lower()
            found[ending] += 1
            if ending in ENDINGS:
                classes[Path(place).relative_to(folder).parts] += 1
    pictures = classes.total()
    example = f"{folder.name}/cat/1.jpg, {folder.name}/dog/1.jpg"
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


def refuse_unreadable(error: OSError) -> None:
    """Raise `InputError` for a folder that may not be read: its pictures would silently be missing."""
    raise InputError(
        f"{error.filename}: this folder cannot be read ({error.strerror}), so its pictures would be missing: change "
        "its permissions, or move it elsewhere"
    ) from error


def left_out_of(folder: Path) -> str:
    """Return in one sentence which files in a folder are no pictures that can be read, or nothing if there are none.

    Errors: `InputError` where a class folder has nothing but such files or may not be read, so that a class would be
    missing.
    """
    endings: Counter[str] = Counter()
    for place, folders, files in os.walk(folder, onerror=refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".") and name != OF_THE_SYSTEM]
        here = Counter(Path(name).suffix.lower() for name in files if not name.startswith("."))
        others = {ending: count for ending, count in here.items() if ending not in ENDINGS | BESIDE}
        if others and not folders and not ENDINGS & set(here):
            raise InputError(f"{place}: none of its files can be read ({_counted(others)}); {CONVERT}")
        endings.update(others)
    return f"{folder}: {_counted(endings)} left out: {CONVERT}" if endings else ""


def _counted(endings: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {ending}" for ending, count in Counter(endings).most_common(5))
