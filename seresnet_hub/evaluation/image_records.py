"""What an evaluation says of each image: its best classes, their scores and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from seresnet_hub.data.loader import Batch

# Of more values, the logits of an evenly spaced part of the images are kept: a quarter of a gigabyte.
MOST_LOGITS = 2**26
# The classes that are recorded of each image.
TOP = 5


@dataclass(frozen=True)
class ImageRecords:
    """Every image of a split that could be decoded, sorted by `rows`, their numbers within the split (int64).

    `labels` (int64) are -1 and `losses` (float32, nats) NaN where an image has no label, or a list of them. `classes`
    (int32) and `scores` (float32), `(images, k)`, are the best classes with their probabilities, best first. `logits`
    (float32, `(logit_rows, classes)`) are those of the images at the positions `logit_rows` (int64): of all where they
    have room in memory, else of an evenly spaced part. `paths` are the pictures' names by row, where the rows of a data
    set say them.
    """

    rows: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    losses: np.ndarray
    logits: np.ndarray
    logit_rows: np.ndarray
    paths: Mapping[int, str] = field(default_factory=dict)

    def labelled(self) -> ImageRecords:
        """Return the records of the images that have one label: those that metrics and mistakes are of."""
        has_label = self.labels >= 0
        if has_label.all():
            return self
        kept = has_label[self.logit_rows]
        positions = np.cumsum(has_label) - 1
        return ImageRecords(
            rows=self.rows[has_label], labels=self.labels[has_label], classes=self.classes[has_label],
            scores=self.scores[has_label], losses=self.losses[has_label], logits=self.logits[kept],
            logit_rows=positions[self.logit_rows[kept]], paths=self.paths,
        )  # fmt: skip


class Recorder:
    """Collect `ImageRecords` batch by batch; `images` are those of the whole split, over all processes."""

    def __init__(self, images: int, num_classes: int) -> None:
        self._every = max(-(-images * num_classes // MOST_LOGITS), 1)
        self._num_classes, self._parts = num_classes, list[tuple[np.ndarray, ...]]()
        self._paths: dict[int, str] = {}

    def add(self, logits: torch.Tensor, batch: Batch, labels: torch.Tensor | None) -> None:
        """Record a batch's rows that count: `labels` are -1 where there is none, `None` where no row has one."""
        rows = batch.indices
        self._paths.update(batch.paths)
        logits = logits.float()
        best = logits.softmax(1).topk(min(TOP, self._num_classes), dim=1)
        if labels is None:
            labels = torch.full_like(rows, -1)
        losses = F.cross_entropy(logits, labels.clamp(min=0), reduction="none").where(labels >= 0, torch.nan)
        values = (rows, labels, best.indices.int(), best.values, losses, logits)
        there, *arrays = (value.cpu().numpy() for value in (batch.mask, *values))
        kept = there & (arrays[0] % self._every == 0)
        self._parts.append((*(values[there] for values in arrays[:-1]), arrays[-1][kept]))

    def part(self) -> tuple[tuple[np.ndarray, ...], dict[int, str]]:
        """Return what this process has recorded, for `joined`."""
        if not self._parts:
            best = min(TOP, self._num_classes)
            shapes = ((0,), (0,), (0, best), (0, best), (0,), (0, self._num_classes))
            types = (np.int64, np.int64, np.int32, *[np.float32] * 3)
            return tuple(np.empty(shape, kind) for shape, kind in zip(shapes, types, strict=True)), {}
        parts, self._parts = self._parts, []
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True)), self._paths

    def joined(self, parts: Sequence[tuple[tuple[np.ndarray, ...], dict[int, str]]]) -> ImageRecords:
        """Return the records of all processes from the part of each."""
        rows, labels, classes, scores, losses, logits = (
            np.concatenate(arrays) for arrays in zip(*(part for part, _ in parts), strict=True)
        )  # fmt: skip
        kept = rows % self._every == 0
        by_row, logits_by_row = np.argsort(rows), np.argsort(rows[kept])
        return ImageRecords(
            rows=rows[by_row], labels=labels[by_row], classes=classes[by_row], scores=scores[by_row],
            losses=losses[by_row], logits=logits[logits_by_row], logit_rows=np.flatnonzero(kept[by_row]),
            paths={row: path for _, paths in parts for row, path in paths.items()},
        )  # fmt: skip
