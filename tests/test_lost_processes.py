"""Where a process is lost, the others must say so in one line and end, whatever they wait for; and only then."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import WriteSplit
from warm_python import free_port

from seresnet_hub.training.lost_processes import RESUME, WATCHER

# One of several processes, watched although its backend would raise by itself. Each argument is what one of them does.
PROCESS = """
import ctypes, os, signal, sys, time
from torch import distributed
from seresnet_hub.training import lost_processes
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.errors import InputError
lost_processes.WATCHED = frozenset({"gloo"})
distributed.init_process_group("gloo")
rank = int(os.environ["RANK"])

def wait(seconds=600):
    time.sleep(seconds)

def wait_with_the_interpreter(seconds=600):
    ctypes.PyDLL(None).usleep(int(1e6 * seconds))  # as a launch on a GPU whose queue is full

def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def refuse(after=0):
    time.sleep(after)
    raise InputError("a reason of its own")

def main(_):
    with lost_processes.watched():
        distributed.barrier()
        print("begin", time.time(), file=sys.stderr, flush=True)
        exec(sys.argv[1 + rank])
    return {"rank": rank}

sys.exit(run(main, []))
"""


class Ended:
    def __init__(self, code: int, said: str, at: float) -> None:
        self.code, self.said = code, said
        self.errors = re.findall(r"^.*error: .*$", said, re.MULTILINE)
        (began,) = re.findall(r"^begin (\S+)$", said, re.MULTILINE)
        self.seconds = at - float(began)


def run(tmp_path: Path, *doing: str) -> list[Ended]:
    """Run a process for each text of what it does; return how they ended, in order."""
    (tmp_path / "process.py").write_text(PROCESS)
    port = free_port()
    processes, files = [], [tmp_path / f"{rank}.err" for rank in range(len(doing))]
    for rank, file in enumerate(files):
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": str(len(doing)), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, str(tmp_path / "process.py"), *doing]
        with file.open("wb") as err:
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=environment))
    ended_at: dict[int, float] = {}
    deadline = time.monotonic() + 120
    try:
        while len(ended_at) < len(processes) and time.monotonic() < deadline:
            for rank, process in enumerate(processes):
                if process.poll() is not None:
                    ended_at.setdefault(rank, time.time())
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(ended_at) == len(processes), "not all of them ended"
    ended = [Ended(processes[k].returncode, files[k].read_text(), ended_at[k]) for k in range(len(doing))]
    for rank, one in enumerate(ended):
        print(f"process {rank}: {doing[rank]}: code {one.code} after {one.seconds:.1f} s: {one.errors}")
        assert "Traceback" not in one.said
    return ended


@pytest.fixture
def watchers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The watchers of three processes, all of them this one, which must not be ended."""
    started: list[subprocess.Popen[bytes]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for rank in range(3):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            passed = [] if rank else [listener.fileno()]
            started.append(subprocess.Popen([sys.executable, str(WATCHER)], bufsize=0, pass_fds=passed, **pipes))
            settings = {
                "rank": rank, "world_size": 3, "parent": os.getpid(), "token": "secret", "address": "127.0.0.1",
                "port": listener.getsockname()[1], "listener": passed[0] if passed else None, "way_out": RESUME,
            }  # fmt: skip
            tell(started[-1], json.dumps(settings))
    assert [watcher.stdout.read(1) for watcher in started if watcher.stdout] == [b"."] * 3
    yield started
    for watcher in started:
        watcher.kill()
        watcher.communicate()


def tell(watcher: subprocess.Popen[bytes], word: str) -> None:
    assert watcher.stdin is not None
    watcher.stdin.write(f"{word}\n".encode())


def test_nothing_is_said_where_processes_end_one_after_the_other(watchers: list[subprocess.Popen[bytes]]) -> None:
    for number in (2, 0, 1):
        if watchers[number].poll() is None:  # where the first has left, there is nothing left to watch
            tell(watchers[number], "left")
        assert watchers[number].wait(10) == 0
        time.sleep(1.5)  # longer than the grace for a process that is gone
    assert [watcher.communicate() for watcher in watchers] == [(b"", b"")] * 3


def test_signals_to_a_whole_job_end_no_watcher(watchers: list[subprocess.Popen[bytes]]) -> None:
    for watcher in watchers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            watcher.send_signal(number)
    time.sleep(1.5)
    assert [watcher.poll() for watcher in watchers] == [None] * 3


# A process that does nothing but to start its watcher, and to end where that says so, or not even that.
PARENT = """
import json, os, subprocess, sys, time
settings, obeys = json.loads(sys.argv[1]), sys.argv[2] == "obeys"
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
passed = [] if settings["listener"] is None else [settings["listener"]]
watcher = subprocess.Popen([sys.executable, sys.argv[3]], bufsize=0, pass_fds=passed, **pipes)
watcher.stdin.write((json.dumps({**settings, "parent": os.getpid()}) + "\\n").encode())
print(watcher.stdout.read(1).decode(), flush=True)
if obeys and watcher.stdout.read(1) == b"!":
    os._exit(1)
time.sleep(60)
"""


def test_the_watchers_end_those_that_are_left(tmp_path: Path) -> None:
    parents = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for rank, kind in enumerate(("obeys", "stuck", "lost")):
            passed = [] if rank else [listener.fileno()]
            settings = {
                "rank": rank, "world_size": 3, "token": "secret", "address": "127.0.0.1",
                "port": listener.getsockname()[1], "listener": passed[0] if passed else None, "way_out": RESUME,
            }  # fmt: skip
            command = [sys.executable, "-c", PARENT, json.dumps(settings), kind, str(WATCHER)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            parents.append(subprocess.Popen(command, pass_fds=passed, **pipes))
    assert [parent.stdout.readline() for parent in parents if parent.stdout] == [b".\n"] * 3
    time.sleep(1.5)
    assert [parent.poll() for parent in parents] == [None] * 3
    parents[2].kill()
    begin = time.monotonic()
    said = [parent.communicate(timeout=20)[1].decode() for parent in parents]
    print(f"the last one ended after {time.monotonic() - begin:.1f} s")
    assert [parent.returncode for parent in parents] == [1, -signal.SIGKILL, -signal.SIGKILL]
    assert said == [f"error: {GONE.format(2)}\n", f"process 1: error: {GONE.format(2)}\n", ""]


GONE = (
    "another process is gone, and its own machine's output says why (process {}): start all of them again with --resume"
)


@pytest.mark.slow
def test_those_that_wait_for_a_lost_process_say_so_and_end(tmp_path: Path) -> None:
    waits, blocked, _ = run(tmp_path, "wait()", "wait_with_the_interpreter()", "be_killed()")
    assert (waits.code, waits.errors) == (1, ["error: " + GONE.format(2)])
    assert (blocked.code, blocked.errors) == (-signal.SIGKILL, ["process 1: error: " + GONE.format(2)])
    assert max(waits.seconds, blocked.seconds) < 15


@pytest.mark.slow
def test_the_first_process_may_be_lost_too(tmp_path: Path) -> None:
    _, *others = run(tmp_path, "be_killed()", "wait()", "wait()")
    assert [one.code for one in others] == [1, 1]
    assert [one.errors for one in others] == [[f"process {k}: error: {GONE.format(0)}"] for k in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("ends_first", [0, 1])
def test_processes_that_end_at_other_times_are_not_lost(tmp_path: Path, ends_first: int) -> None:
    """One is at its end, and the other holds the interpreter for longer than any grace."""
    doing = ["wait_with_the_interpreter(8)", "wait_with_the_interpreter(8)"]
    doing[ends_first] = ""
    ended = run(tmp_path, *doing)
    assert [one.code for one in ended] == [0, 0]
    assert not any(one.errors for one in ended)
    assert ended[1 - ends_first].seconds > max(7, ended[ends_first].seconds)


@pytest.mark.slow
def test_processes_that_are_all_refused_say_why_and_no_more(tmp_path: Path) -> None:
    ended = run(tmp_path, "refuse()", "refuse(after=2)", "refuse(after=1)")
    assert [one.code for one in ended] == [2, 2, 2]
    reasons = ["error: a reason of its own"]
    assert [one.errors for one in ended] == [reasons, *([f"process {k}: {reasons[0]}"] for k in (1, 2))]


@pytest.mark.slow
@pytest.mark.parametrize("refused", [0, 1])
def test_the_others_end_where_one_process_is_refused(tmp_path: Path, refused: int) -> None:
    doing = ["wait()", "wait()"]
    doing[refused] = "refuse()"
    ended = run(tmp_path, *doing)
    assert (ended[refused].code, ended[1 - refused].code) == (2, 1)
    assert ended[refused].errors[0].endswith("error: a reason of its own")
    assert ended[1 - refused].errors[0].endswith(GONE.format(refused))
    assert [len(one.errors) for one in ended] == [1, 1]


# Training on two processes: rank 1 dies in its third step, and rank 0 waits, as for a GPU.
DYING = """
import os, signal, sys, time, torch
from seresnet_hub.commands import train
from seresnet_hub.training import lost_processes
from seresnet_hub.commands.result_or_error import run
lost_processes.WATCHED = frozenset({"gloo"})
step, made = torch.optim.SGD.step, []
def dying(self, *args):
    made.append(1)
    if len(made) == 3:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    return step(self, *args)
torch.optim.SGD.step = dying
sys.exit(run(train.main))
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_training_run_under_a_launcher(tmp_path: Path, write_split: WriteSplit, launcher: str) -> None:
    """The launcher tells the others to end as soon as one has; workers of the lost process live for a while."""
    write_split([[30, 26], [40]])
    data = write_split([[7]], split="validation")
    (tmp_path / "dying.py").write_text(DYING)
    start = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    }[launcher]
    settings = ["epochs=2", "batch_size=16", "input_size=16", "workers=1", "checkpoint_steps=1"]
    command = [sys.executable, "-m", *start, str(tmp_path / "dying.py"), "--data", str(data)]
    command += ["--output", str(tmp_path / "run"), "--set", *settings]
    scripts = Path(__file__).parents[1] / "scripts"
    path = f"{scripts}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    begin = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    print(f"{launcher} ended after {time.monotonic() - begin:.0f} s in all, with code {done.returncode}")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.replace("\r", "\n").splitlines() if "another process is gone" in line]
    assert line.endswith("error: " + GONE.format(1))
    assert "training.py" not in done.stderr  # no traceback of ours
