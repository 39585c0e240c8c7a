"""Precision, recall, F1 and balanced accuracy, overall and by class, as scikit-learn defines them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from seresnet_hub.evaluation.calibration import calibration_of

if TYPE_CHECKING:
    from seresnet_hub.evaluation.image_records import ImageRecords


class ClassMetrics(NamedTuple):
    """Of each class, from 0 to 1: float64 `(classes,)`, NaN where it is a division by nothing.

    Precision is that of a class nothing was predicted as, recall that of a class without images, and F1 that of a class
    with neither.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def metrics_of(records: ImageRecords) -> dict[str, float | None]:
    """Return the metrics of the best predictions and of their scores, from 0 to 1, as scikit-learn computes them.

    `…_macro` is the mean over the classes that have images or predictions, each counted alike, and `…_weighted` the
    mean over those that have images, each counted by its images: scikit-learn's defaults. A class with predictions but
    without images counts as 0, and so does the precision of a class with images but without predictions
    (`zero_division=0`). `balanced_accuracy` is the mean recall of the classes that have images. For `ece`,
    `temperature` and `ece_at_temperature` see `calibration_of`. Images without one label are left out; where none has
    one, there are no metrics.
    """
    records = records.labelled()
    labels, predicted = records.labels, records.classes[:, 0]
    found: dict[str, float | None] = {}
    if not len(labels):
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes without images
        for average in ("macro", "weighted"):
            precision, recall, f1, _ = precision_recall_fscore_support(
                labels, predicted, average=average, zero_division=0
            )
            named = {"precision": precision, "recall": recall, "f1": f1}
            found |= {f"{name}_{average}": float(value) for name, value in named.items()}
        found["balanced_accuracy"] = float(balanced_accuracy_score(labels, predicted))
    calibration = calibration_of(records)
    return found | {
        "ece": calibration.ece,
        "temperature": calibration.temperature,
        "ece_at_temperature": calibration.ece_at_temperature,
    }


def class_metrics(confusion: np.ndarray) -> ClassMetrics:
    """Return each class's metrics from the confusion matrix, images by class and prediction, `(classes, classes)`."""
    labels, predicted = np.nonzero(confusion)
    if not len(labels):
        nothing = np.full(len(confusion), np.nan)
        return ClassMetrics(nothing, nothing, nothing)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(len(confusion)), sample_weight=confusion[labels, predicted], average=None,
        zero_division=np.nan,
    )  # fmt: skip
    return ClassMetrics(precision, recall, f1)


def interval(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share of right answers, from 0 to 1 (Wilson's score interval)."""
    found = binomtest(right, images).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)
