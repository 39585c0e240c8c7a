"""How fast a training run is once it runs, and how long it waits for its batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch

# Steps at the beginning of a process that say nothing of its speed: code is compiled and kernels are chosen.
FIRST_STEPS = 20
Item = TypeVar("Item")


class Profiles(Protocol):
    """What a `Clock` tells where a profile was asked for."""

    @property
    def complete(self) -> bool: ...

    def begin(self) -> None: ...

    def end(self, steps: int) -> None: ...


class Clock:
    """Take the time of training, in intervals that begin and end where the host has waited for the device anyway.

    Evaluating and saving belong to no interval. The first intervals say nothing of the speed: those that begin within
    the first 20 steps of the process, and each in which a batch is of a size that was not trained on before, since
    that is compiled and tuned anew. Profiled intervals do not count either; all others make the steady speed.
    """

    def __init__(self, profile: Profiles | None = None, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._profile, self._now = profile, now
        self._profiling = self._new_size = self._peak_reset = False
        self._begun, self._waited, self._images = 0.0, 0.0, 0
        self._steps = self._first = 0  # of the process, and of them those before this interval
        self._sizes: set[int] = set()
        self._first_seconds = self._seconds = self._seconds_waited = 0.0
        self._steady_images = 0

    def start(self) -> None:
        """Begin an interval."""
        self._first, self._new_size, self._waited = self._steps, False, 0.0
        if self._steady() and not self._peak_reset:  # workspaces that cuDNN tries out are not what a step needs
            self._peak_reset = True
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.reset_peak_memory_stats()
        self._profiling = self._profile is not None and self._steady() and not self._profile.complete
        if self._profile is not None and self._profiling:
            self._profile.begin()
        self._begun = self._now()

    def batches(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches, and take how long each is waited for."""
        waiting = iter(batches)
        while True:
            asked = self._now()
            found = list(islice(waiting, 1))
            self._waited += self._now() - asked
            if not found:
                return
            yield found.pop()  # a batch that was kept here would keep its memory during the step

    def step(self, size: int) -> None:
        """Count a step on a batch that has `size` rows on this process."""
        self._steps += 1
        self._new_size |= size not in self._sizes
        self._sizes.add(size)

    def stop(self, images: int) -> None:
        """End the interval, where `images` were trained on by all processes since this one began."""
        seconds = self._now() - self._begun
        images, self._images = images - self._images, images
        if self._profile is not None and self._profiling:
            self._profile.end(self._steps - self._first)
        elif self._steady() and not self._new_size:
            self._seconds += seconds
            self._seconds_waited += self._waited
            self._steady_images += images
        else:
            self._first_seconds += seconds

    def _steady(self) -> bool:
        return self._first >= FIRST_STEPS

    def result(self, device: torch.device) -> dict[str, Any]:
        """Return the steady `images_per_second` and `waiting_share`, None where the run was too short for them.

        `waiting_share` is the part of the steady time in which this process waits for batches, `first_steps_seconds`
        what the first intervals took, and `peak_bytes` the most memory that tensors took on the GPU since then, None on
        a CPU.
        """
        known = self._seconds > 0
        return {
            "images_per_second": round(self._steady_images / self._seconds, 1) if known else None,
            "waiting_share": round(self._seconds_waited / self._seconds, 4) if known else None,
            "first_steps_seconds": round(self._first_seconds, 2),
            "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }
