"""Write files and folders whole or not at all, and read JSON with errors that name the file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seresnet_hub.errors import InputError
from seresnet_hub.files.durability import flush_folder, flush_tree, make_folders
from seresnet_hub.files.leftovers import partial_of, sweep
from seresnet_hub.files.locks import only_writer


def cache_folder() -> Path:
    """Return the folder for data this package writes: `$SERESNET_HUB_CACHE`, else `~/.cache/seresnet_hub`."""
    return Path(os.environ.get("SERESNET_HUB_CACHE") or Path.home() / ".cache" / "seresnet_hub")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory that becomes `path` when the block succeeds, and vanishes when not.

    It is on the disk, and not only in the system's memory, before `path` is replaced, and `path` when this returns.
    What killed processes left half-written in that directory is removed. Errors: `InputError` where the disk is full or
    the directory cannot be written.
    """
    with errors_named(path):
        make_folders(path.parent)
        sweep(path.parent)
        with partial_of(path) as temporary:
            try:
                yield temporary
                flush_tree(temporary)
                os.replace(temporary, path)
                flush_folder(path.parent)
            except InputError as error:  # from a file inside a new folder: name the folder that a person asked for
                raise InputError(str(error).replace(str(temporary), str(path))) from error


@contextmanager
def staging(directory: Path, names: Sequence[str], *, needed: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder to write files `names` into, which go to `directory` when the block succeeds.

    A new directory appears whole; in one that exists, its files are replaced, one right after the other. Until then
    nothing of it changes, and no training run or other writer is in there. The `needed` ones, without which nobody uses
    the others, are removed before the first is replaced: so a kill leaves no mixture of old and new that is taken for
    whole. Errors: `InputError` as of `replacing`, and where another process uses the directory.
    """
    with errors_named(directory):
        exists = directory.is_dir()  # an error where the name is too long
    if not exists:
        with replacing(directory) as temporary:
            temporary.mkdir()
            yield temporary
        return
    # Inside, since the folder may be a file system of its own.
    with errors_named(directory), only_writer(directory), partial_of(directory / directory.resolve().name) as temporary:
        sweep(directory)
        temporary.mkdir()
        try:
            yield temporary
            flush_tree(temporary)
            if needed:
                for name in needed:
                    (directory / name).unlink(missing_ok=True)
                flush_folder(directory)
            for name in names:
                os.replace(temporary / name, directory / name)
            flush_folder(directory)
        except InputError as error:
            raise InputError(str(error).replace(str(temporary), str(directory))) from error


@contextmanager
def errors_named(path: Path, doing: str = "write") -> Iterator[None]:
    """Make the system's errors an `InputError` with the name; of a NUL in it, they are ValueErrors.

    Names that are no UTF-8 are refused: safetensors writes such a file, and does not read it.
    """
    try:
        os.fsencode(path).decode()
    except UnicodeError as error:
        raise InputError(f"cannot {doing} {path}: its name is not valid UTF-8, choose another") from error
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot {doing} {path}: {error.strerror or error}") from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise InputError(f"cannot {doing} {path}: {error}") from error


@contextmanager
def filling(directory: Path) -> Iterator[Path]:
    """Yield the folder to write the files of `directory` into: itself where it exists; a new one appears whole."""
    with errors_named(directory):
        exists = directory.is_dir()
    if exists:
        yield directory
        return
    with replacing(directory) as temporary:
        temporary.mkdir()
        yield temporary


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; errors name the file where it cannot be read or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value
