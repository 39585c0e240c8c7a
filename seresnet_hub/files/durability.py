"""Put files and the names of folders on the disk, so that they survive a loss of power."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# What systems and file systems answer that cannot flush a folder; any other answer is a failure of the disk.
CANNOT_FLUSH_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


def flush_file(path: Path) -> None:
    """Wait until a file's bytes would survive a loss of power; `OSError` where the disk fails."""
    _flush(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)  # some mounts allow no second opening for writing


def flush_folder(path: Path) -> None:
    """Wait until the names in a folder would survive a loss of power, where the system can do that."""
    try:
        _flush(path, os.O_RDONLY)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH_FOLDERS:
            raise


def flush_tree(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, would survive; not its own name."""
    if path.is_dir():
        for inner in path.iterdir():
            if not inner.is_symlink():
                flush_tree(inner)
        flush_folder(path)
    else:
        flush_file(path)


def make_folders(path: Path) -> None:
    """Make a folder and those around it, where they are not there yet; the names of new ones are on the disk then."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        flush_folder(folder.parent)


def flush_way_to(path: Path) -> None:
    """Flush the names of `path` and of all folders around it, up to the root of its file system.

    For folders that a process made which was killed before it could flush their names.
    """
    for folder in (path, *path.resolve().parents):
        flush_folder(folder)
        if os.path.ismount(folder):
            return


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
