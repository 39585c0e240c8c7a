"""Let one process at a time use a folder, by a lock that the operating system releases when the process ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seresnet_hub.errors import InputError
from seresnet_hub.files.durability import make_folders

# In the output folder of a training run: its states, and its lock beside them.
STATES_FOLDER = "training"
LOCK_NAME = "lock.json"
RUN_LOCK = Path(STATES_FOLDER, LOCK_NAME)

# A process that is being replaced may need some seconds to end.
PATIENCE_SECONDS = 15.0
LOOK_SECONDS = 0.2
# What file systems without locks answer, such as some buckets that are mounted as folders.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
_descriptors: dict[int, Path] = {}  # of the locks that this process holds, with the paths that were asked for
_short: set[int] = set()  # descriptors of the locks of `one_at_a_time`


def _leave_to_parent() -> None:
    """Close, in a forked process, what belongs to its parent: a loader worker would keep the lock of a killed run."""
    for descriptor in (*_descriptors, *_short):
        os.close(descriptor)
    _descriptors.clear()
    _short.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class Lock:
    """A lock that this process holds on a file; the file names the host and the process."""

    def __init__(self, path: Path, descriptor: int, made: list[Path], *, asked: Path, excludes: bool) -> None:
        self._path, self._descriptor, self._made = path, descriptor, made
        self.excludes = excludes  # False where the file system has no locks
        _descriptors[descriptor] = asked

    def release(self) -> None:
        """Let go. Where nothing lies beside it, the file is removed, and the folders that were made for it."""
        if self._descriptor not in _descriptors:  # it is the parent's
            return
        with suppress(OSError):
            if os.listdir(self._path.parent) == [self._path.name]:
                self._path.unlink()
                for folder in self._made:
                    folder.rmdir()  # fails where something else is in it
        _descriptors.pop(self._descriptor)
        os.close(self._descriptor)


def acquire(path: Path, *, what: str, say: Callable[[str], None], patience: float = PATIENCE_SECONDS) -> Lock:
    """Return a lock on the file `path`, which is made with its folders where it is not there.

    `what` is how messages call what is locked. Where another process holds it, says so and waits `patience` seconds.
    Errors: `InputError` where that one still holds it then, with its host and process id, or the file cannot be made.
    """
    try:
        asked, path = Path(os.path.abspath(path)), path.resolve()
        holder, is_said = "", False
        for is_last in _tries(patience):
            taken = _try(path, asked, what, say)
            if isinstance(taken, Lock):
                return taken
            holder = taken
            if holder and not (is_said or is_last):
                say(f"{what} is in use by {holder}: waiting {patience:.0f} seconds for it to end")
                is_said = True
    except (OSError, RuntimeError, ValueError) as error:  # links in a ring, or a NUL in the name
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    raise _in_use(what, holder or "another process")


def _tries(patience: float) -> Iterator[bool]:
    """Yield for each try whether it is the last; no clock counts, as one that stands still would never be late."""
    for left in range(round(patience / LOOK_SECONDS), -1, -1):
        yield not left
        if left:
            time.sleep(LOOK_SECONDS)


def _in_use(what: str, holder: str) -> InputError:
    return InputError(f"{what} is in use by {holder}: wait until it ends, or choose another folder")


def require_held(folder: Path) -> None:
    """Raise `InputError` where this process's run has locked `folder` or one around it, and that is not there any more.

    It was removed or moved away, or its disk is gone: another run may have taken its place.
    """
    for descriptor, path in _descriptors.items():
        output = path.parent.parent
        if Path(os.path.abspath(folder)).is_relative_to(output) and not _is_at(descriptor, path):
            raise InputError(
                f"{output} is no longer the folder of this run: it was removed, moved or replaced meanwhile"
            )


@contextmanager
def only_writer(directory: Path, *, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Keep training runs, and others that enter this, out of an existing folder meanwhile; leaves nothing in it.

    Errors: `InputError` where one of them is in there after `patience` seconds. Folders that cannot be locked, as on
    NFS, are not.
    """
    run = directory / RUN_LOCK
    lock = None
    if run.is_file():
        lock = acquire(run, what=str(directory), say=lambda _: None, patience=patience)
    try:
        with _locked_folder(directory, patience):
            yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def one_at_a_time(path: Path, *, patience: float = PATIENCE_SECONDS, private: bool = True) -> Iterator[bool]:
    """Let one thread of one process of the machine at a time into the block, by a lock on the file `path`.

    The file, which is made where it is not there, stays; a `private` one and its folder are this user's alone. For what
    is only wasteful when done twice: who has waited `patience` seconds, and who cannot lock files here, goes in without
    the lock. Yields whether nobody else has it.
    """
    descriptor, is_free = -1, True
    with suppress(OSError):
        path.parent.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags, 0o600 if private else 0o666)
        _short.add(descriptor)
        is_free = any(_lock(descriptor, str(path), lambda _: None) is not None for _ in _tries(patience))
    try:
        yield is_free
    finally:
        if descriptor in _short:  # else this is a forked process, which has closed it
            if is_free:  # a process that was forked just now has the descriptor too, and closing this one frees nothing
                _unlock(descriptor)
            _short.remove(descriptor)
            os.close(descriptor)


@contextmanager
def _locked_folder(directory: Path, patience: float) -> Iterator[None]:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        yield
        return
    try:
        with suppress(OSError):  # NFS locks no folders
            if all(_lock(descriptor, str(directory), lambda _: None) is None for _ in _tries(patience)):
                raise _in_use(str(directory), "another process")
        yield
    finally:
        os.close(descriptor)


def _try(path: Path, asked: Path, what: str, say: Callable[[str], None]) -> Lock | str:
    """Return the lock, or who holds it; nobody's name where it has just been removed."""
    made = [folder for folder in path.parents if not folder.exists()]
    make_folders(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except FileNotFoundError:  # its last holder has removed the folder meanwhile
        return ""
    try:
        excludes = _lock(descriptor, what, say)
        if excludes is None:
            return _holder(descriptor)
        if not _is_at(descriptor, path):
            return ""
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text)
        lock = Lock(path, descriptor, made, asked=asked, excludes=excludes)
        descriptor = -1
        return lock
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int, what: str, say: Callable[[str], None]) -> bool | None:
    """Take the lock: True where it was taken, False where there are none, and None where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        say(f"warning: {what} cannot be locked on this system: start no second run in it")
        return False
    try:
        # Not lockf(), whose lock is gone as soon as anything else in this process has read the file. On NFS, Linux asks
        # the server for the lock (version 4, or 3 with lockd), so it holds between machines; that of a machine that has
        # crashed ends with the machine's lease there, usually after 90 seconds.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return None
        if error.errno not in NO_LOCKS:
            raise
        say(f"warning: {what} is on a file system without locks: start no second run in it")
        return False
    return True


def _unlock(descriptor: int) -> None:
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one of that name: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.read(descriptor, 1000))
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]}"
    except (KeyError, TypeError, ValueError):
        return "another process"
