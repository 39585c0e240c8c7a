"""Time calls on a device, and write down what is known as soon as it is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seresnet_hub.errors import InputError

Call = Callable[[torch.Tensor], object]


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_call(call: Call, images: torch.Tensor, calls: int = 1) -> float:
    """Return the mean time of so many calls in a row; a GPU is waited for before the first and after the last alone.

    One call of a small batch would measure how long the waiting takes.
    """
    wait(images.device)
    start = time.perf_counter()
    for _ in range(calls):
        call(images)
    wait(images.device)
    return (time.perf_counter() - start) / calls


def calls_in(seconds: float, one: float) -> int:
    """Return how many calls of `one` second each take about `seconds`, at least one."""
    return max(1, round(seconds / max(one, 1e-6)))


def memory(device: torch.device) -> int:
    """Return the bytes that tensors take on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_memory(call: Call, images: torch.Tensor, before: int) -> int | None:
    """Return the most that a GPU's allocator held during two calls, above what it held `before`; `None` on a CPU.

    Two, as the first may only record what later ones replay.
    """
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(images.device)
    for _ in range(2):
        call(images)
    wait(images.device)
    return torch.cuda.max_memory_allocated(images.device) - before if images.device.type == "cuda" else None


class Log:
    """A file that gets one line of JSON for each thing that becomes known; without a path, nothing is written."""

    def __init__(self, path: Path | None, **always: Any) -> None:
        """Open the file to append to. Errors: `InputError` where it cannot be written."""
        self._path, self._always = path, always
        if path is not None:
            try:
                with path.open("ab+") as file:
                    end = file.tell()
                    file.seek(max(0, end - 1))
                    if file.read(1) not in (b"", b"\n"):  # somebody was killed while he wrote a line
                        file.write(b"\n")
            except OSError as error:
                raise InputError(f"--log {path}: {error.strerror}") from error

    def __call__(self, event: str, **facts: Any) -> None:
        """Append a line in one piece, so that who is killed leaves whole lines."""
        if self._path is None:
            return
        line = json.dumps({"event": event, **self._always, **facts}) + "\n"
        number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(number, line.encode())
        finally:
            os.close(number)
