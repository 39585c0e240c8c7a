"""The k-NN accuracy must be scikit-learn's, weighted and not, within a set and against an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_files import write_index
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.nearest_neighbour_accuracy import nearest_neighbour_accuracy
from seresnet_hub.inference import nearest_rows

Weights = Callable[[np.ndarray], np.ndarray]


def digits(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of digits as features, so that neighbours are often of other classes."""
    data, labels = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).standard_normal(data.shape) * 8
    return (data + noise)[:rows].astype(np.float32), labels[:rows].astype(np.int64)


def reference(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, weights: str | Weights
) -> np.ndarray:
    """The votes of scikit-learn's classifier, a column for each of ten classes."""
    knn = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    knn.fit(features.astype(np.float64), labels)
    found = np.zeros((len(queries), 10))
    found[:, knn.classes_] = knn.predict_proba(queries.astype(np.float64))
    return found


def weighted(distances: np.ndarray) -> np.ndarray:
    return np.exp((1 - distances) / 0.07)


def in_top(votes: np.ndarray, labels: np.ndarray, n: int) -> float:
    best = np.argsort(-votes, axis=1, kind="stable")[:, :n]
    return 100 * float((best == labels[:, None]).any(axis=1).mean())


@pytest.mark.parametrize("k", [1, 5, 20])
def test_leave_one_out_is_scikit_learns(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_rows, "BLOCK_VALUES", 64 * 77)  # blocks of 77 rows
    features, labels = digits(300)
    votes = {
        weights: np.concatenate([
            reference(np.delete(features, one, 0), np.delete(labels, one), features[one : one + 1], k, weights)
            for one in range(len(labels))
        ])
        for weights in (weighted, "uniform")
    }  # fmt: skip
    found = nearest_neighbour_accuracy(torch.from_numpy(features), labels, k=k)
    assert found.top1 == pytest.approx(in_top(votes[weighted], labels, 1))
    assert found.top5 == pytest.approx(in_top(votes[weighted], labels, 5))
    assert found.unweighted_top1 == pytest.approx(in_top(votes["uniform"], labels, 1))
    assert (found.counted, found.neighbours, 30 < found.top1 < 99) == (300, 299, True)


def test_against_an_index_is_scikit_learns(tmp_path: Path) -> None:
    """Rows of the index that have no label or no features are no neighbours; images without a label do not count."""
    features, labels = digits(600)
    known = labels.copy()
    known[::7] = -1
    missing = set(range(3, 400, 50))
    index = write_index(tmp_path / "index.parquet", features[:400], labels=known[:400], missing=missing, group=64)
    used = [row for row in range(400) if known[row] >= 0 and row not in missing]
    counted = [row for row in range(400, 600) if known[row] >= 0]
    votes = reference(features[used], labels[used], features[counted], 20, weighted)
    found = nearest_neighbour_accuracy(torch.from_numpy(features[400:]), known[400:], index)
    assert found.top1 == pytest.approx(in_top(votes, labels[counted], 1))
    assert found.top5 == pytest.approx(in_top(votes, labels[counted], 5))
    assert (found.counted, found.neighbours) == (len(counted), len(used))


def test_more_neighbours_than_rows_and_any_temperature() -> None:
    features = torch.eye(3)
    found = nearest_neighbour_accuracy(features, np.array([1, 0, 0]), k=50, temperature=1e-4)
    assert (found.k, found.neighbours) == (50, 2)
    assert found.top5 == 100.0  # two classes
    assert found.top1 == pytest.approx(200 / 3)  # equal votes for both classes are one for class 0


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    features, labels = digits(20)
    names = [f"class {k}" for k in range(10)]
    index = write_index(tmp_path / "index.parquet", features, labels=labels, names=names)
    vectors = torch.from_numpy(features)
    assert nearest_neighbour_accuracy(vectors, labels, index, class_names=names).top1 == 100.0
    with pytest.raises(InputError, match="its class 0 is 'class 0', the set's is 'zero'"):
        nearest_neighbour_accuracy(vectors, labels, index, class_names=["zero", *names[1:]])
    facts = write_index(tmp_path / "facts.parquet", features, labels=labels, facts={"tensors_sha256": "abc"})
    assert nearest_neighbour_accuracy(vectors, labels, facts, tensors_sha256="abc").counted == 20
    with pytest.raises(InputError, match="facts.parquet was made by other weights than those of the model"):
        nearest_neighbour_accuracy(vectors, labels, facts, tensors_sha256="abd")
    with pytest.raises(InputError, match="have 64 channels, not 3"):
        nearest_neighbour_accuracy(vectors[:, :3], labels, index)
    with pytest.raises(InputError, match="must be positive"):
        nearest_neighbour_accuracy(vectors, labels, k=0)
    with pytest.raises(InputError, match="no image has a label"):
        nearest_neighbour_accuracy(vectors, np.full(20, -1))
    with pytest.raises(InputError, match="no other labelled row"):
        nearest_neighbour_accuracy(vectors[:1], labels[:1])
    unlabelled = write_index(tmp_path / "unlabelled.parquet", features)
    with pytest.raises(InputError, match="has no column 'label'"):
        nearest_neighbour_accuracy(vectors, labels, unlabelled)
