"""A run's history tells the best epoch, and its summary leaves empty what was not measured."""

from __future__ import annotations

import csv
from pathlib import Path

from seresnet_hub.training.history import Row, is_best, write_summary


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
