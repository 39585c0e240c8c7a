"""The embedded data set must be scikit-learn's digits, bit for bit, and never be left half written."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from seresnet_hub.data import digits
from seresnet_hub.errors import InputError


def test_the_parquet_files_hold_scikit_learns_digits() -> None:
    folder = digits.digits_folder()
    stored = datasets.load_dataset(str(folder), streaming=True)
    assert stored["train"].num_shards == 4
    source = load_digits()
    seen = 0
    for split in ("train", "validation"):
        assert stored[split].features["label"].names == list("0123456789")
        for row in stored[split].decode(False):
            number = int(Path(row["image"]["path"]).stem)
            assert (number % 5 == 0) == (split == "validation")
            levels = np.asarray(Image.open(BytesIO(row["image"]["bytes"]))).astype(float) * 16 / 255
            assert (levels.round() == source.images[number]).all()
            assert row["label"] == source.target[number]
            seen += 1
    assert seen == 1797


def test_the_samples_are_one_picture_a_class() -> None:
    samples = sorted((digits.digits_folder() / "samples").glob("*/*.png"))
    assert [sample.parent.name for sample in samples] == [str(digit) for digit in range(10)]
    target = load_digits().target
    assert all(target[int(sample.stem)] == int(sample.parent.name) for sample in samples)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set SERESNET_HUB_CACHE"):
        digits.digits_folder()


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(digits, "_png", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left on device"):
        digits.digits_folder()
    assert list(tmp_path.iterdir()) == []
