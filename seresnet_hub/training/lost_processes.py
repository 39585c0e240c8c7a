"""Notice where another process of a training run is gone, and say so in one line."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torch import distributed

from seresnet_hub.errors import EXIT_NOT_OK, InputError, LostProcessError

# Backends that do not raise where a process is lost: NCCL's kernels wait, and the host waits for them.
WATCHED = frozenset({"nccl"})
# How training goes on after a process is lost.
RESUME = "start all of them again with --resume"
WATCHER = Path(__file__).with_name("process_watcher.py")


def is_of_a_lost_process(error: Exception) -> bool:
    """Return whether an error is what torch's backends raise where another process is gone."""
    if isinstance(error, InputError):
        return False
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


@contextmanager
def lost_processes_named(way_out: str = RESUME) -> Iterator[None]:
    """Turn what torch's backends raise where another process is gone into a `LostProcessError` that names a way out."""
    try:
        yield
    except RuntimeError as error:
        if not is_of_a_lost_process(error):
            raise
        if not distributed.is_initialized():
            raise LostProcessError(
                f"the processes cannot reach each other ({error}): every machine must reach the main one's address and "
                "port, and on CPUs GLOO_SOCKET_IFNAME may have to name the network interface that leads there"
            ) from error
        raise LostProcessError(
            f"another process is gone, and its own machine's output says why ({error}): {way_out}"
        ) from error


@contextmanager
def watched(way_out: str = RESUME) -> Iterator[None]:
    """End this process with one line and exit code 1 where another one is gone and torch's backend would not say so.

    Beside each process runs a small one (`process_watcher.py`) that is connected with that of process 0, at MASTER_ADDR
    and a free port. What ends by itself is not gone: with an error, the others have five seconds to end by themselves.
    A process in a call that keeps Python's interpreter from running is killed instead. Does nothing with one process,
    and with backends that raise. All processes enter it at once.
    """
    alone = not distributed.is_initialized() or distributed.get_world_size() == 1
    if alone or not any(backend in distributed.get_backend_config() for backend in WATCHED):
        yield
        return
    watcher = _start(way_out)
    _obey(watcher.stdout)  # until they are connected, so that none is missed that is lost soon
    ears = threading.Thread(target=_obey, args=(watcher.stdout,), daemon=True)
    ears.start()
    word = b"failed\n"
    try:
        yield
        word = b"left\n"
    finally:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        with suppress(OSError):
            watcher.stdin.write(word)
            watcher.stdin.close()
        try:
            watcher.wait(10)
        except subprocess.TimeoutExpired:
            watcher.kill()
            watcher.wait()
        ears.join()
        watcher.stdout.close()


def _start(way_out: str) -> subprocess.Popen[bytes]:
    rank = distributed.get_rank()
    listener = _listener() if rank == 0 else None
    shared: list[Any] = [(listener.getsockname()[1], secrets.token_hex(16)) if listener else None]
    distributed.broadcast_object_list(shared, src=0)
    port, token = shared[0]
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", str(WATCHER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        pass_fds=[listener.fileno()] if listener else [],
    )  # fmt: skip
    settings = {
        "rank": rank, "world_size": distributed.get_world_size(), "parent": os.getpid(), "token": token,
        "address": os.environ.get("MASTER_ADDR", "localhost"), "port": port,
        "listener": listener.fileno() if listener else None, "way_out": way_out,
    }  # fmt: skip
    assert watcher.stdin is not None
    watcher.stdin.write(json.dumps(settings).encode() + b"\n")
    if listener:
        listener.close()
    return watcher


def _listener() -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=1024)


def _obey(watcher: IO[bytes] | None) -> None:
    """Wait for a sign of the watcher, and end this process where it is `!`; files appear whole, so none is harmed."""
    if watcher is not None and watcher.read(1) == b"!":
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(EXIT_NOT_OK)
