"""Remember the signal with which a scheduler asks a process to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_ends_with_training = False


def end_with_training() -> None:
    """Say that this process does nothing after its training but to print the result, as a script."""
    global _ends_with_training
    _ends_with_training = True


class Interruption:
    """Remember the last SIGTERM or SIGUSR1 by its `name` while entered.

    Later ones are no more than the first: where a job is told to end, each process often gets the signal twice, from
    the scheduler and from its launcher. In a process that ends after its training (`end_with_training`), that holds
    beyond the training, until the result has been printed.
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
            # SIGUSR1 is a warning, which asks for nothing that is not done.
            is_done = self.name is not None or signal.Signals(number).name == "SIGUSR1"
            signal.signal(number, signal.SIG_IGN if _ends_with_training and is_done else handler)
        self._before = {}

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
