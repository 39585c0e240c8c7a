"""What faiss proposes must hold the nearest rows of a large index, and what it keeps must never be of other rows."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_files import write_index

from seresnet_hub.errors import InputError
from seresnet_hub.inference import kept_faiss_index
from seresnet_hub.inference.embedding_index import open_index
from seresnet_hub.inference.kept_faiss_index import is_worth_it, proposed_rows
from seresnet_hub.inference.nearest_rows import nearest

# Not importorskip: some versions of Python warn of what faiss does as it is imported.
pytestmark = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")


def clustered(rows: int, seed: int) -> np.ndarray:
    """Vectors around a few dozen centres, as those of pictures are."""
    centres = np.random.default_rng(0).standard_normal((40, 32))
    random = np.random.default_rng(seed)
    return (centres[random.integers(0, 40, rows)] + random.standard_normal((rows, 32)) / 2).astype(np.float32)


def test_most_of_the_nearest_rows_are_proposed_and_then_exact(tmp_path: Path) -> None:
    missing = {3, 4000}
    path = write_index(tmp_path / "index.parquet", clustered(9000, 1), missing=missing)
    index, queries = open_index(path), torch.from_numpy(clustered(50, 2))
    rows = proposed_rows(index, queries, 10)
    assert len(rows) < 2500
    assert not missing & set(rows)
    every, some = nearest(queries, index.blocks(), 10), nearest(queries, index.blocks(among=rows), 10)
    same = [len({*a} & {*b}) for a, b in zip(every.positions.tolist(), some.positions.tolist(), strict=True)]
    assert sum(same) >= 0.9 * 500
    everything = dict(zip(every.positions.ravel().tolist(), every.similarities.ravel().tolist(), strict=True))
    assert everything[int(some.positions[0, 0])] == float(some.similarities[0, 0])
    query = torch.from_numpy(clustered(9000, 1)[70:71])
    own = nearest(query, index.blocks(among=proposed_rows(index, query, 1)), 1)
    assert own.positions.tolist() == [[70]]


def test_it_is_kept_and_built_anew_where_the_rows_are_newer(tmp_path: Path) -> None:
    path = write_index(tmp_path / "index.parquet", clustered(3000, 1))
    queries = torch.from_numpy(clustered(2, 2))
    first = proposed_rows(open_index(path), queries, 5)
    kept = tmp_path / "index.parquet.features.faiss"
    assert sorted(tmp_path.iterdir()) == [path, kept]
    state = kept.stat()
    assert proposed_rows(open_index(path), queries, 5) == first
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    write_index(path, clustered(3000, 5))
    os.utime(path, ns=(state.st_mtime_ns + 10**9,) * 2)
    assert proposed_rows(open_index(path), queries, 5) != first
    assert kept.stat().st_mtime_ns != state.st_mtime_ns
    kept.write_bytes(kept.read_bytes()[:1000])
    os.utime(kept, ns=(state.st_mtime_ns + 2 * 10**9,) * 2)
    with pytest.raises(InputError, match="features.faiss is damaged, remove it"):
        proposed_rows(open_index(path), queries, 5)


def test_it_is_used_for_many_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(write_index(tmp_path / "index.parquet", clustered(100, 1)))
    assert not is_worth_it(index)
    monkeypatch.setattr(kept_faiss_index, "FEW_ROWS", 99)
    assert is_worth_it(index)
    monkeypatch.setattr(kept_faiss_index, "find_spec", lambda name: None)
    assert not is_worth_it(index)
