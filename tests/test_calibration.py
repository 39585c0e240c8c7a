"""A calibration error must be the one that others measure, and the temperature the best there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_records import made_up, records_of
from scipy.special import softmax
from sklearn.metrics import log_loss

from seresnet_hub.evaluation.calibration import best_scores, best_temperature, bins_of, calibration_of


def test_by_hand() -> None:
    """Four images in two of five bins, of which the upper edge of one belongs to it, and none in the others."""
    found = bins_of(np.array([0.3, 0.4, 0.9, 1.0]), np.array([True, False, True, True]), bins=5)
    assert found.images.tolist() == [0, 2, 0, 0, 2]
    np.testing.assert_allclose(found.confidence, [np.nan, 0.35, np.nan, np.nan, 0.95])
    np.testing.assert_allclose(found.accuracy, [np.nan, 0.5, np.nan, np.nan, 1.0])
    assert found.ece == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)


@pytest.mark.parametrize("right", [True, False])
def test_where_all_are_right_or_wrong(right: bool) -> None:
    found = bins_of(np.array([0.7, 0.8, 1 + 1e-7], np.float32), np.full(3, right))
    assert found.ece == pytest.approx(abs(right - 2.5 / 3))


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (40, 3), (3000, 10), (500, 100)])
@pytest.mark.parametrize("sure", [0.5, 1.0, 4.0])
def test_the_error_is_what_torchmetrics_says(images: int, classes: int, sure: float) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    records = made_up(images, classes, sure=sure)
    scores = torch.from_numpy(softmax(records.logits, axis=1))
    expected = functional.multiclass_calibration_error(
        scores, torch.from_numpy(records.labels), num_classes=classes, n_bins=15, norm="l1"
    )
    assert calibration_of(records).ece == pytest.approx(expected.item(), abs=1e-5)


def test_the_temperature_is_the_best_of_many() -> None:
    records = made_up(2000, 10, sure=3.0)
    best = best_temperature(records.logits, records.labels)

    def loss(temperature: float) -> float:
        return log_loss(records.labels, softmax(records.logits.astype(np.float64) / temperature, axis=1))

    tried = np.geomspace(0.5, 20, 400)
    losses = [loss(temperature) for temperature in tried]
    assert best == pytest.approx(tried[int(np.argmin(losses))], rel=0.02)
    assert loss(best) <= min(losses)


def test_the_temperature_is_that_of_scikit_learn() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("scikit-learn has temperature scaling from 1.8 on")
    records = made_up(2000, 10, sure=3.0)
    theirs = calibration._TemperatureScaling().fit(records.logits.astype(np.float64), records.labels)
    assert best_temperature(records.logits, records.labels) == pytest.approx(1 / theirs.beta_, rel=1e-3)


def test_a_known_temperature_is_found_again() -> None:
    """Labels drawn from a model's own scores: it is calibrated, and stays so where its logits are multiplied."""
    random_numbers = np.random.default_rng(3)
    logits = random_numbers.normal(size=(20_000, 5)) * 2
    labels = (softmax(logits, axis=1).cumsum(axis=1) < random_numbers.uniform(size=(20_000, 1))).sum(axis=1)
    assert calibration_of(records_of(logits, labels)).ece < 0.015
    found = calibration_of(records_of(2.5 * logits, labels))
    assert found.temperature == pytest.approx(2.5, rel=0.03)
    assert found.ece > 0.1
    assert found.ece_at_temperature is not None
    assert found.ece_at_temperature < 0.015


def test_of_a_part_of_the_logits() -> None:
    """The error is that of all images, and the temperature that of those whose logits were kept."""
    records = made_up(300, 5)
    every_third = np.arange(0, 300, 3)
    found = calibration_of(replace(records, logits=records.logits[every_third], logit_rows=every_third))
    assert found.ece == calibration_of(records).ece
    assert found.temperature == best_temperature(records.logits[every_third], records.labels[every_third])
    assert found.temperature != best_temperature(records.logits, records.labels)


def test_scores_at_a_temperature() -> None:
    logits = np.random.default_rng(0).normal(size=(9000, 4)).astype(np.float32)
    np.testing.assert_allclose(best_scores(logits, 1.7), softmax(logits.astype(float) / 1.7, axis=1).max(axis=1))


def test_there_may_be_no_best_temperature() -> None:
    """Where all images are right, or all wrong, there is always a better one."""
    labels = np.arange(10) % 3
    right, wrong = records_of(5 * np.eye(3)[labels], labels), records_of(5 * np.eye(3)[(labels + 1) % 3], labels)
    for records in (right, wrong):
        found = calibration_of(records)
        assert (found.temperature, found.ece_at_temperature) == (None, None)
    assert best_temperature(np.zeros((3, 1), np.float32), np.zeros(3, int)) is None
