"""A run's history has a row an epoch, with accuracies where it was measured, and the last epoch always is."""

from __future__ import annotations

import csv
from pathlib import Path

from seresnet_hub.training.history import Row, add_row, is_best, is_due, is_measured, rows_until, write_summary


def test_every_third_epoch_and_the_last_are_due() -> None:
    def due(last_step: int) -> list[int]:
        return [step for step in range(last_step + 1) if is_due(step, every=3, steps_per_epoch=4, last_step=last_step)]

    assert due(32) == [12, 24, 32]
    assert due(24) == [12, 24]
    assert due(30) == [12, 24, 30]  # it may end within an epoch


def test_a_row_holds_the_losses_since_the_row_before() -> None:
    history: list[Row] = []
    assert (rows_until(history), is_measured(history, 0)) == (0, False)
    add_row(history, [1.0, 3.0], steps_per_epoch=2, learning_rate=0.5)
    add_row(history, [1.0, 3.0], steps_per_epoch=2, learning_rate=0.5)
    assert history == [{"step": 2, "epoch": 1.0, "learning_rate": 0.5, "train_loss": 2.0}]
    add_row(history, [1.0, 3.0, 5.0], steps_per_epoch=2, learning_rate=0.25)
    assert history[1] == {"step": 3, "epoch": 1.5, "learning_rate": 0.25, "train_loss": 5.0}
    assert not is_measured(history, 3)
    history[1]["top1"] = 50.0
    assert is_measured(history, 3)
    assert not is_measured(history, 2)


def test_the_best_is_the_best_of_the_measured() -> None:
    rows: list[Row] = [{"step": 1}, {"step": 2, "top1": 40.0}, {"step": 3}, {"step": 4, "top1": 40.0}]
    assert is_best(rows[:2], "top1")
    assert not is_best(rows, "top1")  # the first of equals stays
    assert is_best([*rows, {"step": 5, "top1": 41.0}], "top1")


def test_what_was_not_measured_is_empty_in_the_summary(tmp_path: Path) -> None:
    rows: list[Row] = [{"step": 1, "train_loss": 0.1}, {"step": 2, "train_loss": 1 / 3, "top1": 40.0}]
    write_summary(rows, tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["top1"] for row in read] == ["", "40.0"]
    assert float(read[1]["train_loss"]) == 1 / 3
