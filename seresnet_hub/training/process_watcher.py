"""The program that runs beside each process of a training run, and notices where another one is gone.

It is a process and not a thread: a GPU that waits for a lost process stops the process that uses it, in a call that may
hold the lock of Python's interpreter, so that none of its threads could say anything. `lost_processes.watched` starts
it, with settings as a line of JSON on standard input; later the word `left` or `failed` there says that its process
ends by itself. The watcher of process 0 is connected with all others, and passes on what it learns. A process is gone
where its watcher's connection closes without such a word, so that nothing depends on how busy a process is. On standard
output `.` says that the watchers are connected, and `!` that the process must end.
"""

from __future__ import annotations

import hmac
import json
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

# How long a process that could say by itself what happened has for it, in seconds.
AFTER_GONE = 1.0
AFTER_FAILED = 5.0
# How often it is looked whether the own process still runs.
TICK = 0.5
# How long the watchers try to reach the first one.
CONNECT = 60.0
# How long a process has to end itself when it is told to.
OBEY = 2.0
# A machine that vanishes closes no connection: it is gone after ten minutes without an answer.
KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 18))


class Connection:
    """A connection to another watcher, which sends lines."""

    def __init__(self, link: socket.socket) -> None:
        self.link, self.rank, self._rest = link, -1, b""
        link.settimeout(CONNECT)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):  # macOS lacks some
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        return self.link.fileno()

    def say(self, *words: object) -> None:
        with suppress(OSError):  # it is gone, which the next read says
            self.link.sendall(" ".join(map(str, words)).encode() + b"\n")

    def heard(self) -> list[list[str]] | None:
        """Return the lines that have come, as words, or None where the connection is closed."""
        try:
            more = self.link.recv(4096)
        except OSError:
            more = b""
        if not more or len(self._rest) > 4096:
            return None
        *lines, self._rest = (self._rest + more).split(b"\n")
        return [line.decode(errors="replace").split() for line in lines]


class Watcher:
    def __init__(self, settings: dict[str, Any], words: str) -> None:
        self._rank, self._token, self._parent = settings["rank"], settings["token"], settings["parent"]
        self._way_out = settings["way_out"]
        self._listener = None if settings["listener"] is None else socket.socket(fileno=settings["listener"])
        self._address, self._port, self._world_size = settings["address"], settings["port"], settings["world_size"]
        self._connecting_until = time.monotonic() + CONNECT
        self._words = words  # from the own process, not yet understood
        self._others: list[Connection] = []
        self._gone, self._deadline = 0, float("inf")  # which one is lost, and when to say so

    def run(self) -> None:
        try:
            if self._listener is not None or self._connect():
                self._watch()
        except Exception as error:  # no reason for the others to take this process for lost
            self._tell("left", self._rank)
            self._print(f"warning: lost processes are no longer noticed at once: {type(error).__name__}: {error}")

    def _watch(self) -> None:
        complete = False
        while True:
            if not complete and (self._connected() or time.monotonic() > self._connecting_until):
                complete = True
                os.write(1, b".")
            ready = _readable(
                [0, *([self._listener] if self._listener else []), *self._others],
                min(TICK, max(0.0, self._deadline - time.monotonic())),
            )
            alive = self._alive()  # before its word is read, which may be its last
            if word := self._word(0 in ready or not alive):
                self._tell(word, self._rank)
                return
            if not alive:
                return  # the others see the connection close
            if self._listener is not None and self._listener.fileno() in ready:
                self._others.append(Connection(self._listener.accept()[0]))
            for other in [other for other in self._others if other.fileno() in ready]:
                if not self._listen(other):
                    return
            if time.monotonic() >= self._deadline:
                self._end_process()
                return

    def _connected(self) -> bool:
        wanted = 1 if self._listener is None else self._world_size - 1
        return sum(other.rank >= 0 for other in self._others) >= wanted

    def _tell(self, word: str, rank: int, *, but: Connection | None = None) -> None:
        for other in self._others:
            if other is not but and other.rank >= 0:
                other.say(word, rank)

    def _connect(self) -> bool:
        """Connect with the first watcher; return False where that cannot be, or is no longer needed."""
        error = ""
        while time.monotonic() < self._connecting_until:
            try:
                link = Connection(socket.create_connection((self._address, self._port), timeout=5))
            except OSError as problem:
                error = problem.strerror or str(problem)
                if self._word(bool(_readable([0], TICK))) or not self._alive():
                    return False
                continue
            link.rank = 0
            link.say("hello", self._token, self._rank)
            self._others.append(link)
            return True
        self._print(
            f"warning: the watcher of this process cannot reach that of process 0 at {self._address}:{self._port} "
            f"({error}), so where a process is lost, nothing may be said for ten minutes"
        )
        return False

    def _alive(self) -> bool:
        return os.getppid() == self._parent

    def _word(self, ready: bool) -> str:
        """Return what the own process says of its end, "" where it says nothing."""
        if ready and _readable([0], 0):
            more = os.read(0, 100)
            if not more and not self._words:  # it is closed: the process is ending, and cannot say how
                time.sleep(TICK / 10)
            self._words += more.decode()
        return self._words.strip() if "\n" in self._words else ""

    def _listen(self, other: Connection) -> bool:
        """Take in what another watcher says; return whether there is still something to watch."""
        said = other.heard()
        for words in said or []:
            if words[:1] == ["hello"] and len(words) == 3 and hmac.compare_digest(words[1], self._token):
                other.rank = int(words[2])
            elif other.rank < 0 or len(words) != 2:  # a stranger
                said = None
                break
            elif words[0] == "left":
                self._others.remove(other)
                return other.rank != 0  # the first one was the link to all others
            else:
                self._lost(int(words[1]), AFTER_FAILED if words[0] == "failed" else AFTER_GONE, words[0], but=other)
                if words[0] == "failed":
                    self._others.remove(other)
                    return True
        if said is None:
            self._others.remove(other)
            if other.rank >= 0:
                self._lost(other.rank, AFTER_GONE, "gone", but=other)
        return True

    def _lost(self, rank: int, grace: float, word: str, *, but: Connection) -> None:
        if self._deadline == float("inf"):
            self._gone = rank
        self._deadline = min(self._deadline, time.monotonic() + grace)
        if self._listener is not None:
            self._tell(word, rank, but=but)

    def _end_process(self) -> None:
        """Say that another process is gone, and end the own one: exit code 1 where its interpreter still runs."""
        self._print(
            f"error: another process is gone, and its own machine's output says why (process {self._gone}): "
            f"{self._way_out}"
        )
        with suppress(OSError):
            os.write(1, b"!")
        deadline = time.monotonic() + OBEY
        while self._alive():
            if time.monotonic() > deadline:
                os.kill(self._parent, signal.SIGKILL)
                return
            time.sleep(0.02)

    def _print(self, line: str) -> None:
        # The first process draws a progress bar, which ends in no new line.
        before = f"process {self._rank}: " if self._rank else "\n" if os.isatty(2) else ""
        with suppress(OSError):
            os.write(2, f"{before}{line}\n".encode())


def _readable(files: Sequence[int | socket.socket | Connection], seconds: float) -> set[int]:
    """Return the numbers of the files that can be read, after at most so many seconds."""
    poll = select.poll()  # `select.select` takes no more than 1,024
    for file in files:
        poll.register(file, select.POLLIN)
    return {number for number, _ in poll.poll(1000 * seconds)}


def main() -> None:
    # They are sent to all processes of a job, and the watcher must not end before the process that it belongs to.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGPIPE"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    given = b""
    while b"\n" not in given:
        more = os.read(0, 4096)
        if not more:
            return
        given += more
    settings, _, words = given.partition(b"\n")
    Watcher(json.loads(settings), words.decode()).run()


if __name__ == "__main__":
    main()
