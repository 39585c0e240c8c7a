"""What a model said of each image of a split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageRecords:
    """Of all counted images, sorted by row; scores are probabilities, and losses cross entropies in nats."""

    rows: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    losses: np.ndarray
    logits: np.ndarray | None
