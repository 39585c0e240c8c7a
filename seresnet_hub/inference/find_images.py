"""Find the pictures in the folders that a person names, and leave out those that models and reports came with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from seresnet_hub.data.image_files import SUFFIXES
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


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files named by `paths`, with folders replaced by the images inside them, in sorted order.

    Errors: `InputError` where a path does not exist or a folder holds no image.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # false of a name that is too long
            inside = sorted(found for found in _inside(path) if found.suffix.lower() in SUFFIXES)
            if not inside:
                raise InputError(f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
            files += inside
        elif os.path.exists(path):
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    return files


def _inside(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and the folders below it; says which of these may not be read."""

    def say(error: OSError) -> None:
        log.warning("%s: left out, this folder cannot be read (%s)", error.filename, error.strerror)

    for place, _, files in os.walk(folder, onerror=say):
        yield from (found for name in files if (found := Path(place, name)).is_file())


def picture_files(given: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the picture file that `given` names, or those in that folder, and those there that are left out.

    Left out is what lies in or below the folder of a model, a run or a report. Errors: `InputError` as for
    `image_files`, and where nothing else is there.
    """
    found = image_files([given])
    top = Path(given)
    if not os.path.isdir(top):
        return found, []

    @cache
    def is_left_out(folder: Path) -> bool:
        return _has_no_pictures(folder) or (folder != top and is_left_out(folder.parent))

    left_out = [path for path in found if is_left_out(path.parent)]
    kept = [path for path in found if not is_left_out(path.parent)]
    if not kept:
        raise InputError(f"{given}: the images in this folder ({left_out[0]} …) belong to models, runs and reports")
    return kept, left_out


def _has_no_pictures(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in NO_PICTURES)
