"""How the kit runs commands: each in time, each on its own, every outcome a line of a file as soon as it is known."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PYTHON = sys.executable
# In the environment of everything that the kit starts, so that nothing of it stays behind, whatever session it is in.
MARK = "SERESNET_HUB_GPU_KIT"
MOST_LINES = 40  # of a command's output, in the results


class Running:
    """A command in a process group of its own. Its stderr goes to the kit's own, its stdout is kept and printed."""

    def __init__(self, command: list[str], mark: str) -> None:
        print("$", " ".join(command)[:600], flush=True)
        self.begun = time.time()
        self.lines: list[str] = []
        self._ended: float | None = None
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, errors="replace", start_new_session=True,
            env={**os.environ, MARK: mark},
        )  # fmt: skip
        self.mark = mark
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, seconds: float, grace: float = 4) -> int:
        """Return the exit code; 124 where the command had to be ended, after `seconds`. Nothing of it runs on.

        After a signal it has `grace` seconds to end by itself.
        """
        try:
            code = self.process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            print(f"the time of this command is up after {self.seconds} s", flush=True)
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
            code = 124
        self.kill()
        self._reader.join(2)
        return code

    def kill(self) -> None:
        """End the command and whatever it has started."""
        self._signal(signal.SIGKILL)
        kill_marked(self.mark)
        self.process.wait()

    @property
    def result(self) -> object:
        """The last line of the output where that is a JSON object, as of all scripts here; else the last lines."""
        if self.lines and self.lines[-1].startswith("{"):
            with contextlib.suppress(ValueError):
                return json.loads(self.lines[-1])
        return self.lines[-MOST_LINES:]

    @property
    def seconds(self) -> float:
        """How long it has run, until now or until its end."""
        return round((self._ended or time.time()) - self.begun, 1)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self.lines.append(line.rstrip("\n"))
                print(line.rstrip("\n")[:2000], flush=True)
        self._ended = time.time()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def kill_marked(mark: str) -> None:
    """Kill all processes that have a mark, or one that begins so, in their environment."""
    until = time.time() + 3  # a process that waits for a device ends when it can
    while _kill_those_there(f"{MARK}={mark}".encode()) and time.time() < until:
        time.sleep(0.01)  # some may just have been started


def _kill_those_there(wanted: bytes) -> bool:
    found = False
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if any(one.startswith(wanted) for one in (process / "environ").read_bytes().split(b"\0")):
                os.kill(int(process.name), signal.SIGKILL)
                found = True
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


class Kit:
    """What the parts share: folders, the time that is left, and the file of results.

    `out` is the folder of what comes back, `work` that of everything else; `start` and `limit` are in seconds; `small`
    tries everything at tiny sizes, on a CPU too.
    """

    def __init__(self, out: Path, work: Path, data: Path, *, start: float, limit: float, small: bool) -> None:
        self.out, self.work, self.data, self.small = out, work, data, small
        self.start, self.limit = start, limit
        self.cores = len(os.sched_getaffinity(0))
        self.results = out / "results.jsonl"
        self._lock = threading.RLock()
        self._started = 0
        self._ended = False

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.limit - (time.time() - self.start)

    def record(self, part: str, **facts: object) -> None:
        """Add a line to the results."""
        line = json.dumps({"part": part, "at": round(time.time() - self.start, 1), **facts})
        with self._lock:
            with self.results.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print("RESULT", line[:1500], flush=True)

    def begin(self, command: list[str]) -> Running:
        """Start a command. Errors: `RuntimeError` where the kit has ended."""
        with self._lock:
            if self._ended:
                raise RuntimeError("the kit has ended")
            self._started += 1
            return Running(command, f"{self.work}:{self._started}:")

    def run(self, part: str, seconds: float, command: list[str], **facts: object) -> None:
        """Run a command in at most so many seconds, and record how it went, and further facts."""
        if self.left() < 15:
            return self.record(part, skipped=f"{self.left():.0f} s are left", **facts)
        running = self.begin(command)
        code = running.wait(min(self.budget(seconds), self.left() - 6))
        return self.record(part, rc=code, seconds=running.seconds, result=running.result, **facts)

    def budget(self, seconds: float) -> float:
        """Return the seconds that a part may take: where it is small, a CPU needs other times."""
        return 1200 if self.small else seconds

    def end(self) -> None:
        """Kill whatever the kit has started and still runs; nothing can be started any more."""
        with self._lock:
            self._ended = True
        kill_marked(f"{self.work}:")
