"""Name what is half-written so that it can be told whose it is, and remove what processes left that were killed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

# The name that the whole file will have, its process, and where that runs.
PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<process>[0-9]+)(-(?P<place>[0-9a-f]{8})-[0-9]+)?\.partial", re.DOTALL)
LONGEST_NAME = 150  # in bytes: file systems allow 255
# What nobody has written to for so long is nobody's; of other machines nothing else tells it.
ABANDONED_SECONDS = 7 * 24 * 3600.0
_numbers = count()
_being_written: set[str] = set()


@contextmanager
def partial_of(path: Path) -> Iterator[Path]:
    """Yield the path beside `path` for what is half-written of it, and remove what is there at the end.

    No other process has the same, on any machine that shares the folder, and no other thread.
    """
    name = path.name
    while len(os.fsencode(name)) > LONGEST_NAME:
        name = name[:-1]
    temporary = path.with_name(f".{name}.{os.getpid()}-{place()}-{next(_numbers)}.partial")
    _being_written.add(temporary.name)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _being_written.discard(temporary.name)


def sweep(folder: Path, *, everyones: Callable[[str], bool] = lambda _: False) -> None:
    """Remove from `folder` what processes of this package left half-written which ran here and are gone.

    What was left on other machines, or before this one was started, goes once nobody has written to it in
    `ABANDONED_SECONDS`. `everyones` says of a whole file's name whether what is half-written of it goes, whoever left
    it: for a folder that no other process can be writing to.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        match = PARTIAL.fullmatch(name)
        if match and name not in _being_written:
            here = match["place"] == place()
            left = _is_gone(int(match["process"])) if here else bool(match["place"]) and _is_abandoned(folder / name)
            if left or everyones(match["name"]):
                _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@cache
def place() -> str:
    """Return a name for what gives process ids: a machine since its start, and on it a container.

    Machines may share a host name, and all of Linux the number of their outermost namespace.
    """
    try:
        start, namespace = Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        start, namespace = "", ""
    return hashlib.sha256(f"{socket.gethostname()} {start} {namespace}".encode()).hexdigest()[:8]


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED_SECONDS
    except OSError:
        return False


def _is_gone(process: int) -> bool:
    """Return whether no process here has that id. This one has it, but was not told of the file: it was another's."""
    if process == os.getpid():
        return True
    if os.name != "posix":  # elsewhere, asking would end the process
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it is another user's
        return False
    return False
