"""Which classes a model is right about, and which it takes for which: as lists, tables, pictures and a page."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.calibration import bins_of
from seresnet_hub.evaluation.class_accuracy import per_class, worst_first
from seresnet_hub.evaluation.metrics import class_metrics
from seresnet_hub.evaluation.report_page import Measured, page_of
from seresnet_hub.files.atomic_writing import filling, replacing, write_json, write_text
from seresnet_hub.files.locks import only_writer
from seresnet_hub.files.model_folder import (
    CONFUSION_NAME,
    METRICS_NAME,
    PAGE_NAME,
    PER_CLASS_NAME,
    PICTURE_NAME,
    RELIABILITY_NAME,
)
from seresnet_hub.plots import draw_axes, draw_confusion, draw_reliability


def worst_classes(confusion: np.ndarray, names: Sequence[str] | None = None, most: int = 5) -> list[dict[str, Any]]:
    """Return the classes of lowest accuracy as `{index, name, top1}`, worst first, leaving out those without images."""
    return [
        {
            "index": row.number,
            "name": names[row.number] if names else str(row.number),
            "top1": round(100 * row.correct / row.images, 4),
        }
        for row in worst_first(confusion)[:most]
    ]


def require_report(directory: Path) -> None:
    """Raise `InputError` where no report could be written into `directory`, before the work for it is done."""
    existing = next(folder for folder in (directory, *directory.absolute().parents) if os.path.exists(folder))
    if not os.path.isdir(existing):
        raise InputError(f"cannot write a report into {directory}: {existing} is no folder")
    if directory.is_dir():
        with only_writer(directory, patience=0):
            pass


def write_report(
    directory: Path, confusion: np.ndarray, names: Sequence[str] | None = None, measured: Measured | None = None
) -> None:
    """Write `per_class.csv`, `confusion.csv` and `confusion.png`; a new folder appears whole.

    `confusion` counts images by class (row) and prediction (column); `names` are the classes'. With what was
    `measured` of each image, `index.html`, `metrics.json` and `reliability.png` as well; the page shows pictures, which
    are read for it. Errors: `InputError` where the folder cannot be written.
    """
    named = list(names) if names else [str(number) for number in range(len(confusion))]
    page = None if measured is None else page_of(measured, confusion, named)
    with only_writer(directory) if directory.is_dir() else nullcontext(), filling(directory) as folder:
        _write_table(folder / PER_CLASS_NAME, _class_rows(confusion, named))
        counts = ([name, *row] for name, row in zip(named, confusion.tolist(), strict=True))
        _write_table(folder / CONFUSION_NAME, [["class \\ predicted", *named], *counts])
        with replacing(folder / PICTURE_NAME) as temporary:
            draw_confusion(confusion, named, temporary)
        if measured is not None and page is not None:
            with replacing(folder / RELIABILITY_NAME) as temporary:
                records = measured.records.labelled()
                bins = bins_of(records.scores[:, 0], records.classes[:, 0] == records.labels)
                draw_axes(draw_reliability, *bins, path=temporary)
            write_json(folder / METRICS_NAME, measured.metrics)
            write_text(folder / PAGE_NAME, page)


def _class_rows(confusion: np.ndarray, names: Sequence[str]) -> Iterator[list[Any]]:
    yield ["class", "name", "images", "correct", "top1", "mistaken_for", "mistaken", "precision", "recall", "f1"]
    metrics = class_metrics(confusion)
    for row in per_class(confusion):
        wrong = "" if row.mistaken_for is None else names[row.mistaken_for]
        top1 = "" if row.top1 is None else f"{row.top1:.4f}"
        shares = ["" if np.isnan(values[row.number]) else f"{values[row.number]:.6f}" for values in metrics]
        yield [row.number, names[row.number], row.images, row.correct, top1, wrong, row.mistaken, *shares]


def _write_table(path: Path, rows: Iterable[list[Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
