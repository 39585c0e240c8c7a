"""Tensor names must be mapped one to one, and nothing that is not a plain state dict may pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seresnet_hub.checkpoints import from_mmpretrain, read_tensors
from seresnet_hub.errors import InputError


def test_names_map_as_mmpretrain_and_timm_write_them() -> None:
    pairs = {
        "backbone.conv1.weight": "conv1.weight",
        "backbone.bn1.running_mean": "bn1.running_mean",
        "backbone.layer3.5.conv3.weight": "layer3.5.conv3.weight",
        "backbone.layer1.0.bn2.num_batches_tracked": "layer1.0.bn2.num_batches_tracked",
        "backbone.layer1.0.downsample.0.weight": "layer1.0.downsample.0.weight",
        "backbone.layer1.0.downsample.1.running_var": "layer1.0.downsample.1.running_var",
        "backbone.layer2.3.se_layer.conv1.conv.weight": "layer2.3.se.fc1.weight",
        "backbone.layer2.3.se_layer.conv2.conv.bias": "layer2.3.se.fc2.bias",
        "head.fc.weight": "fc.weight",
        "head.fc.bias": "fc.bias",
    }
    tensors = {name: torch.tensor(float(k)) for k, name in enumerate(pairs)}
    mapped = from_mmpretrain(tensors)
    assert list(mapped) == list(pairs.values())
    assert all(mapped[target] is tensors[name] for name, target in pairs.items())


@pytest.mark.parametrize(
    "name", ["conv1.weight", "backbone.stem.0.conv.weight", "ema_backbone_conv1_weight", "head.layers.0.fc.weight"]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"unmapped tensor '{name}'"):
        from_mmpretrain({name: torch.ones(1)})


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, {"state_dict": [torch.ones(1)]}, "text"])
def test_what_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        read_tensors(tmp_path / "file.pth")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing.pth: no such file"):
        read_tensors(tmp_path / "nothing.pth")
    torch.save({"state_dict": {"a": torch.ones(100)}}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:300])
    with pytest.raises(InputError, match="cut.pth cannot be read as plain tensors"):
        read_tensors(tmp_path / "cut.pth")
    torch.save({"state_dict": {"a": torch.ones(1), "b": 3}}, tmp_path / "number.pth")
    with pytest.raises(InputError, match="'b' is no tensor"):
        read_tensors(tmp_path / "number.pth")


@pytest.mark.parametrize("legacy", [True, False])
def test_both_file_formats_are_read(legacy: bool, tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(3)}
    torch.save({"meta": {"x": 1}, "state_dict": tensors}, tmp_path / "f.pth", _use_new_zipfile_serialization=not legacy)
    read = read_tensors(tmp_path / "f.pth")
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert read.keys() == tensors.keys()
