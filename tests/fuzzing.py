"""Run hostile cases in children with limits of time and memory, and say what became of each.

A child is forked from this process and takes a batch of cases, one after the other. It reports over a pipe; the parent
watches its clock and its memory, kills it where a case exceeds them, and goes on with the next case in a new child. An
audit hook in the child (PEP 578) records what no file of a stranger's may cause, whatever code does it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from seresnet_hub.errors import InputError

Kind = Literal["accepted", "refused", "traceback", "hang", "died", "memory", "executed"]
BATCH = 200  # cases a child takes; each child costs some ten milliseconds
POLL_SECONDS = 0.05
FORBIDDEN = frozenset(
    {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn"}
    | {"pickle.find_class", "marshal.loads", "socket.connect", "socket.sendto", "socket.bind", "urllib.Request"}
    | {"shutil.rmtree", "ctypes.dlopen", "webbrowser.open", "ftplib.connect", "smtplib.connect"}
)


@dataclass(frozen=True)
class Case:
    """One hostile input: what it is called, what `act` is given, and the bytes of its file."""

    name: str
    value: Any
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case; `peak_bytes` is the memory that it added to the child's at most."""

    name: str
    kind: Kind
    detail: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(kw_only=True)
class Report:
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def findings(self) -> list[Outcome]:
        """The cases that were neither accepted nor refused within the limits."""
        return [outcome for outcome in self.outcomes if outcome.kind not in ("accepted", "refused")]

    def summary(self) -> dict[str, Any]:
        """Return the counts of each kind, the slowest case and the one that took most memory."""
        slowest = max(self.outcomes, key=lambda outcome: outcome.seconds)
        largest = max(self.outcomes, key=lambda outcome: outcome.peak_bytes)
        return {
            "cases": len(self.outcomes),
            **Counter(outcome.kind for outcome in self.outcomes),
            "slowest": {"name": slowest.name, "seconds": round(slowest.seconds, 3)},
            "largest": {"name": largest.name, "peak_bytes": largest.peak_bytes},
        }


def attack(
    act: Callable[[Any], object],
    cases: Iterable[Case],
    *,
    seconds: float = 20.0,
    most_bytes: Callable[[int], int] = lambda size: 3 * size + 2**30,
    may_open: Callable[[str], bool] | None = None,
    refusals: tuple[type[BaseException], ...] = (InputError,),
    batch: int = BATCH,
) -> Report:
    """Give each case's value to `act` and return what became of them all, in their order.

    A case is accepted where `act` returns (a text that it returns is kept as the detail), and refused where it raises
    one of `refusals`. All else is a finding: another exception, more than `seconds`, more memory than `most_bytes` of
    the case's size, a child that dies, and an event of `FORBIDDEN` or a file opened that `may_open` does not allow.
    """
    report = Report()
    left = iter(cases)
    waiting: list[Case] = []
    while True:
        waiting += islice(left, batch - len(waiting))
        if not waiting:
            return report
        done = _run_batch(act, waiting, seconds, most_bytes, may_open, refusals)
        report.outcomes += done
        waiting = waiting[len(done) :]


def _run_batch(
    act: Callable[[Any], object],
    cases: Sequence[Case],
    seconds: float,
    most_bytes: Callable[[int], int],
    may_open: Callable[[str], bool] | None,
    refusals: tuple[type[BaseException], ...],
) -> list[Outcome]:
    """Return the outcomes of the first cases of a batch: of all, or of those up to one that ended the child."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which the child does not need
        child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(writing, act, cases, may_open, refusals)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            return _watch(child, pipe, cases, seconds, most_bytes)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _watch(
    child: int, pipe: BinaryIO, cases: Sequence[Case], seconds: float, most_bytes: Callable[[int], int]
) -> list[Outcome]:
    done: list[Outcome] = []
    text = b""
    start, before, peak = time.monotonic(), _memory(child, "VmRSS"), 0
    while len(done) < len(cases):
        case, passed = cases[len(done)], time.monotonic() - start
        ready, _, _ = select.select([pipe], [], [], POLL_SECONDS)
        if ready:
            piece = pipe.read(65536)
            if not piece:
                ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
                detail = f"signal or exit code {ended.si_status}" if ended else ""
                return [*done, Outcome(name=case.name, kind="died", detail=detail, seconds=passed)]
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                said = Outcome(**json.loads(line))
                if said.kind in ("accepted", "refused") and said.peak_bytes > most_bytes(cases[len(done)].size):
                    said = Outcome(**{**asdict(said), "kind": "memory"})
                done.append(said)
            if lines:
                start, before, peak = time.monotonic(), _memory(child, "VmRSS"), 0
            continue
        peak = max(peak, _memory(child, "VmRSS") - before)
        if passed > seconds:
            return [*done, Outcome(name=case.name, kind="hang", seconds=passed, peak_bytes=peak)]
        if peak > most_bytes(case.size):
            return [*done, Outcome(name=case.name, kind="memory", seconds=passed, peak_bytes=peak)]
    return done


def _be_child(
    pipe: int,
    act: Callable[[Any], object],
    cases: Sequence[Case],
    may_open: Callable[[str], bool] | None,
    refusals: tuple[type[BaseException], ...],
) -> NoReturn:
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            seen.append(f"{event} {arguments!r}"[:300])
        elif event == "open" and may_open is not None and isinstance(arguments[0], (str, bytes)):
            path = os.fsdecode(arguments[0])
            if not may_open(path):
                seen.append(f"open {path}"[:300])

    try:
        faulthandler.disable()  # a child that dies is an outcome, and needs no report of its own
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        sys.addaudithook(hook)
        for case in cases:
            seen.clear()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before, start = _memory(os.getpid(), "VmRSS"), time.monotonic()
            kind, detail = _outcome(act, case.value, refusals)
            if seen:
                kind, detail = "executed", "; ".join(dict.fromkeys(seen))
            passed, peak = time.monotonic() - start, _memory(os.getpid(), "VmHWM") - before
            said = Outcome(name=case.name, kind=kind, detail=detail[-2000:], seconds=passed, peak_bytes=max(peak, 0))
            os.write(pipe, json.dumps(asdict(said)).encode() + b"\n")
    finally:
        os._exit(0)


def _outcome(act: Callable[[Any], object], value: Any, refusals: tuple[type[BaseException], ...]) -> tuple[Kind, str]:
    try:
        found = act(value)
        return "accepted", found if isinstance(found, str) else ""
    except refusals as error:
        return "refused", str(error)
    except BaseException:  # an exit is a finding, too
        return "traceback", traceback.format_exc()


def _memory(process: int, name: str) -> int:
    """Return a process's memory in bytes, resident (`VmRSS`) or at its peak (`VmHWM`); 0 where it has ended."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
