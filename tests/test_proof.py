"""The proof must notice a network that computes something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from foreign_files import SHORT, saved, small
from references import networks

from seresnet_hub.conversion import proof
from seresnet_hub.conversion import reference_networks as references
from seresnet_hub.conversion.convert import convert
from seresnet_hub.errors import InputError


def test_the_proof_notices_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the proof itself: a reference that strides elsewhere must stop the conversion."""
    original = networks.randomise(networks.mmpretrain(SHORT))
    path = saved({"state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth")
    caffe = dataclasses.replace(references.LAYOUTS["mmpretrain"], stride_in=0)
    monkeypatch.setitem(references.LAYOUTS, "mmpretrain", caffe)
    with pytest.raises(InputError, match="computes something else"):
        convert(path, tmp_path / "out")
    assert convert(path, tmp_path / "out", verify=False)["max_abs_diff"] is None


def test_the_proof_notices_another_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the proof from comparing block by block what already entered the blocks differently."""
    path = saved({"state_dict": small()}, tmp_path / "a.pth")
    other = dataclasses.replace(references.LAYOUTS["mmpretrain"], stem_norm="layer1.0.bn1")
    monkeypatch.setitem(references.LAYOUTS, "mmpretrain", other)
    with pytest.raises(InputError, match="computes something else"):
        convert(path, tmp_path / "new" / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_a_new_classifier_where_blocks_are_compared_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the comparison block by block, which must leave a new classifier out."""
    answers, equal = iter([True, False]), proof.is_equal
    monkeypatch.setattr(proof, "is_equal", lambda *pair: next(answers, equal(*pair)))
    path = saved({"state_dict": small()}, tmp_path / "a.pth")
    assert convert(path, tmp_path / "out", num_classes=3)["fresh"] == ["fc.weight", "fc.bias"]
