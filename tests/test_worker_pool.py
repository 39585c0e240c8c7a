"""A worker that is stopped, dead or cannot start must end in a line that says what to do, and nothing may hang."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import psutil
import pytest
from conftest import WriteSplit, numbered_picture
from warm_python import children

from seresnet_hub.data import row_reader
from seresnet_hub.data import worker_pool as module
from seresnet_hub.data.loader import loader
from seresnet_hub.data.shared_batches import SharedBatches
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe

RECIPE = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, batch_size=12, shuffle_window=9
)


def test_a_stopped_worker_is_named_and_then_given_up(
    write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(module, "LONGEST_STOPPED", 1.0)
    stream = iter(loader(str(write_split([[200] * 10])), "train", RECIPE, workers=2))
    next(stream)
    workers = children()
    workers[0].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(InputError, match=r"somebody stopped them \(SIGSTOP\)") as said,
    ):
        for _ in stream:
            pass
    assert time.monotonic() - start < 15
    assert f"{workers[0].pid} (stopped)" in str(said.value)
    assert f"kill -CONT {workers[0].pid}" in caplog.text
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def test_a_worker_that_goes_on_is_waited_for(write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.2)
    stream = iter(loader(str(write_split([[200] * 10])), "train", RECIPE, workers=2))
    next(stream)
    worker = children()[0]
    worker.send_signal(signal.SIGSTOP)
    waker = subprocess.Popen(["sh", "-c", f"sleep 1.5; kill -CONT {worker.pid}"])
    assert sum(1 for _ in stream) == 166
    waker.wait()


def test_workers_that_wait_for_data_end_at_once(write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their threads may sleep for minutes before they ask the Hub again; torch's loader waits for each in turn."""
    read, units = row_reader.read_unit, []

    def late(split: Any, unit: int, *more: Any) -> Any:
        units.append(unit)
        if len(units) > 2:
            time.sleep(600)
        return read(split, unit, *more)

    monkeypatch.setattr(row_reader, "read_unit", late)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 60)
    stream = iter(loader(str(write_split([[200] * 10])), "train", replace(RECIPE, lanes=2), workers=2))
    next(stream)
    workers = children()
    start = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 40
    assert len(workers) == 2
    assert children() == []


CODE = """
import sys
from dataclasses import replace
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.data.loader import loader
from seresnet_hub.recipes.recipe import get_recipe
recipe = replace(get_recipe('digits'), input_size=64, crop='pad', crop_padding=0, batch_size=64, shuffle_window=9)
def main(arguments):
    batches = loader(sys.argv[1], 'train', recipe, workers=int(sys.argv[2]))
    kept = []
    for batch in batches:
        kept.append(batch)  # so that no shared batch is free soon, and batches come in memory of their own
        BEFORE
    return {'batches': len(kept)}
raise SystemExit(run(main, sys.argv[1:]))
"""


@pytest.mark.slow
def test_few_open_files_are_said_with_the_way_out(write_split: WriteSplit) -> None:
    root = str(write_split([[64] * 8]))
    for most, workers in ((20, 8), (26, 2)):
        limit = f"    import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))\n    kept = []"
        code = CODE.replace("    kept = []", limit).replace("BEFORE", "pass")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, root, str(workers)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 2)
        if workers == 8:
            assert done.returncode == 2
            assert "open files (ulimit -n 4096), or set workers=0" in done.stderr


@pytest.mark.slow
def test_little_shared_memory_is_enough(write_split: WriteSplit) -> None:
    """A batch beyond the shared ones goeses through a pipe: /dev/shm is small in some containers."""
    images = [numbered_picture(k, 64) for k in range(512)]
    root = str(write_split([[64] * 8], images=images))
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small /dev/shm")
    done = subprocess.run(
        [*mounted, sys.executable, "-c", CODE.replace("BEFORE", "pass"), root, "2"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, '{"batches": 8}\n'), done.stderr
    done = subprocess.run(
        [*mounted, sys.executable, "-c", CODE.replace("BEFORE", "pass"), root, "24"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2
    assert "make /dev/shm larger" in done.stderr


def test_batches_that_memory_cannot_hold_are_refused() -> None:
    with pytest.raises(InputError, match=r"not enough memory for 4 batches .* choose a smaller batch or input size"):
        SharedBatches(4, (10_000_000, 9000, 9000, 3))


def test_a_system_that_cannot_fork_trains_without_workers(write_split: WriteSplit) -> None:
    """As Windows, which has no such flag of `os.open` either."""
    code = """
import multiprocessing.context, os, sys
del multiprocessing.context._concrete_contexts["fork"]
multiprocessing.context.DefaultContext.get_all_start_methods = lambda self: ["spawn"]
import multiprocessing
multiprocessing.get_all_start_methods = lambda: ["spawn"]
del os.O_CLOEXEC
"""
    imports, rest = CODE.replace("BEFORE", "pass").split("def main", 1)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{code}{imports}def main{rest}", str(write_split([[64] * 2])), "0"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, '{"batches": 2}\n'), done.stderr


def test_workers_on_a_system_that_cannot_fork_are_refused(
    write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(InputError, match="workers=2: this system cannot fork processes; set workers=0"):
        next(iter(loader(str(write_split([[200] * 10])), "train", RECIPE, workers=2)))


def test_states_of_processes() -> None:
    assert module.state_of(os.getpid()) == "computing"
    assert module.state_of(2**22 + 1) == "unknown"
