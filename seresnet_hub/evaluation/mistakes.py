"""Choose the mistakes that are worth looking at, and read the pictures of these rows from their split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from seresnet_hub.data.split import Split
from seresnet_hub.data.units import Row, picture_of, rows_of
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.image_records import ImageRecords


class Mistake(NamedTuple):
    """An image that was taken for another class: its row, both classes, and the scores of both, from 0 to 1."""

    row: int
    label: int
    predicted: int
    score: float
    label_score: float


class ConfusedPair(NamedTuple):
    """A class, another one that images of it are taken for, and how many of its images are."""

    label: int
    predicted: int
    mistaken: int
    images: int


class RowPicture(NamedTuple):
    """The picture of a row, or why it cannot be read, and the name of its file where it has one."""

    row: int
    name: str | None
    picture: Image.Image | None
    error: str | None


def confident_mistakes(records: ImageRecords, label: int, most: int, predicted: int | None = None) -> list[Mistake]:
    """Return the images of a class that the model is surest of and wrong about, surest first.

    With `predicted`, those that were taken for this class.
    """
    said = records.classes[:, 0]
    wrong = (records.labels == label) & (said != label if predicted is None else said == predicted)
    places = np.flatnonzero(wrong)
    surest = places[np.argsort(-records.scores[places, 0], kind="stable")][:most]
    return [
        Mistake(
            int(records.rows[place]), label, int(said[place]), float(records.scores[place, 0]),
            float(np.exp(-records.losses[place])),
        )
        for place in surest
    ]  # fmt: skip


def confused_pairs(confusion: np.ndarray, most: int) -> list[ConfusedPair]:
    """Return the pairs of most images, from the confusion matrix: images by class and prediction; most first."""
    labels, predicted = np.nonzero(confusion)
    labels, predicted = labels[labels != predicted], predicted[labels != predicted]
    counts, images = confusion[labels, predicted], confusion.sum(axis=1)[labels]
    order = np.lexsort((images, -counts))[:most]
    pairs = zip(labels[order], predicted[order], counts[order], images[order], strict=True)
    return [ConfusedPair(*map(int, pair)) for pair in pairs]


def unread_rows(records: ImageRecords, split: Split) -> np.ndarray:
    """Return the rows of a split of which there is no record, since their pictures could not be read."""
    return np.setdiff1d(np.arange(split.rows), records.rows)


def pictures_of(split: Split, rows: Iterable[int]) -> Iterator[RowPicture]:
    """Read the pictures of rows of a split, by their numbers: each unit that has one of them once, and no other.

    What cannot be read says why, so that one row never costs the others.
    """
    wanted = set(rows)
    with tqdm(total=len(wanted), desc="reading pictures for the report", leave=False) as progress:
        for number, row in rows_of(split, wanted):
            progress.update()
            yield RowPicture(number, None, None, str(row)) if isinstance(row, InputError) else _picture(split, row)


def _picture(split: Split, row: Row) -> RowPicture:
    path = (row.image or {}).get("path")
    number, name = row.number, str(path) if path else None
    try:
        return RowPicture(number, name, picture_of(split, row), None)
    except InputError as error:
        return RowPicture(number, name, None, str(error))
