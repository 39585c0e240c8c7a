"""The nearest rows must be scikit-learn's, however they are divided into blocks, and the first of equal ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from seresnet_hub.inference import nearest_rows
from seresnet_hub.inference.nearest_rows import Block, blocks_of, nearest


def random_vectors(rows: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, channels)).astype(np.float32))


@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_they_are_scikit_learns(block: int, refined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_rows, "BLOCK_VALUES", block * 24)
    vectors, queries = random_vectors(500, 24), random_vectors(9, 24, seed=1) * 100
    reference = NearestNeighbors(n_neighbors=12, metric="cosine", algorithm="brute").fit(vectors.double().numpy())
    distances, positions = reference.kneighbors(queries.double().numpy())
    found = nearest(queries, blocks_of(vectors), 12, refined=refined)
    assert found.positions.tolist() == positions.tolist()
    assert found.similarities.dtype == torch.float32
    np.testing.assert_allclose(found.similarities, 1 - distances, atol=1e-7 if refined else 1e-6)


@pytest.mark.parametrize("block", [1, 5, 33, 1000])
def test_of_equal_rows_the_first_come_first(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal rows lie at different places of blocks, where products of matrices round differently."""
    monkeypatch.setattr(nearest_rows, "BLOCK_VALUES", block * 100)
    kinds = random_vectors(4, 100)
    which = np.random.default_rng(2).integers(0, 4, 300)
    found = nearest(kinds[:3], blocks_of(kinds[which]), 90)
    for query, positions in enumerate(found.positions.tolist()):
        own = np.flatnonzero(which == query)
        assert positions[: min(len(own), 90)] == own[:90].tolist()
    assert found.similarities[:, 0].tolist() == [1.0] * 3


def test_vectors_of_zeros_and_opposite_ones() -> None:
    vectors = torch.tensor([[0.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, -3.0], [5.0, 0.0]])
    found = nearest(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), blocks_of(vectors), 9)
    assert found.positions.tolist() == [[4, 0, 2, 3, 1], [0, 1, 2, 3, 4]]
    assert found.similarities.tolist() == [[1.0, 0.0, 0.0, 0.0, -1.0], [0.0] * 5]


def test_positions_are_kept_and_no_rows_are_no_neighbours() -> None:
    far = 2**32 - 1
    block = Block(torch.tensor([7, far]), torch.eye(2))
    assert nearest(torch.eye(2), [block, block._replace(positions=torch.tensor([3, 9]))], 2).positions.tolist() == [
        [3, 7], [9, far],
    ]  # fmt: skip
    assert nearest(torch.eye(2), [], 5).positions.shape == (2, 0)
    empty = Block(torch.empty(0, dtype=torch.int64), torch.empty((0, 2)))
    assert nearest(torch.eye(2), [empty, block], 1).positions.tolist() == [[7], [far]]


def test_none_finds_itself_where_the_queries_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_rows, "BLOCK_VALUES", 40)
    vectors = random_vectors(50, 8)
    reference = NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute").fit(vectors)
    positions = reference.kneighbors(vectors[20:30])[1]
    assert positions[:, 0].tolist() == list(range(20, 30))
    assert nearest(vectors[20:30], blocks_of(vectors), 3, own=20).positions.tolist() == positions[:, 1:].tolist()
    for own in range(20, 30):
        alone = nearest(vectors[own : own + 1], blocks_of(vectors), 3, own=own)
        assert alone.positions.tolist() == positions[own - 20 : own - 19, 1:].tolist()
    alone = nearest(vectors[:1], blocks_of(vectors[:1]), 3, own=0)
    assert alone.similarities.tolist() == [[-torch.inf]]
