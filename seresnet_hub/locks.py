"""Let one process at a time use a folder, by a lock that the operating system releases when the process ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from seresnet_hub.errors import InputError

# A process that is being replaced may need some seconds to end.
PATIENCE_SECONDS = 15.0
# What file systems without locks answer, such as some buckets that are mounted as folders.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
_descriptors: set[int] = set()  # of the locks that this process holds


def _leave_to_parent() -> None:
    """Close, in a forked process, what belongs to its parent: a loader worker would keep the lock of a killed run."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class Lock:
    """A lock that this process holds on a file; the file names the host and the process."""

    def __init__(self, path: Path, descriptor: int, made: list[Path]) -> None:
        self._path, self._descriptor, self._made = path, descriptor, made
        _descriptors.add(descriptor)

    def release(self) -> None:
        """Let go. Where nothing lies beside it, the file is removed, and the folders that were made for it."""
        if self._descriptor not in _descriptors:  # it is the parent's
            return
        with suppress(OSError):
            if os.listdir(self._path.parent) == [self._path.name]:
                self._path.unlink()
                for folder in self._made:
                    folder.rmdir()  # fails where something else is in it
        _descriptors.discard(self._descriptor)
        os.close(self._descriptor)


def acquire(path: Path, *, what: str, say: Callable[[str], None], patience: float = PATIENCE_SECONDS) -> Lock:
    """Return a lock on the file `path`, which is made with its folders where it is not there.

    `what` is how messages call what is locked. Where another process holds it, says so and waits `patience` seconds.
    Errors: `InputError` where that one still holds it then, with its host and process id, or the file cannot be made.
    """
    path = path.resolve()
    deadline = time.monotonic() + patience
    waits = False
    try:
        while True:
            held_by = _try(path, what, say)
            if isinstance(held_by, Lock):
                return held_by
            if time.monotonic() >= deadline:
                raise InputError(
                    f"{what} is in use by {held_by or 'another process'}: wait until it ends, or choose another "
                    "--output"
                )
            if held_by and not waits:
                say(f"{what} is in use by {held_by}: waiting {patience:.0f} seconds for it to end")
                waits = True
            time.sleep(0.2)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _try(path: Path, what: str, say: Callable[[str], None]) -> Lock | str:
    """Return the lock, or who holds it; nobody's name where it has just been removed."""
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except FileNotFoundError:  # its last holder has removed the folder meanwhile
        return ""
    try:
        if not _lock(descriptor, what, say):
            return _holder(descriptor)
        if not _is_at(descriptor, path):
            return ""
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text)
        lock = Lock(path, descriptor, made)
        descriptor = -1
        return lock
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int, what: str, say: Callable[[str], None]) -> bool:
    """Take the lock and return True, or False where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        say(f"warning: {what} cannot be locked on this system: start no second run in it")
        return True
    try:
        # Not lockf(), whose lock is gone as soon as anything else in this process has read the file. On NFS, Linux asks
        # the server for the lock (version 4, or 3 with lockd), so it holds between machines; that of a machine that has
        # crashed ends with the machine's lease there, usually after 90 seconds.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in NO_LOCKS:
            raise
        say(f"warning: {what} is on a file system without locks: start no second run in it")
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one of that name: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.read(descriptor, 1000))
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]}"
    except (KeyError, TypeError, ValueError):
        return "another process"
