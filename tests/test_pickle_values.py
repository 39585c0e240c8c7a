"""A file must not choose the keys of its tables so that comparing them takes minutes."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from seresnet_hub.checkpoints.reader import read_checkpoint
from seresnet_hub.errors import InputError


@pytest.mark.parametrize(("keys", "is_read"), [(1_000, True), (4_000, False)])
def test_keys_of_texts_with_one_hash_are_few(tmp_path: Path, keys: int, is_read: bool) -> None:
    """A text and its bytes have one hash, and so have all tuples of them: 32,000 take half a minute to compare."""
    chosen = list(itertools.islice(itertools.product(("a", b"a"), repeat=12), keys))
    assert len({*map(hash, chosen)}) == 1
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps({"model": {"weights": np.ones(2, "f4")}, "other": dict.fromkeys(chosen)}))
    if is_read:
        assert "weights" in read_checkpoint(path).tensors
        return
    with pytest.raises(InputError, match="keys that are neither text nor small"):
        read_checkpoint(path)
