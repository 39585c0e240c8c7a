"""Whether a model is right as often as its scores say, and the temperature that would mend it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from torch.nn import functional as F

if TYPE_CHECKING:
    from seresnet_hub.evaluation.image_records import ImageRecords

BINS = 15  # as in arXiv 1706.04599
# Where the best temperature is looked for; one at an end is none, as where guessing would be better than the model.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
ROWS_AT_ONCE = 4096  # whose logits are held in double precision


class Bins(NamedTuple):
    """The images by the score of their best prediction, in bins of equal width, `(bins,)` each.

    A bin has its upper edge in it, and the first its lower edge too. `confidence` is the mean score of its images and
    `accuracy` the share that is right, from 0 to 1; NaN in a bin without images.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean over images of how far their bin's confidence is from the truth."""
        gaps = np.nan_to_num(abs(self.confidence - self.accuracy))
        return float(np.average(gaps, weights=self.images))


class Calibration(NamedTuple):
    """How far scores are from how often they are right, as they are and at the best temperature.

    `ece` and `bins` are of all images. `temperature` divides the logits so that the mean cross entropy of the images
    whose logits were kept is least; `ece_at_temperature` is that of these very images, so that other images may be
    further from it. Both are `None` where no temperature is best.
    """

    ece: float
    bins: Bins
    temperature: float | None
    ece_at_temperature: float | None


def calibration_of(records: ImageRecords) -> Calibration:
    """Return the calibration of the best predictions (arXiv 1706.04599), of images that all have one label."""
    bins = bins_of(records.scores[:, 0], records.classes[:, 0] == records.labels)
    logits, labels = records.logits, records.labels[records.logit_rows]
    temperature = best_temperature(logits, labels)
    if temperature is None:
        return Calibration(bins.ece, bins, None, None)
    softened = bins_of(best_scores(logits, temperature), logits.argmax(axis=1) == labels)
    return Calibration(bins.ece, bins, temperature, softened.ece)


def bins_of(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> Bins:
    """Return the bins of images by their score, from 0 to 1; `right` is whether each was right."""
    scores = np.minimum(scores.astype(np.float64), 1.0)  # a sum of rounded scores may be above
    accuracy, confidence = calibration_curve(right, scores, pos_label=True, n_bins=bins)
    # calibration_curve leaves out bins without images and does not say which: they are found with its own edges.
    images = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], scores), minlength=bins)
    found = Bins(images, np.full(bins, np.nan), np.full(bins, np.nan))
    found.confidence[images > 0], found.accuracy[images > 0] = confidence, accuracy
    return found


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return what logits `(images, classes)` are to be divided by for the least mean cross entropy; else `None`."""

    def loss(logarithm: float) -> float:
        total = 0.0
        for first in range(0, len(logits), ROWS_AT_ONCE):
            rows = torch.from_numpy(logits[first : first + ROWS_AT_ONCE]).double() / math.exp(logarithm)
            wanted = torch.from_numpy(labels[first : first + ROWS_AT_ONCE])
            total += F.cross_entropy(rows, wanted, reduction="sum").item()
        return total / len(logits)

    ends = math.log(LEAST_TEMPERATURE), math.log(MOST_TEMPERATURE)
    if (logits.argmax(axis=1) == labels).all():  # the lower, the better
        return None
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    at_an_end = min(abs(found.x - end) for end in ends) < 1e-2
    return None if at_an_end else math.exp(found.x)


def best_scores(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the score of the best class of each image at a temperature: float64 `(images,)`."""
    parts = [
        (torch.from_numpy(logits[first : first + ROWS_AT_ONCE]).double() / temperature).softmax(1).amax(1).numpy()
        for first in range(0, len(logits), ROWS_AT_ONCE)
    ]
    return np.concatenate(parts)
