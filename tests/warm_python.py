"""Run Python programs as `subprocess.run` does, in processes that have torch imported already.

A new interpreter needs three seconds for that, and the suite starts dozens. The processes are forked from a server that
has imported what reads nothing from the environment; everything else is as new. For tests of starting, of signals and
of the interpreter's end, start a real one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

# Not huggingface_hub and what imports it: it reads its settings from the environment, and only once.
PRELOADED = [
    *("torch", "torchvision", "numpy", "pandas", "pyarrow.parquet"),
    *("PIL.Image", "sklearn.datasets", "matplotlib.figure"),
]  # fmt: skip

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


def run_python(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    input: Any = None,
    timeout: float = 120,
    text: bool = True,
    check: bool = False,
) -> subprocess.CompletedProcess[Any]:
    """Return what `subprocess.run(command, capture_output=True, …)` returns.

    `command` is this interpreter, any number of `-W FILTER`, then a script, `-m MODULE` or `-c CODE` with arguments.
    """
    assert command[0] == sys.executable
    words = [os.fspath(word) for word in command[1:]]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        given = b"" if input is None else input.encode() if isinstance(input, str) else input
        streams[0].write_bytes(given)
        process = _server.Process(
            target=_run, args=(words, dict(os.environ if env is None else env), os.fspath(cwd or os.getcwd()), streams)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout, streams[1].read_bytes(), streams[2].read_bytes())
        outputs: list[Any] = [path.read_bytes() if path.exists() else b"" for path in streams[1:]]
    if text:
        outputs = [output.decode(errors="surrogateescape") for output in outputs]
    done = subprocess.CompletedProcess(list(command), process.exitcode, *outputs)
    if check:
        done.check_returncode()
    return done


def run_ranks(command: Sequence[str | Path], ranks: int, **options: Any) -> list[subprocess.CompletedProcess[Any]]:
    """Run a program in several processes that are joined as a launcher joins them; return how they ended, in order."""
    joined = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}

    def run(rank: int) -> subprocess.CompletedProcess[Any]:
        environment = {name: str(value) for name, value in {**joined, "RANK": rank, "LOCAL_RANK": rank}.items()}
        return run_python(command, env={**os.environ, **environment}, **options)

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


def free_port() -> int:
    """Return a port that nobody listens on, below those that the system gives to whoever asks for any."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def children() -> list[psutil.Process]:
    """Return this process's children, without the server of warm processes and what belongs to it."""
    servers = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
    return [one for one in psutil.Process().children() if not any(name in " ".join(one.cmdline()) for name in servers)]


def _run(words: list[str], env: Mapping[str, str], cwd: str, streams: Sequence[Path]) -> None:
    """Become the program, in a forked process."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in enumerate(streams):
        descriptor = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    while words[0] == "-W":
        sys.warnoptions.append(words[1])
        warnings._processoptions([words[1]])  # type: ignore[attr-defined]
        del words[:2]
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    code = 0
    try:
        if words[0] == "-c":
            sys.path[:0] = ["", *paths]
            sys.argv = words[:1] + words[2:]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        elif words[0] == "-m":
            sys.path[:0] = ["", *paths]
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[:0] = [str(Path(words[0]).resolve().parent), *paths]
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
