"""A run's speed is that of its steady steps: without compilation, evaluation and saving, and null where it has none."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import loop
from seresnet_hub.training import train as training
from seresnet_hub.training.throughput import FIRST_STEPS, Clock

SMALL = replace(get_recipe("digits"), epochs=2, batch_size=10, input_size=8, shuffle_window=20, workers=0)
CPU = torch.device("cpu")


class Hands:
    """A clock's hands, which a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Run:
    """Steps of a training run: each waits a second for a batch of 8 images, and computes for three."""

    def __init__(self) -> None:
        self.hands, self.images = Hands(), 0
        self.clock = Clock(now=self.hands)

    def interval(self, steps: int, *, size: int = 8, compute: float = 3.0) -> None:
        def batches():  # type: ignore[no-untyped-def]
            for _ in range(steps):
                self.hands.seconds += 1
                yield size

        self.clock.start()
        for batch in self.clock.batches(batches()):
            self.hands.seconds += compute
            self.images += batch
            self.clock.step(batch)
        self.clock.stop(self.images)
        self.hands.seconds += 1000  # evaluation, which is no training

    def result(self) -> dict[str, object]:
        return self.clock.result(CPU)


def test_the_first_steps_are_not_of_the_speed() -> None:
    run = Run()
    run.interval(1, compute=99)  # compiles
    run.interval(FIRST_STEPS - 1)
    assert run.result() == {
        "images_per_second": None, "waiting_share": None, "first_steps_seconds": 100 + 4.0 * (FIRST_STEPS - 1),
        "peak_bytes": None,
    }  # fmt: skip
    run.interval(5)
    run.interval(6)
    assert run.result()["images_per_second"] == 2.0
    assert run.result()["waiting_share"] == 0.25
    assert run.result()["first_steps_seconds"] == 100 + 4.0 * (FIRST_STEPS - 1)


def test_a_batch_of_another_size_is_compiled_anew() -> None:
    run = Run()
    run.interval(FIRST_STEPS)
    run.interval(1, size=4, compute=49)
    first = run.result()["first_steps_seconds"]
    assert first == 4.0 * FIRST_STEPS + 50
    assert run.result()["images_per_second"] is None
    run.interval(1, size=4, compute=1)
    assert (run.result()["images_per_second"], run.result()["first_steps_seconds"]) == (2.0, first)


def test_an_interval_that_reaches_from_the_first_steps_to_others_does_not_count() -> None:
    run = Run()
    run.interval(FIRST_STEPS - 1)
    run.interval(20)
    assert run.result()["images_per_second"] is None
    run.interval(20)
    assert run.result()["images_per_second"] == 2.0


def test_no_batch_is_kept_that_its_user_has_dropped() -> None:
    batches = Clock().batches(torch.zeros(1) for _ in range(2))
    for _ in range(2):
        batch = next(batches)
        kept = weakref.ref(batch)
        del batch
        assert kept() is None


def test_profiled_steps_do_not_count() -> None:
    told: list[object] = []

    class Slow:
        complete = False

        def begin(self) -> None:
            told.append("begin")
            run.hands.seconds += 50

        def end(self, steps: int) -> None:
            told.append(steps)
            run.hands.seconds += 50
            self.complete = True

    run = Run()
    run.clock = Clock(Slow(), now=run.hands)
    run.interval(FIRST_STEPS)
    assert told == []
    run.interval(7)
    assert told == ["begin", 7]
    assert run.result()["images_per_second"] is None
    run.interval(9)
    assert told == ["begin", 7]
    assert run.result()["images_per_second"] == 2.0


def test_training_counts_its_steady_steps(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step computes for a second, the first one for a hundred, and so does whatever is no step."""
    hands = Hands()
    backward, steps = torch.Tensor.backward, []

    def slow_backward(self: torch.Tensor, *args: object, **options: object) -> None:
        hands.seconds += 1 if steps else 100
        steps.append(1)
        backward(self, *args, **options)

    def slow(function: Callable[..., object]) -> Callable[..., object]:
        def after(*args: object, **options: object) -> object:
            hands.seconds += 100
            return function(*args, **options)

        return after

    monkeypatch.setattr(torch.Tensor, "backward", slow_backward)
    for name in ("measure", "save_run", "save_checkpoint", "Loader"):
        monkeypatch.setattr(loop, name, slow(getattr(loop, name)))
    monkeypatch.setattr(training, "Clock", lambda profile: Clock(profile, now=hands))
    recipe = replace(SMALL, epochs=9, eval_every=4, checkpoint_steps=3)
    result = training.train(recipe, data=numbers, output=tmp_path / "run")
    assert len(steps) == 9 * 4
    assert (result["images_per_second"], result["waiting_share"]) == (round(33 / 4, 1), 0)
    assert (result["first_steps_seconds"], result["peak_bytes"]) == (100 + FIRST_STEPS - 1, None)


def test_a_short_run_says_nothing_of_its_speed(tmp_path: Path, numbers: str) -> None:
    result = training.train(SMALL, data=numbers, output=tmp_path / "run")
    assert (result["steps"], result["images_per_second"], result["waiting_share"]) == (8, None, None)
    assert result["first_steps_seconds"] > 0
