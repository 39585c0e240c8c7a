"""Remember the signal with which a scheduler asks a process to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Remember the last SIGTERM or SIGUSR1 by its `name` while entered.

    Later ones are no more than the first: where a job is told to end, each process often gets the signal twice, from
    the scheduler and from its launcher.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # nobody else may
            for name in ("SIGTERM", "SIGUSR1"):
                if hasattr(signal, name):  # Windows has no SIGUSR1
                    number = int(getattr(signal, name))
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
