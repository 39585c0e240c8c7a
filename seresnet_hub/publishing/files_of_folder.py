"""Read files from inside one folder alone: what is uploaded is public, and a link could name a file of keys."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from seresnet_hub.errors import InputError


def inside(directory: Path, name: str) -> Path:
    """Return where a file of the folder really lies; errors where that is elsewhere, or no regular file."""
    path = directory / name
    try:
        real = path.resolve(strict=True)
        mode = real.lstat().st_mode
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not real.is_relative_to(directory.resolve()):
        raise InputError(f"{path} is a link to {real}, outside its folder: it is not pushed; put the file itself there")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is no regular file: it is not pushed")
    return real


def content_of(path: Path, most: int) -> bytes:
    """Return a file's bytes; what has taken its place since it was looked at is not followed, nor waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{path} is no regular file: it is not pushed")
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > most:
        raise InputError(f"{path} has more than the {most:,} bytes that such a file may have: it is not pushed")
    return content
