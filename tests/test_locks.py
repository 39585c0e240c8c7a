"""One process at a time has a lock, a killed one leaves it at once, and its file never stands in anybody's way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seresnet_hub.errors import InputError
from seresnet_hub.files import locks
from seresnet_hub.files.locks import acquire

# Takes the lock, forks a child that would inherit it, as loader workers do, says so, and waits.
HOLDER = """
import os, sys, time
from pathlib import Path
import seresnet_hub_command  # as in a command, so that torch is not loaded
from seresnet_hub.files.locks import acquire
lock = acquire(Path(sys.argv[1]), what="the run", say=print, patience=0)
begun, begins = os.pipe()
if os.fork() == 0:
    os.write(begins, b"!")  # a process that has just been forked still has the lock
    time.sleep(60)
    os._exit(0)
os.read(begun, 1)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Return a function that starts a process which holds a lock."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        os.killpg(process.pid, 9)
        process.communicate()


def refuse_to_wait(line: str) -> None:
    raise AssertionError(line)


def test_a_second_process_is_told_who_has_it(tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]) -> None:
    holder = hold(tmp_path / "lock")
    said: list[str] = []
    with pytest.raises(InputError) as refused:
        acquire(tmp_path / "lock", what="runs/x", say=said.append, patience=0.5)
    whose = f"runs/x is in use by process {holder.pid} on {socket.gethostname()}: "
    assert str(refused.value).startswith(whose)
    assert [line.startswith(whose) for line in said] == [True]  # said once, while waiting


def test_a_killed_process_leaves_the_lock_at_once(
    tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    """Its file stays, and so do the processes that it had forked."""
    holder = hold(tmp_path / "lock")
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid
    lock = acquire(tmp_path / "lock", what="it", say=refuse_to_wait, patience=0)
    assert json.loads((tmp_path / "lock").read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    lock.release()


def test_a_process_that_is_ending_is_waited_for(tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]) -> None:
    holder = hold(tmp_path / "lock")
    lock = acquire(tmp_path / "lock", what="it", say=lambda _: holder.kill(), patience=20)
    lock.release()


def test_two_callers_in_one_process_are_told_apart(tmp_path: Path) -> None:
    """And whoever else reads the file in this process does not end the lock."""
    lock = acquire(tmp_path / "lock", what="it", say=print, patience=0)
    assert str(os.getpid()) in (tmp_path / "lock").read_text()
    with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
        acquire(tmp_path / "lock", what="it", say=print, patience=0)
    lock.release()
    acquire(tmp_path / "lock", what="it", say=refuse_to_wait, patience=0).release()


def test_released_locks_leave_nothing_that_was_made_for_them(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    acquire(tmp_path / "before" / "a" / "b" / "lock", what="it", say=print).release()
    assert list(tmp_path.rglob("*")) == [tmp_path / "before"]
    lock = acquire(tmp_path / "before" / "a" / "b" / "lock", what="it", say=print)
    (tmp_path / "before" / "a" / "b" / "work").touch()
    lock.release()
    assert {path.name for path in (tmp_path / "before" / "a" / "b").iterdir()} == {"lock", "work"}


@pytest.mark.slow
def test_only_one_of_many_has_it_while_files_come_and_go(tmp_path: Path) -> None:
    """Each holder removes the file it locked; one that had opened it before must not take the removed file's lock."""
    code = """
import sys, time
from pathlib import Path
import seresnet_hub_command
from seresnet_hub.files.locks import acquire
inside = Path(sys.argv[1]) / "inside"
for _ in range(5):
    lock = acquire(Path(sys.argv[1]) / "a" / "lock", what="it", say=lambda _: None, patience=100)
    inside.touch(exist_ok=False)
    time.sleep(0.002)
    inside.unlink()
    lock.release()
    time.sleep(0.001)
"""
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for racer in racers:
        _, errors = racer.communicate(timeout=120)
        assert (racer.returncode, errors) == (0, "")


def test_a_file_system_without_locks_is_named_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="this system has other locks")

    def none(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", none)
    said: list[str] = []
    acquire(tmp_path / "lock", what="runs/x", say=said.append, patience=0).release()
    assert said == ["warning: runs/x is on a file system without locks: start no second run in it"]


def test_what_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    start = time.monotonic()
    with pytest.raises(InputError, match=r"cannot write \S+/file/lock: "):
        acquire(tmp_path / "file" / "lock", what="it", say=print)
    assert time.monotonic() - start < locks.PATIENCE_SECONDS / 2


def test_a_clock_that_stands_still_ends_the_waiting_all_the_same(
    tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(tmp_path / "lock")
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    with pytest.raises(InputError, match="is in use by process"):
        acquire(tmp_path / "lock", what="it", say=lambda _: None, patience=0.5)


@pytest.mark.parametrize("way", ["removed", "moved", "replaced", "linked"])
def test_a_folder_that_is_gone_is_noticed(tmp_path: Path, way: str) -> None:
    """Written on, it would come into being anew, and another run may be in there."""
    output = tmp_path / "run"
    if way == "linked":  # the states lie on another disk, which is gone then
        (tmp_path / "disk").mkdir()
        output.mkdir()
        (output / "training").symlink_to(tmp_path / "disk")
    lock = acquire(output / locks.RUN_LOCK, what="it", say=print, patience=0)
    locks.require_held(output / "best")
    locks.require_held(tmp_path / "other")
    if way == "removed":
        shutil.rmtree(output)
    elif way == "linked":
        shutil.rmtree(tmp_path / "disk")
    else:
        output.rename(tmp_path / "elsewhere")
    if way == "replaced":
        (output / "training").mkdir(parents=True)
        (output / locks.RUN_LOCK).touch()
    with pytest.raises(InputError, match="run is no longer the folder of this run"):
        locks.require_held(output / "best")
    locks.require_held(tmp_path / "other")
    lock.release()


def test_folders_that_are_rings_of_links_or_no_names_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    for path in (tmp_path / "ring" / "lock", tmp_path / "a\0b" / "lock"):
        with pytest.raises(InputError, match="cannot write"):
            acquire(path, what="it", say=print, patience=0)


def test_a_process_that_is_forked_while_a_short_lock_ends_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock belongs to the open file, which the fork has too: closing it in the parent alone would free nothing."""
    forked: list[int] = []

    class ForkingSet(set[int]):
        def remove(self, number: int) -> None:
            super().remove(number)
            if (pid := os.fork()) == 0:
                time.sleep(60)
                os._exit(0)
            forked.append(pid)

    path = tmp_path / "lock"
    try:
        with monkeypatch.context() as patched:
            patched.setattr(locks, "_short", ForkingSet())
            with locks.one_at_a_time(path) as is_free:
                assert is_free
        with locks.one_at_a_time(path, patience=0) as is_free:
            assert is_free
    finally:
        for pid in forked:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    assert len(forked) == 1
