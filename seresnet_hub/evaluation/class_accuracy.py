"""How often each class is right, and which other class its images are taken for, from the confusion matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassAccuracy(NamedTuple):
    """One class: its images, how many of them were right, and the wrong class that most of the others were taken for.

    `top1` is in percent, `None` where there are no images; `mistaken_for` is `None` where none was wrong.
    """

    number: int
    images: int
    correct: int
    top1: float | None
    mistaken_for: int | None
    mistaken: int


def per_class(confusion: np.ndarray) -> list[ClassAccuracy]:
    """Return the accuracy of each class from the confusion matrix `(classes, classes)`."""
    rows = []
    for number, predictions in enumerate(confusion):
        images, correct = int(predictions.sum()), int(predictions[number])
        others = predictions.copy()
        others[number] = 0
        mistaken_for = int(others.argmax())
        top1, mistaken = 100 * correct / images if images else None, int(others[mistaken_for])
        rows.append(ClassAccuracy(number, images, correct, top1, mistaken_for if mistaken else None, mistaken))
    return rows


def worst_first(confusion: np.ndarray) -> list[ClassAccuracy]:
    """Return the classes that have images, those of lowest accuracy first."""
    return sorted(
        (row for row in per_class(confusion) if row.images), key=lambda row: (row.correct / row.images, row.number)
    )
