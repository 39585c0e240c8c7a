"""Keep what is known of each epoch of a run: a row an epoch, with the accuracies where it was measured."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, float]


def is_due(step: int, *, every: int, steps_per_epoch: int, last_step: int) -> bool:
    """Return whether what is done every so many epochs is done after `step`; it always is at the run's end."""
    return step == last_step or (step > 0 and step % (every * steps_per_epoch) == 0)


def add_row(history: list[Row], losses: Sequence[float], *, steps_per_epoch: int, learning_rate: float) -> None:
    """Append the row of the epoch that ended with the last of the `losses` of all steps, if it is not there."""
    step, before = len(losses), rows_until(history)
    if before < step:
        train_loss = statistics.fmean(losses[before:])
        history.append(
            {"step": step, "epoch": step / steps_per_epoch, "learning_rate": learning_rate, "train_loss": train_loss}
        )


def rows_until(history: Sequence[Row]) -> int:
    """Return the step at which the last row ends, 0 where there is none."""
    return int(history[-1]["step"]) if history else 0


def is_measured(history: Sequence[Row], step: int) -> bool:
    """Return whether the accuracy after `step` is in the history."""
    return rows_until(history) == step and bool(history) and "top1" in history[-1]


def is_best(history: Sequence[Row], key: str) -> bool:
    """Return whether the last row has the largest value of `key` so far, and no other row has it."""
    return history[-1][key] > max((row[key] for row in history[:-1] if key in row), default=-1.0)


def write_summary(history: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV, in the manner of timm's summary; what was not measured is empty."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(history)
