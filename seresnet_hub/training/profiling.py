"""Where the device's time goes in a training step: how long it is busy, and with which kernels."""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from seresnet_hub.environment import hardware
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import write_json
from seresnet_hub.recipes.recipe import Recipe
from seresnet_hub.training.throughput import FIRST_STEPS

# How many steps a profile has at least; it ends at the first look after them.
STEPS = 20
MOST_KERNELS = 60


class Profile:
    """Profile the steps between `begin` and `end`, as often as it takes to have 20 of them, then write a JSON file.

    On a GPU it holds kernels and copies, and the GPU is busy while any of them runs, on any stream. On a CPU, "kernels"
    are torch's operators, each with its own time alone and not that of the operators it calls, and "busy" is the time
    which the main thread spends in them. Errors: `InputError` where the file cannot be written.
    """

    def __init__(self, path: Path, device: torch.device, recipe: Recipe, processes: int) -> None:
        self._path, self._device = path, device
        self._facts = {
            "device": hardware() if device.type == "cuda" else f"{hardware()}: operators of the main thread",
            "torch": torch.__version__, "recipe": recipe.name, "model": recipe.model, "batch_size": recipe.batch_size,
            "processes": processes, "mixed_precision": recipe.mixed_precision, "compile": recipe.compile,
        }  # fmt: skip
        self._running: profile | None = None
        self._begun = self._wall = self._busy = 0.0  # seconds
        self._steps = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)  # of each kernel
        self._calls: Counter[str] = Counter()
        self.summary: dict[str, Any] | None = None

    @property
    def missing(self) -> str:
        """Say why there is no profile at the end of a run."""
        return (
            f"the run ended before there were {STEPS} steps to profile, after the first {FIRST_STEPS} and those of "
            f"batch sizes not met before; {self._path} was not written"
        )

    @property
    def complete(self) -> bool:
        return self.summary is not None

    def begin(self) -> None:
        on_gpu = self._device.type == "cuda"
        kind = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        # One profile is one cycle: there is nothing to accumulate, but torch 2.11 warns where that is left open.
        self._running = profile(activities=[kind], acc_events=True)
        self._running.start()
        self._wait()
        self._begun = time.perf_counter()

    def end(self, steps: int) -> None:
        """End what `begin` began, `steps` steps ago; write the file where there are enough of them now."""
        assert self._running is not None
        self._wait()
        self._wall += time.perf_counter() - self._begun
        self._running.stop()
        kernels = kernels_of(self._running, on_gpu=self._device.type == "cuda")
        self._running = None
        self._busy += covered((event.time_range.start, event.time_range.end) for event, _ in kernels) / 1e6
        for event, microseconds in kernels:
            self._seconds[event.name] += microseconds / 1e6
            self._calls[event.name] += 1
        self._steps += steps
        if self._steps >= STEPS:
            self.summary = self._summary()
            write_json(self._path, {**self._facts, **self.summary, "kernels": self._longest()})

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _summary(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "wall_ms_a_step": round(1e3 * self._wall / self._steps, 3),
            "busy_ms_a_step": round(1e3 * self._busy / self._steps, 3),
            "idle_share": round(1 - self._busy / self._wall, 4),
            "kernels_a_step": round(self._calls.total() / self._steps, 1),
        }

    def _longest(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "ms_a_step": round(1e3 * seconds / self._steps, 4),
                "calls_a_step": round(self._calls[name] / self._steps, 2),
            }
            for name, seconds in sorted(self._seconds.items(), key=lambda item: -item[1])[:MOST_KERNELS]
        ]


def require_profile(path: Path, max_steps: int | None) -> None:
    """Raise `InputError` where a profile could not be written to `path`, or `max_steps` ends the run before it."""
    if max_steps is not None and max_steps < FIRST_STEPS + STEPS:
        raise InputError(
            f"--max-steps {max_steps} ends the run before its profile: {FIRST_STEPS} steps come before one, and it "
            f"takes {STEPS}, so make it {FIRST_STEPS + STEPS} or more"
        )
    try:
        if path.is_dir():
            raise InputError(f"--profile {path} is a folder: name a file")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"cannot write the profile to {path}: {error.strerror or error}") from error


def kernels_of(finished: profile, *, on_gpu: bool) -> list[tuple[Any, float]]:
    """Return the events of the kernels that ran, each with its own microseconds."""
    # A span with a name of somebody's own, such as torch puts around an optimiser's step, is no kernel.
    found: list[Any] = finished.events() or []  # type: ignore[no-untyped-call]
    events = [event for event in found if not event.is_user_annotation]
    if on_gpu:
        return [(event, event.time_range.elapsed_us()) for event in events if event.device_type == DeviceType.CUDA]
    ((main, _),) = Counter(event.thread for event in events).most_common(1) or [(None, 0)]
    return [(event, event.self_cpu_time_total) for event in events if event.thread == main]


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the spans (begin, end) lasts."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
