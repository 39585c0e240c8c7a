"""A run's progress says what is due and keeps a row an epoch, and goes on from a checkpoint where it was."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from seresnet_hub.training.progress import Progress, Row
from seresnet_hub.training.run_folder import write_summary


def progress_with(losses: list[float], *, steps_per_epoch: int = 2, last_step: int = 4) -> Progress:
    progress = Progress(steps_per_epoch=steps_per_epoch, last_step=last_step)
    progress.losses, progress.step = losses, len(losses)
    return progress


def test_every_third_epoch_and_the_last_are_due() -> None:
    def due(last_step: int) -> list[int]:
        progress, found = Progress(steps_per_epoch=4, last_step=last_step), []
        for progress.step in range(last_step + 1):
            found += [progress.step] if progress.is_due(3) else []
        return found

    assert due(32) == [12, 24, 32]
    assert due(24) == [12, 24]
    assert due(30) == [12, 24, 30]  # it may end within an epoch


def test_a_row_holds_the_losses_since_the_row_before() -> None:
    progress = progress_with([])
    assert (progress.measured_until, progress.is_measured()) == (0, False)
    progress = progress_with([1.0, 3.0])
    progress.add_row(0.5)
    progress.add_row(0.5)
    assert progress.history == [{"step": 2, "epoch": 1.0, "learning_rate": 0.5, "train_loss": 2.0}]
    progress.losses.append(5.0)
    progress.step = 3
    progress.add_row(0.25)
    assert progress.history[1] == {"step": 3, "epoch": 1.5, "learning_rate": 0.25, "train_loss": 5.0}
    assert not progress.is_measured()
    progress.history[1]["top1"] = 50.0
    assert progress.is_measured()
    progress.step = 2
    assert not progress.is_measured()


def test_the_best_is_the_best_of_the_measured() -> None:
    rows: list[Row] = [{"step": 1}, {"step": 2, "top1": 40.0}, {"step": 3}, {"step": 4, "top1": 40.0}]
    progress = progress_with([])
    progress.history = rows[:2]
    assert progress.is_best("top1")
    progress.history = rows
    assert not progress.is_best("top1")  # the first of equals stays
    progress.history = [*rows, {"step": 5, "top1": 41.0}]
    assert progress.is_best("top1")


def test_images_that_cannot_be_decoded_are_taken_off_when_the_losses_are_read() -> None:
    """Of two processes, each of which met as many as this one."""
    progress = progress_with([])
    both: Any = SimpleNamespace(summed=lambda values: [value.item() * 2 for value in values])
    batches: Any = [SimpleNamespace(total=10, missing=missing) for missing in (0, 2, 1)]
    for batch in batches:
        progress.add_step(batch, torch.tensor(0.25))
    assert (progress.step, progress.seen, progress.losses) == (3, 30, [])
    progress.read_losses(both)
    assert (progress.losses, progress.seen, progress.trained, progress.skipped) == ([0.5] * 3, 24, 24, 6)
    progress.add_step(batches[1], torch.tensor(0.25))
    progress.read_losses(both)
    assert (progress.losses, progress.seen, progress.trained, progress.skipped) == ([0.5] * 4, 30, 30, 10)
    progress.begin_epoch()
    assert (progress.skipped, progress.seen) == (0, 30)


def test_the_first_loss_that_is_no_number_is_named() -> None:
    progress = progress_with([1.0, math.nan, math.inf, 2.0])
    found = progress.first_loss_not_finite(newest=3)
    assert found is not None
    assert found[0] == 2
    assert math.isnan(found[1])
    assert progress.first_loss_not_finite(newest=2) == (3, math.inf)
    assert progress.first_loss_not_finite(newest=1) is None


def test_it_goes_on_from_a_checkpoint() -> None:
    before = progress_with([1.0, 3.0, 5.0])
    before.add_row(0.5)
    after = progress_with([])
    after.load_state_dict(before.state_dict())
    assert (after.step, after.seen, after.history, after.losses) == (3, 0, before.history, [1.0, 3.0, 5.0])
    assert (after.position, after.ended) == (1, False)


def test_what_was_not_measured_is_empty_in_the_summary(tmp_path: Path) -> None:
    rows: list[Row] = [{"step": 1, "train_loss": 0.1}, {"step": 2, "train_loss": 1 / 3, "top1": 40.0}]
    write_summary(rows, tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["top1"] for row in read] == ["", "40.0"]
    assert float(read[1]["train_loss"]) == 1 / 3


def test_the_epochs_that_are_left_are_known_in_advance() -> None:
    """An epoch of 4 steps, an accuracy after every second one and at the end, and a run that ends within an epoch."""
    progress = Progress(steps_per_epoch=4, last_step=14)
    whole = [(0, 0, False), (1, 0, True), (2, 0, False), (3, 0, True)]
    assert progress.epochs_left(2) == whole
    progress.step = 6
    assert progress.epochs_left(2) == [(1, 2, True), *whole[2:]]
    for step, epoch in ((8, 1), (14, 3)):
        progress.step = step
        progress.history = [{"step": step}]  # trained, and not measured yet
        assert progress.epochs_left(2) == [(epoch, None, True), *whole[epoch + 1 :]]
        progress.history[-1]["top1"] = 50.0
        assert progress.epochs_left(2) == whole[epoch + 1 :]
