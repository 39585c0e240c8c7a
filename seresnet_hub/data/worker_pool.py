"""Start the worker processes of a loader, wait for what they make, and say so where one does not answer."""

from __future__ import annotations

import atexit
import errno
import gc
import mmap
import os
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader

from seresnet_hub.errors import InputError, PrintableLog, of_a_dead_worker

LOOK_EVERY = 5.0  # seconds, as torch's loader itself looks whether its workers are alive
SAY_AFTER = 60.0  # seconds without an answer, and then each time twice as many
# A stopped process goes on only if somebody makes it; one that waits for a disk or a network may go on by itself.
LONGEST_STOPPED, LONGEST_SILENCE = 300.0, 3600.0
STATES = {"T": "stopped", "t": "stopped", "D": "waiting for a disk or a network", "Z": "ended", "R": "computing"}

# Two queues' ends and two of a process; what the loader itself and the reading of shards need.
FILES_OF_A_WORKER, FILES_OF_A_LOADER = 4, 16
LOCKS_OF_A_WORKER, LOCKS_OF_A_LOADER = 3, 10

log = PrintableLog(__name__)


class WorkerPool:
    """The answers of a `DataLoader` with so many worker processes, 0 for none; a context, at whose end they end."""

    def __init__(self, loader_of: Any, number: int) -> None:
        """Start them; `loader_of` makes the loader out of the options that are given here.

        Errors: `InputError` where the limits of this machine do not allow so many processes.
        """
        self._number, self._is_finalizing = number, sys.is_finalizing
        _require_room(number)
        # Shared with the workers: whether nobody needs them any more, and their process numbers.
        self._shared = mmap.mmap(-1, 8 * (number + 1))
        self._leave = partial(self._shared.__setitem__, 0, 1)
        atexit.register(self._leave)
        self._answers: Iterator[Any] = iter(())
        try:
            with warnings.catch_warnings():
                # Four lines of torch's, where more workers are asked for than this process has CPUs.
                warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
                loader: DataLoader[Any] = loader_of(
                    num_workers=number, timeout=LOOK_EVERY if number else 0, generator=torch.Generator(),
                    worker_init_fn=partial(_start_worker, self._shared) if number else None,
                    multiprocessing_context=get_context("fork") if number else None,
                )  # fmt: skip
                self._answers = iter(loader)
        except OSError as error:
            self.close()
            raise _cannot_start(number, error) from error

    def answer(self) -> Any:
        """Return the next answer. Errors: `InputError` where a worker is gone, or does not answer for too long."""
        waited, stopped, say_after = 0.0, 0.0, SAY_AFTER
        while True:
            looked = time.monotonic()
            try:
                return next(self._answers)
            except RuntimeError as error:
                if "timed out" not in str(error) or not self._number:
                    if (known := of_a_dead_worker(error)) is None:
                        raise
                    raise known from error
            # Not more: this process itself may have been stopped meanwhile, with its workers.
            passed = min(time.monotonic() - looked, 2 * LOOK_EVERY)
            waited += passed
            states = self._states()
            is_stopped = "stopped" in states.values()
            stopped = stopped + passed if is_stopped else 0.0
            to_blame = {pid: state for pid, state in states.items() if not is_stopped or state == "stopped"}
            named = ", ".join(f"{pid} ({state})" for pid, state in to_blame.items())
            if stopped >= LONGEST_STOPPED or waited >= LONGEST_SILENCE:
                raise InputError(
                    f"no batch came for {waited:.0f} s from the loader worker processes {named}: "
                    + ("somebody stopped them (SIGSTOP)" if is_stopped else "the data may lie where nothing answers")
                    + "; start again with --resume, or set workers=0"
                )
            if waited >= say_after or (is_stopped and say_after == SAY_AFTER):
                way_out = f"; to let them go on: kill -CONT {' '.join(map(str, to_blame))}" if is_stopped else ""
                log.warning("waiting for a batch for %.0f s, from loader worker processes %s%s", waited, named, way_out)
                say_after = 2 * max(say_after, waited)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_finalizing():  # at the interpreter's end modules are gone already, and so are the workers
            self.close()

    def close(self) -> None:
        """End the workers, also those that somebody stopped and those whose threads wait for data."""
        self._leave()
        atexit.unregister(self._leave)
        for pid, state in self._states().items():
            if state == "stopped":
                with suppress(OSError):
                    os.kill(pid, signal.SIGCONT)
        loader, self._answers = self._answers, iter(())
        if not hasattr(loader, "_shutdown_workers"):  # without workers
            return
        # Not left to the loader's own end: whoever holds the traceback of an error holds the loader.
        over = threading.Event()
        signalling = threading.Thread(target=self._end, args=(loader, over), name="ending workers", daemon=True)
        with suppress(RuntimeError):  # at the interpreter's end there are no new threads, and the workers end anyway
            signalling.start()
        try:
            loader._shutdown_workers()
        finally:
            over.set()
        if signalling.is_alive():
            signalling.join()
        for worker in loader._workers:  # type: ignore[attr-defined]
            if worker.is_alive():
                worker.kill()
                worker.join(LOOK_EVERY)

    def _end(self, loader: Any, over: threading.Event) -> None:
        """Signal the workers of a loader that shuts down; else it waits for the threads of one after the other.

        Not before the loader has set its event: a worker that ended while it asks for that would keep its lock.
        """
        while not loader._workers_done_event.is_set():
            if over.wait(0.01):
                return
        ready = struct.unpack_from(f"{self._number}q", self._shared, 8)
        for worker in loader._workers:
            if worker.pid in ready:
                worker.terminate()

    def _states(self) -> dict[int, str]:
        """Return what the worker processes do, by their numbers, as far as the system says it."""
        pids = struct.unpack_from(f"{self._number}q", self._shared, 8)
        return {pid: state_of(pid) for pid in pids if pid}


def _require_room(number: int) -> None:
    """Raise `InputError` where this process may not have the files and locks that so many workers need.

    Where torch's loader finds that out itself, it leaves workers behind and prints a traceback.
    """
    if not number:
        return
    if "fork" not in get_all_start_methods():
        raise InputError(f"workers={number}: this system cannot fork processes; set workers=0")
    files: list[int] = []
    locks: list[Any] = []
    try:
        for _ in range(FILES_OF_A_WORKER * number + FILES_OF_A_LOADER):
            files.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(LOCKS_OF_A_WORKER * number + LOCKS_OF_A_LOADER):
            locks.append(get_context("fork").Lock())
    except OSError as error:
        raise _cannot_start(number, error) from error
    finally:
        for file in files:
            os.close(file)


def _cannot_start(number: int, error: OSError) -> InputError:
    return InputError(
        f"cannot start {number} loader workers ({error.strerror or error}): {_way_out(error)}, or set workers=0"
    )


def _way_out(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "allow more open files (ulimit -n 4096)"
    if error.errno == errno.ENOSPC:
        return "make /dev/shm larger (docker run --shm-size=1g)"
    return "allow more processes (ulimit -u) or memory"


def state_of(pid: int) -> str:
    try:
        # The name before it, in brackets, may hold anything.
        letter = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # it is gone, or this system has no such files
        return "unknown"
    return STATES.get(letter, "idle")


def _start_worker(shared: mmap.mmap, number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to report
    # A scheduler signals all processes of a job. A worker serves on while the main process trains to where it saves.
    main = os.getppid()
    # No exit code but 0, of which torch's loader would make an error, whatever the main process does then.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if shared[0] or os.getppid() != main else None)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    struct.pack_into("q", shared, 8 * (number + 1), os.getpid())  # from here on it may be told to end
    torch.set_num_threads(1)
    gc.freeze()  # a collection here would write to, and so copy, the memory inherited from the main process
    sys.excepthook = _report_unless_hung_up


def _report_unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception, unless it only says that the main process left while a batch was being handed over."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
