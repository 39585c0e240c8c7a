"""Decide which files are read because a row of a data set names them, and read them.

A row may hold a path instead of a picture's bytes. Whoever wrote the data set chose it, so it may only lead to the
data set's own files: not to other files of this computer, and to no other address.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import fsspec

from seresnet_hub.data.read_image import MOST_BYTES, UnavailableError, read_file
from seresnet_hub.data.read_retries import reading
from seresnet_hub.errors import InputError

ARCHIVES = ("zip://",)  # how `datasets` names a file in an archive: zip://cat/1.jpg::/data/train.zip


def folder_of(files: Sequence[str]) -> str:
    """Return the innermost folder that all these files lie in or below."""
    prefix = os.path.commonprefix([file.rpartition("/")[0] + "/" for file in files])  # noqa: RUF071  # cut here
    return prefix.rpartition("/")[0]


class ForeignFileError(UnavailableError):
    """A row names a file that does not belong to its data set."""


@dataclass(frozen=True)
class RowFiles:
    """The folder of a data set, a local one or an address; "" is none, so that no file may be named.

    With `lists_pictures`, what rows name are the pictures found in the folder that a person chose; links among them,
    which that person made, may lead elsewhere.
    """

    folder: str
    lists_pictures: bool = False

    @classmethod
    def of(cls, source: str, files: Sequence[str], *, lists_pictures: bool) -> RowFiles:
        """Return the folder of a data set that was opened as `source` and has these files."""
        if os.path.isdir(source):
            return cls(os.path.abspath(source), lists_pictures)
        containers = [file.rpartition("::")[2] for file in files]
        folder = folder_of(containers)
        if "://" in folder:
            named = folder.partition("://")[2]
            return cls(folder if named else "", lists_pictures)
        return cls(os.path.abspath(folder) if containers else "", lists_pictures)

    def read(self, path: str) -> bytes:
        """Return the bytes of the file that a row names.

        Errors: `ForeignFileError` where it may not be read, `UnavailableError` where it is out of reach, `InputError`
        where it is missing or no regular file.
        """
        *members, container = path.split("::")
        if any(not member.startswith(ARCHIVES) for member in members):
            raise self._foreign()
        if "://" in container:
            self._require_own_address(container)
            return _fetched(path)
        file = self._own_file(container)
        return _fetched("::".join([*members, str(file)]), regular=file) if members else read_file(file)

    def _require_own_address(self, address: str) -> None:
        inside = address.removeprefix(self.folder)
        if not self.folder or inside == address or inside[:1] != "/" or ".." in unquote(inside).split("/"):
            raise self._foreign()

    def _own_file(self, path: str) -> Path:
        if not self.folder or "://" in self.folder or "\0" in path:
            raise self._foreign()
        file = Path(os.path.normpath(os.path.join(self.folder, path)))
        real = os.path.realpath(self.folder)  # which `datasets` names where the folder is, or lies behind, a link
        if not any(file.is_relative_to(folder) for folder in (self.folder, real)):
            raise self._foreign()
        if not self.lists_pictures and not Path(os.path.realpath(file)).is_relative_to(real):
            raise self._foreign()
        return file

    def _foreign(self) -> ForeignFileError:
        return ForeignFileError(
            f"the data set names a file that is not in its own folder ({self.folder or 'it has none'}), so it is not "
            "read: copy the picture there, or its bytes into the data set (of one in the Hub's cache: use hf download "
            "--local-dir)"
        )


def _fetched(path: str, *, regular: Path | None = None) -> bytes:
    if regular is not None and not regular.is_file():
        raise InputError(f"{regular} is no regular file")

    def read() -> bytes:
        with fsspec.open(path, "rb") as handle:
            return cast(bytes, cast(Any, handle).read(MOST_BYTES + 1))

    data = reading(f"read {path}", read, kind=UnavailableError)
    if len(data) > MOST_BYTES:
        raise InputError(f"too large a file (more than {MOST_BYTES:,} bytes)")
    return data
