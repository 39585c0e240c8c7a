"""Find the pictures in the folders that a person names, and leave out those that models and reports came with."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

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


def image_files(path: str | Path) -> list[Path]:
    """Return the file `path`, or the images in and below the folder `path`, sorted; logs folders it cannot read.

    Errors: `InputError` where nothing is there, or no image in the folder.
    """

    def say(error: OSError) -> None:
        log.warning("%s: left out, this folder cannot be read (%s)", error.filename, error.strerror)

    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder")
    if not os.path.isdir(path):
        return [Path(path)]
    inside = (Path(folder, name) for folder, _, names in os.walk(path, onerror=say) for name in names)
    found = sorted(file for file in inside if file.suffix.lower() in ENDINGS and file.is_file())
    if not found:
        raise InputError(f"{path}: no images in this folder ({', '.join(sorted(ENDINGS))})")
    return found


def picture_files(given: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the picture file that `given` names, or those in that folder, and those there that are left out.

    Left out is what lies in or below the folder of a model, a run or a report. Errors: `InputError` as for
    `image_files`, and where nothing else is there.
    """
    found = image_files(given)
    top = Path(given)
    if not os.path.isdir(top):
        return found, []

    @cache
    def is_left_out(folder: Path) -> bool:
        if any(all((folder / name).is_file() for name in names) for names in NO_PICTURES):
            return True
        return folder != top and is_left_out(folder.parent)

    left_out = [path for path in found if is_left_out(path.parent)]
    kept = [path for path in found if not is_left_out(path.parent)]
    if not kept:
        raise InputError(f"{given}: the images in this folder ({left_out[0]} …) belong to models, runs and reports")
    return kept, left_out
