"""Find the pictures in the folders that a person names, and leave out those that models and reports came with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from seresnet_hub.data.read_image import ENDINGS
from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.files.locks import LOCK_NAME, STATES_FOLDER
from seresnet_hub.files.model_folder import (
    CONFIG_NAME,
    CURVES_NAME,
    PER_CLASS_NAME,
    PICTURE_NAME,
    SUMMARY_NAME,
    WEIGHTS_NAME,
)

log = PrintableLog(__name__)

# Files that together show what a folder is: a model, a run in its output folder, or the report of a validation.
NO_PICTURES = (
    (CONFIG_NAME, WEIGHTS_NAME),
    (SUMMARY_NAME, CURVES_NAME),
    (f"{STATES_FOLDER}/{LOCK_NAME}",),
    (PER_CLASS_NAME, PICTURE_NAME),
)


class Found(NamedTuple):
    """A file that is called like a picture, and whether it is in or below the folder of a model, a run or a report."""

    path: str
    of_a_model: bool


def has_picture_ending(name: str) -> bool:
    """Return whether a file is called like a picture."""
    return os.path.splitext(name)[1].lower() in ENDINGS


def found_in(folder: str, other: Callable[[str], None] = lambda _: None) -> Iterator[Found]:
    """Yield what is called like a picture in and below a folder, in the order of names; logs folders it cannot read.

    Links to folders are not followed. A link that leads nowhere is yielded: whoever reads it says what is wrong. Each
    file of another name is told to `other`, unless it is hidden or of a model.
    """
    levels = [_entries("" if folder == os.curdir else folder, False, other)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif isinstance(entry, Found):
            yield entry
        else:
            levels.append(_entries(*entry, other))


class _Folder(NamedTuple):
    path: str
    of_a_model: bool


def _entries(folder: str, of_a_model: bool, other: Callable[[str], None]) -> Iterator[Found | _Folder]:
    """Yield the folders and pictures that lie in a folder, in the present one where it has no name."""
    folders, names, others = set(), [], []
    try:
        with os.scandir(folder or os.curdir) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                elif entry.is_dir():
                    continue
                elif not has_picture_ending(entry.name):
                    if not entry.name.startswith("."):
                        others.append(entry.path)
                    continue
                names.append(entry.name)
    except OSError as error:
        log.warning("%s: left out, this folder cannot be read (%s)", error.filename or folder, error.strerror)
        return
    of_a_model = of_a_model or any(
        all(os.path.isfile(os.path.join(folder, name)) for name in together) for together in NO_PICTURES
    )
    for path in () if of_a_model else sorted(others):
        other(path)
    names.sort()
    for name in names:
        kind = _Folder if name in folders else Found
        yield kind(os.path.join(folder, name), of_a_model)


def require_pictures(folder: str, kept: int, left_out: str | None) -> None:
    """Raise `InputError` where no picture of a folder is kept; `left_out` is one that was not, if there is any."""
    if not kept and left_out is not None:
        raise InputError(f"{folder}: the images in this folder ({left_out} …) belong to models, runs and reports")
    if not kept:
        raise InputError(f"{folder}: no images in this folder ({', '.join(sorted(ENDINGS))})")
