"""Open what a person names to be looked at, as one row of pictures: files, folders, patterns, addresses, data sets."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from seresnet_hub.data.open_split import EMBEDDED, OnlyTrainingError, open_split
from seresnet_hub.data.picture_list import ImageInput, PictureList, is_address
from seresnet_hub.data.read_image import MOST_BYTES
from seresnet_hub.data.row_files import RowFiles
from seresnet_hub.data.split import Split
from seresnet_hub.data.unit_hashes import UnitHashes
from seresnet_hub.errors import InputError, PrintableLog, printable
from seresnet_hub.inference.find_images import found_in, has_picture_ending, require_pictures

SHARDS = (".parquet", ".tar")  # how the files of data sets end
STANDARD_INPUT = "-"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

log = PrintableLog(__name__)


def open_sources(
    given: Sequence[ImageInput],
    *,
    split: str | None = None,
    label_column: str | None = None,
    missing_are_rows: bool = False,
) -> Split:
    """Open one data set, or pictures of any number and in any form, as a `Split`; reads no picture.

    A text is a file, a folder (its pictures, in the order of their names), a pattern with `*`, an address of http or
    https, or "-" for standard input. A data set is what `open_split` takes: anything with `split`, "digits", a
    repository NS/NAME of the Hub, a folder of parquet or tar files and no pictures, or such files themselves; it needs
    no labels. A link that leads nowhere is a row, whose picture cannot be read; so are missing files with
    `missing_are_rows`. Errors: `InputError` where nothing is there, or a data set is named beside others.
    """
    if not len(given):
        raise InputError("no images were given")
    sets = [one for one in given if isinstance(one, (str, Path)) and (split is not None or _is_data_set(one))]
    if sets and len(given) > 1:
        raise InputError(f"{sets[0]} is a data set: name it alone, without other pictures and data sets")
    if split is not None and not sets:
        raise InputError(f"split {split!r}: pictures in memory have no splits; name a data set")
    if sets:
        return _of_data_set(str(sets[0]), split, label_column)
    pictures = PictureList()
    for one in given:
        _add(pictures, one, missing_are_rows)
    names = [str(one) for one in given[:3] if isinstance(one, (str, Path))]
    return Split(
        source=", ".join(names) + (" …" if len(given) > len(names) else "") if names else "pictures in memory",
        name="pictures",
        unit_rows=pictures.unit_rows,
        image_column="image",
        label_column="",
        class_names=None,
        row_files=RowFiles(""),
        unit_hashes=UnitHashes(0),
        pictures=pictures,
    )


def picture_name(split: Split, row: int, path: str | None = None) -> str | None:
    """Return what a row's picture is called, None where it has no name; `path` is what the row of a data set says.

    Bytes of a name that are no UTF-8 are shown as escapes.
    """
    if split.pictures is not None:
        path = split.pictures.name(row)
    elif split.class_folders is not None:
        path = split.class_folders.path(row if split.subset is None else int(split.subset.rows[0][row]))
    return None if path is None else path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def require_apart(output: Path, split: Split) -> None:
    """Raise `InputError` where a table would replace a file of the data set that is read, or become one of it."""
    place, source = os.path.realpath(output), os.path.realpath(split.source)
    inside = split.pictures is None and os.path.isdir(source) and Path(place).is_relative_to(source)
    if inside or any(os.path.realpath(file) == place for file in split.files):
        raise InputError(f"{output} lies in the data set that is read, {split.source}: choose another output")


def named_error(image: str | None, error: str) -> str:
    """Say which picture cannot be read, where it has a name, and why."""
    return f"{image}: {error}" if image else error


def _is_data_set(given: str | Path) -> bool:
    text = str(given)
    if isinstance(given, str) and is_address(given):
        return text.startswith("hf://") or text.endswith(SHARDS)
    if os.path.isdir(given):
        return _holds_shards_alone(text)
    if text.endswith(SHARDS):
        return True
    if isinstance(given, Path) or os.path.lexists(given) or has_picture_ending(text):
        return False
    first = text.partition("/")[0]
    return text == EMBEDDED or (REPOSITORY.fullmatch(text) is not None and not os.path.isdir(first))


def _holds_shards_alone(folder: str) -> bool:
    if next(found_in(folder), None) is not None:
        return False
    return any(name.endswith(SHARDS) for _, _, names in os.walk(folder) for name in names)


def _of_data_set(source: str, split: str | None, label_column: str | None) -> Split:
    try:
        opened = open_split(source, split, label_column=label_column, needs_labels=False)
    except OnlyTrainingError:  # which matters where a model is measured
        opened = open_split(source, "train", label_column=label_column, needs_labels=False)
    if not opened.rows:
        raise InputError(f"split {opened.name!r} of {source} is empty")
    return opened


def _add(pictures: PictureList, given: ImageInput, missing_are_rows: bool) -> None:
    if not isinstance(given, (str, Path)):
        pictures.hold(given)
    elif isinstance(given, str) and is_address(given):
        pictures.add(given)
    elif given == STANDARD_INPUT:
        # Closed, there is nothing to read from.
        data = sys.stdin.buffer.read(MOST_BYTES + 1) if sys.stdin else b""
        if not data:
            raise InputError("-: standard input is empty or closed")
        pictures.hold(data, STANDARD_INPUT)
    elif os.path.isdir(given):
        _add_folder(pictures, str(Path(given)))
    elif os.path.lexists(given):
        pictures.add(Path(given))
    elif isinstance(given, str) and "*" in given:
        _add_pattern(pictures, given)
    elif missing_are_rows:
        pictures.add(given)
    else:
        raise InputError(f"{given}: no such file or folder")


def _add_folder(pictures: PictureList, folder: str) -> None:
    before, left_out, first_left_out = len(pictures), 0, None
    others, example = 0, ""

    def other(name: str) -> None:
        nonlocal others, example
        others, example = others + 1, example or name

    title = f"listing {printable(folder)}"
    for found in tqdm(found_in(folder, other), desc=title, unit=" files", delay=1.5, mininterval=0.5, leave=False):
        if found.of_a_model:
            left_out, first_left_out = left_out + 1, first_left_out or found.path
        else:
            pictures.add(found.path)
    require_pictures(folder, len(pictures) - before, first_left_out)
    if others:
        number = f"{others:,} file{'s' if others > 1 else ''}"
        log.warning("%s: left out, as they are not called like pictures: %s (%s …)", folder, number, example)
    if left_out:
        which = f"{left_out} images that belong to models, runs or reports"
        log.warning("%s: %s were left out (%s …)", folder, which, first_left_out)


def _add_pattern(pictures: PictureList, pattern: str) -> None:
    found = sorted(name for name in glob.iglob(pattern, recursive=True) if has_picture_ending(name))
    for name in found:
        if not os.path.isdir(name):
            pictures.add(name)
    if not found:
        raise InputError(f"{pattern}: no image is called like this")
