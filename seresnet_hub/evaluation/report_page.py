"""Make the page of a report: one HTML file that holds all its pictures, and asks for nothing from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from seresnet_hub.data.split import Split
from seresnet_hub.errors import printable
from seresnet_hub.evaluation.calibration import bins_of
from seresnet_hub.evaluation.class_accuracy import ClassAccuracy, worst_first
from seresnet_hub.evaluation.image_records import ImageRecords
from seresnet_hub.evaluation.metrics import class_metrics, interval
from seresnet_hub.evaluation.mistakes import confident_mistakes, confused_pairs, pictures_of, unread_rows
from seresnet_hub.inference.thumbnails import as_jpeg_data_uri, thumbnail
from seresnet_hub.plots import MOST_IN_GRID, axes_as_svg, draw_accuracies, draw_reliability

# What keeps a page of any data set at a few megabytes; a picture takes about 5 KB.
MOST_SHEETS = 20  # of mistakes, each of one class
MOST_ON_A_SHEET = 8
MOST_PAIRS, EXAMPLES_OF_A_PAIR = 10, 4
MOST_ROWS, OPEN_ROWS = 1000, 20  # of the table of classes
MOST_UNREAD = 50
SIDE = 144  # pixels; pictures are shown a little smaller
LONGEST_NAME = 120


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a page tells of: the records of a split's images, and `metrics_of` them.

    `title` says what was measured on what. `facts` are shown below it, each with its name. Labels are numbered as the
    model's classes are.
    """

    records: ImageRecords
    metrics: Mapping[str, float | None]
    split: Split
    title: str
    facts: Mapping[str, str]


def page_of(measured: Measured, confusion: np.ndarray, names: Sequence[str]) -> str:
    """Return the page; reads the pictures that it shows from the split.

    `confusion` counts images by class and prediction, `(classes, classes)`; `names` are the classes'.
    """
    records, split = measured.records.labelled(), measured.split
    images = confusion.sum(axis=1)
    by_class = class_metrics(confusion)
    worst = worst_first(confusion)
    wrong = images - confusion.diagonal()
    shown = [row.number for row in worst if row.correct < row.images][:MOST_SHEETS]
    sheets = [(label, confident_mistakes(records, label, MOST_ON_A_SHEET)) for label in shown]
    pairs = [
        (pair, confident_mistakes(records, pair.label, EXAMPLES_OF_A_PAIR, pair.predicted))
        for pair in confused_pairs(confusion, MOST_PAIRS)
    ]
    unread = unread_rows(measured.records, split)
    mistakes = [mistake for _, some in [*sheets, *pairs] for mistake in some]
    pictures, errors = _pictures(split, [mistake.row for mistake in mistakes], unread[:MOST_UNREAD].tolist())
    right = int(confusion.diagonal().sum())
    full = [_cut(name) for name in names]
    return _template().render(
        title=printable(measured.title),
        facts={name: printable(text) for name, text in measured.facts.items()},
        names=full,
        short=[name.partition(",")[0] for name in full],
        count=len(records.rows),
        right=right,
        top1=right / len(records.rows),
        interval=interval(right, len(records.rows)),
        top5=float((records.classes == records.labels[:, None]).any(axis=1).mean()) if len(names) > 5 else None,
        loss=float(records.losses.mean(dtype=np.float64)),
        guessing=math.log(max(len(names), 2)),
        mean_score=float(records.scores[:, 0].mean(dtype=np.float64)),
        fitted_on=len(records.logit_rows),
        metrics=measured.metrics,
        reliability=Markup(_reliability(records)),
        accuracies=Markup(axes_as_svg(draw_accuracies, confusion)) if len(names) > MOST_IN_GRID else None,
        grid=_grid(confusion) if len(names) <= MOST_IN_GRID else None,
        rows=[_row(row, by_class) for row in worst[:MOST_ROWS]],
        open_rows=OPEN_ROWS,
        classes_with_images=len(worst),
        without_images=[full[label] for label in np.flatnonzero(images == 0)[:MOST_ROWS]],
        sheets=[(label, int(wrong[label]), int(images[label]), some) for label, some in sheets],
        with_mistakes=int((wrong > 0).sum()),
        most_on_a_sheet=MOST_ON_A_SHEET,
        pairs=pairs,
        pictures=pictures,
        unread=errors,
        unread_count=len(unread),
    )


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pct"] = _percent
    return environment.from_string(files(__package__).joinpath("report_page.html").read_text(encoding="utf-8"))


def _percent(share: float | None, digits: int = 1) -> str:
    """Return a share from 0 to 1 in percent; what is not quite none or all is not rounded to it."""
    if share is None or math.isnan(share):
        return "–"
    least = 10.0**-digits
    percent = 100 * share
    if 0 < percent < least:
        return f"<{least:g}"
    return f"{min(percent, 100 - least) if share < 1 else percent:.{digits}f}"


def _cut(name: str) -> str:
    shown = printable(" ".join(name.split()))
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"


def _row(row: ClassAccuracy, by_class: Any) -> dict[str, Any]:
    label = row.number
    return {
        "label": label, "images": row.images, "right": row.correct,
        "precision": float(by_class.precision[label]), "recall": float(by_class.recall[label]),
        "f1": float(by_class.f1[label]), "taken_for": row.mistaken_for, "taken": row.mistaken,
    }  # fmt: skip


def _grid(confusion: np.ndarray) -> list[list[tuple[int, float]]]:
    """Return each cell's images, and their share of the class's."""
    shares = confusion / np.maximum(confusion.sum(axis=1), 1)[:, None]
    return [list(zip(*row, strict=True)) for row in zip(confusion.tolist(), shares.tolist(), strict=True)]


def _reliability(records: ImageRecords) -> str:
    return axes_as_svg(draw_reliability, *bins_of(records.scores[:, 0], records.classes[:, 0] == records.labels))


def _pictures(split: Split, shown: Sequence[int], unread: Sequence[int]) -> tuple[dict[int, str], list[dict[str, str]]]:
    """Return the rows' pictures as addresses that hold them; and of those that were not read, their places and why."""
    pictures, errors = {}, []
    for found in pictures_of(split, [*shown, *unread]):
        if found.row not in unread:
            pictures[found.row] = as_jpeg_data_uri(thumbnail(found.picture, SIDE)) if found.picture else ""
            continue
        why = found.error or "it could not be read when it was measured, but can be read now"
        place = split.place(found.row) + (f" ({found.name})" if found.name else "")
        errors.append({"place": printable(place), "why": printable(why)})
    return pictures, errors
