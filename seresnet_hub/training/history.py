"""Keep what is known of each epoch of a run: a row an epoch, with the accuracies where it was measured."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, float]


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
