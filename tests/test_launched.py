"""A command must join the processes that a launcher started, and all of them must end in a line where one fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from warm_python import run_python

# A command of one process or several; each argument is what one of them does.
COMMAND = """
import os, sys, time
from pathlib import Path
from seresnet_hub.commands.launched import launched_processes, on_all
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.errors import InputError

def refuse():
    raise InputError("a reason of its own")

def main(doing):
    rank = int(os.environ.get("RANK", "0"))
    with launched_processes() as processes:
        answer = on_all(processes, lambda: eval(doing[rank]))
        given = processes.gathered(answer) if processes else [answer]
    return {"given": given, "accelerate": "accelerate" in sys.modules}

def gloos_threads():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]

code = run(main, sys.argv[1:])
until = time.monotonic() + 5
while gloos_threads() and time.monotonic() < until:  # the system forgets a thread a little after its end
    time.sleep(0.01)
if gloos_threads():
    sys.exit("threads of torch's outlive the command")
sys.exit(code)
"""


def run(tmp_path: Path, *doing: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a process for each text of what it does; return how they ended, in order."""
    (tmp_path / "command.py").write_text(COMMAND)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(len(doing)):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(doing)),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        command = [sys.executable, str(tmp_path / "command.py"), *doing]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, env=environment, **pipes))
    said = [process.communicate(timeout=120) for process in processes]
    return [
        subprocess.CompletedProcess(doing, process.returncode, *texts)
        for process, texts in zip(processes, said, strict=True)
    ]


def test_one_process_alone_loads_nothing_for_it(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    done = run_python([sys.executable, tmp_path / "command.py", "7"])
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"given": [7], "accelerate": false}\n', "")


def test_several_processes_are_joined_and_one_of_them_prints(tmp_path: Path) -> None:
    first, second = run(tmp_path, "'one'", "'two'")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == '{"given": ["one", "two"], "accelerate": true}\n'
    assert second.stdout == ""


def test_what_one_process_refuses_all_refuse(tmp_path: Path) -> None:
    for doing in (("refuse()", "0"), ("0", "refuse()")):
        first, second = run(tmp_path, *doing)
        assert (first.returncode, second.returncode) == (2, 2)
        assert first.stderr.splitlines()[-1] == "error: a reason of its own"
        assert second.stderr.splitlines()[-1] == "process 1: error: a reason of its own"


def test_the_others_end_where_a_process_is_lost(tmp_path: Path) -> None:
    first, second = run(tmp_path, "0", "os._exit(9)")
    assert (first.returncode, second.returncode) == (1, 9)
    assert "Traceback" not in first.stderr
    assert first.stderr.count("another process is gone, and its own machine's output says why") == 1
    assert first.stderr.rstrip().endswith("start all of them again with the same command")
