"""Read the files that are to be uploaded, from inside their folder alone, and check that each is what it is called.

A folder may come from anywhere, and what is uploaded is public: a link in it could name a file of keys, and a file of
keys could be called `summary.csv`.
"""

from __future__ import annotations

import csv
import io
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from seresnet_hub.engines.exported_files import Record
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.files.model_folder import CARD_NAME, CONFIG_NAME, CURVES_NAME, SUMMARY_NAME, WEIGHTS_NAME
from seresnet_hub.hub.client import hash_like
from seresnet_hub.hub.download_limits import LARGEST_TEXT, LARGEST_WEIGHTS
from seresnet_hub.publishing.exported_files_to_push import exported_files, small_files_again
from seresnet_hub.publishing.files_of_folder import content_of, inside

# The columns of `training.run_folder.write_summary`, in training's words.
SUMMARY_COLUMNS = frozenset(
    {"step", "epoch", "learning_rate", "train_loss"}
    | {f"{raw}{figure}" for raw in ("", "raw_") for figure in ("eval_loss", "top1", "top5")}
)
LONGEST_NUMBER = 32
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The image, its resolution and colours, and the name of the program that drew it: no place for other texts.
PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"tRNS", b"bKGD"})


@dataclass(frozen=True, kw_only=True)
class FilesToPush:
    """The files of a folder that go to the Hub: large ones where they lie, and the bytes of all others.

    `sha256` are those of the large files, when they were first read; `records` are those of the exported files.
    """

    directory: Path
    large: Mapping[str, Path]
    sha256: Mapping[str, str]
    small_files: Mapping[str, bytes]
    records: tuple[Record, ...] = ()

    @property
    def files(self) -> dict[str, Path | bytes]:
        """What is uploaded, by name."""
        weights = {name: path for name, path in self.large.items() if name == WEIGHTS_NAME}
        return {**weights, **self.small_files, **self.large}

    def unlike(self, remote: Mapping[str, str]) -> list[str]:
        """Return the names of the files that are not there with the hashes `remote`, the Hub's."""

        def own_hash(name: str) -> str:  # large files were hashed when they were first read
            own = self.sha256.get(name)
            return own if own and len(remote[name]) == len(own) else hash_like(self.files[name], remote[name])

        return [name for name in self.files if name not in remote or own_hash(name) != remote[name]]

    def require_unchanged(self) -> None:
        """Raise `InputError` unless the folder still holds what was read: then this is what was checked since."""
        exported = {name: content for name, content in self.small_files.items() if "/" in name}
        again = {**_small_files(self.directory), **small_files_again(self.directory, exported)}
        for name in {**self.small_files, **again}:
            if again.get(name) != self.small_files.get(name):
                raise self._changed(name)

    def require_hash(self, name: str, uploaded: str) -> None:
        """Raise `InputError` unless a large file that is about to be uploaded has this sha256."""
        if uploaded != self.sha256[name]:
            raise self._changed(name)

    def _changed(self, name: str) -> InputError:
        return InputError(f"{self.directory / name} has changed while it was being checked: nothing was pushed")


def files_to_push(directory: Path) -> FilesToPush:
    """Return the folder's model, config and card, with what its training and its exports wrote where it has them.

    Errors: `InputError` where one is missing, lies outside the folder, is no regular file, is too large, or is
    something else than its name says.
    """
    missing = [name for name in (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME) if not (directory / name).is_file()]
    if missing:
        raise InputError(f"{directory} is no model folder: it lacks {', '.join(missing)}")
    weights = inside(directory, WEIGHTS_NAME)
    if weights.stat().st_size > LARGEST_WEIGHTS:
        raise InputError(f"{weights} has more than the {LARGEST_WEIGHTS:,} bytes that a model may have")
    try:
        digest = sha256_of(weights)
    except OSError as error:
        raise InputError(f"cannot read {weights}: {error.strerror}") from error
    small, exported = _small_files(directory), exported_files(directory)
    return FilesToPush(
        directory=directory, large={WEIGHTS_NAME: weights, **exported.large},
        sha256={WEIGHTS_NAME: digest, **exported.sha256}, small_files={**small, **exported.small},
        records=exported.records,
    )  # fmt: skip


def _small_files(directory: Path) -> dict[str, bytes]:
    """Return the bytes of what describes the model, by name."""
    checks: dict[str, Callable[[bytes], str]] = {
        CONFIG_NAME: lambda _: "", CARD_NAME: lambda _: "", SUMMARY_NAME: _not_summary, CURVES_NAME: _not_png,
    }  # fmt: skip
    small_files = {}
    for name, problem_of in checks.items():
        if not os.path.lexists(directory / name):
            continue
        content = content_of(inside(directory, name), LARGEST_TEXT)
        if problem := problem_of(content):
            raise InputError(f"{directory / name} {problem}: it is not pushed; delete it, or make it again")
        small_files[name] = content
    return small_files


# --- what each file must be: "" or what is wrong ----------------------------------------------------------------------


def _not_summary(content: bytes) -> str:
    """Return what is wrong with a table of `training.run_folder.write_summary`: numbers alone, in its columns."""
    try:
        columns, *rows = csv.reader(io.StringIO(content.decode("ascii"), newline=""), strict=True)
    except (ValueError, csv.Error):
        return "is no table of a training"
    if len(set(columns)) != len(columns) or "step" not in columns or not SUMMARY_COLUMNS.issuperset(columns):
        return "is no table of a training: it has other columns"
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns) or not all(map(_is_number_or_empty, row)):
            return f"is no table of a training: line {number} has something else than a number a column"
    return ""


def _is_number_or_empty(cell: str) -> bool:
    try:
        return cell == "" or (len(cell) <= LONGEST_NUMBER and "_" not in cell and float(cell) is not None)
    except ValueError:
        return False


def _not_png(content: bytes) -> str:
    """Return what is wrong with a PNG: its chunks must be whole, show a picture and nothing else."""
    if not content.startswith(PNG_SIGNATURE):
        return "is no PNG picture"
    at = len(PNG_SIGNATURE)
    kinds: list[bytes] = []
    while at < len(content) and kinds[-1:] != [b"IEND"]:
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        body, checksum = content[at + 8 : at + 8 + length], content[at + 8 + length : at + 12 + length]
        if len(body) != length or checksum != zlib.crc32(kind + body).to_bytes(4, "big"):
            return "is no whole PNG picture"
        if kind not in PNG_CHUNKS and not (kind == b"tEXt" and body.startswith(b"Software\0") and length < 200):
            return f"is a PNG picture with something beside the picture ({kind!r})"
        kinds.append(kind)
        at += 12 + length
    if kinds[:1] != [b"IHDR"] or b"IDAT" not in kinds or kinds[-1:] != [b"IEND"]:
        return "is no whole PNG picture"
    return "is a PNG picture with something after its end" if at != len(content) else ""
