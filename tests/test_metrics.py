"""Every metric must be what scikit-learn and the definition say, of classes without images or predictions too."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_records import made_up, records_of
from sklearn.metrics import (
    balanced_accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
)

from seresnet_hub.evaluation.metrics import class_metrics, interval, metrics_of

# Of class 3 there are no images, but a prediction; of class 4 images, but no prediction; of class 5 neither.
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 4, 4, 4])
PREDICTED = np.array([0, 0, 0, 1, 1, 3, 2, 0, 1, 2])


def answers(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float | None]:
    logits = np.random.default_rng(0).uniform(size=(len(labels), classes))
    logits[np.arange(len(labels)), predicted] += 2
    return metrics_of(records_of(logits, labels))


def test_by_hand() -> None:
    found = answers(LABELS, PREDICTED, 6)
    recalls = [3 / 4, 1 / 2, 1, 0, 0]
    precisions = [3 / 4, 1 / 3, 1 / 2, 0, 0]
    f1s = [3 / 4, 2 / 5, 2 / 3, 0, 0]
    images = [4, 2, 1, 0, 3]
    for name, values in (("recall", recalls), ("precision", precisions), ("f1", f1s)):
        assert found[f"{name}_macro"] == pytest.approx(sum(values) / 5)
        weighted = sum(value * count for value, count in zip(values, images, strict=True)) / 10
        assert found[f"{name}_weighted"] == pytest.approx(weighted)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1 + 0) / 4)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(5))
def test_all_are_what_scikit_learn_says(seed: int) -> None:
    random_numbers = np.random.default_rng(seed)
    labels = random_numbers.choice([0, 1, 2, 5, 7, 11], size=200)  # of a model's 12 classes
    predicted = np.where(random_numbers.uniform(size=200) < 0.6, labels, random_numbers.integers(3, 12, size=200))
    found = answers(labels, predicted, 12)
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    for average in ("macro", "weighted"):
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found[f"{ours}_{average}"] == report[f"{average} avg"][theirs]
        for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            assert found[f"{name}_{average}"] == score(labels, predicted, average=average, zero_division=0)
    assert found["balanced_accuracy"] == balanced_accuracy_score(labels, predicted)
    assert found["recall_weighted"] == pytest.approx(float((labels == predicted).mean()))
    assert found["recall_macro"] < found["balanced_accuracy"]


def test_all_are_what_torchmetrics_says() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    found = answers(LABELS, PREDICTED, 6)
    labels, predicted = torch.from_numpy(LABELS), torch.from_numpy(PREDICTED)
    for ours, theirs in (
        ("precision", functional.multiclass_precision), ("recall", functional.multiclass_recall),
        ("f1", functional.multiclass_f1_score),
    ):  # fmt: skip
        for average in ("macro", "weighted"):
            value = theirs(predicted, labels, num_classes=6, average=average).item()
            assert found[f"{ours}_{average}"] == pytest.approx(value, abs=1e-6)


def test_of_one_class_and_of_one_image() -> None:
    """No warning of a library comes through: the suite makes them errors."""
    alone = answers(np.zeros(3, int), np.zeros(3, int), 1)
    assert (alone["f1_macro"], alone["balanced_accuracy"], alone["ece"], alone["temperature"]) == (1, 1, 0, None)
    wrong = answers(np.array([1]), np.array([0]), 2)
    assert (wrong["f1_macro"], wrong["balanced_accuracy"], wrong["recall_weighted"]) == (0, 0, 0)


def test_images_without_a_label_are_left_out() -> None:
    records = made_up(300, 3)
    every_second = np.arange(300) % 2 == 0
    some = replace(
        records,
        labels=np.where(every_second, records.labels, -1),
        losses=np.where(every_second, records.losses, np.nan),
    )
    alone = replace(
        records, rows=records.rows[::2], labels=records.labels[::2], classes=records.classes[::2],
        scores=records.scores[::2], losses=records.losses[::2], logits=records.logits[::2], logit_rows=np.arange(150),
    )  # fmt: skip
    assert metrics_of(some) == metrics_of(alone) != metrics_of(records)
    by_three = replace(some, logits=records.logits[::3], logit_rows=np.arange(0, 300, 3))
    kept = by_three.labelled()
    np.testing.assert_array_equal(kept.rows[kept.logit_rows], np.arange(0, 300, 6))
    np.testing.assert_array_equal(kept.logits, records.logits[::6])
    assert metrics_of(replace(records, labels=np.full(300, -1))) == {}


def test_of_each_class() -> None:
    confusion = confusion_matrix(LABELS, PREDICTED, labels=range(6))
    precision, recall, f1 = class_metrics(confusion)
    np.testing.assert_allclose(precision, [3 / 4, 1 / 3, 1 / 2, 0, math.nan, math.nan])
    np.testing.assert_allclose(recall, [3 / 4, 1 / 2, 1, math.nan, 0, math.nan])
    np.testing.assert_allclose(f1, [3 / 4, 2 / 5, 2 / 3, 0, 0, math.nan])
    assert np.isnan(class_metrics(np.zeros((3, 3), int))).all()


def test_the_interval_of_a_share() -> None:
    """By the formula of Wilson (1927), and where a normal interval would be empty."""
    low, high = interval(93, 100)
    z, share = 1.959963984540054, 0.93
    middle, half = share + z * z / 200, z * math.sqrt(share * (1 - share) / 100 + z * z / 40_000)
    assert (low, high) == pytest.approx(((middle - half) / (1 + z * z / 100), (middle + half) / (1 + z * z / 100)))
    low, high = interval(20, 20)
    assert (round(low, 3), high) == (0.839, 1.0)


def test_the_names_are_the_same_of_any_records() -> None:
    names = {
        "precision_macro", "recall_macro", "f1_macro", "precision_weighted", "recall_weighted", "f1_weighted",
        "balanced_accuracy", "ece", "temperature", "ece_at_temperature",
    }  # fmt: skip
    assert set(metrics_of(made_up(50, 10))) == names
