"""Records of images for tests, made up from logits."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from seresnet_hub.evaluation.image_records import ImageRecords


def records_of(logits: np.ndarray, labels: np.ndarray) -> ImageRecords:
    """The records of images with these logits `(images, classes)` and labels."""
    logarithms = log_softmax(logits.astype(np.float64), axis=1)
    classes = logits.argsort(axis=1, kind="stable")[:, ::-1][:, :5].astype(np.int32)
    scores = np.take_along_axis(np.exp(logarithms), classes, axis=1).astype(np.float32)
    losses = -np.take_along_axis(logarithms, labels[:, None], axis=1)[:, 0].astype(np.float32)
    return ImageRecords(
        rows=np.arange(len(labels)), labels=labels.astype(np.int64), classes=classes, scores=scores, losses=losses,
        logits=logits.astype(np.float32), logit_rows=np.arange(len(labels)),
    )  # fmt: skip


def made_up(images: int, classes: int, *, seed: int = 0, sure: float = 3.0) -> ImageRecords:
    """Records of a model that is right of most images, and `sure` of what it says."""
    random_numbers = np.random.default_rng(seed)
    labels = random_numbers.integers(classes, size=images)
    logits = random_numbers.normal(size=(images, classes))
    logits[np.arange(images), labels] += 2
    return records_of(sure * logits, labels)
