"""Tensor names must be mapped one to one, and a name that no rule knows must be refused."""

from __future__ import annotations

import pytest
import torch

from seresnet_hub.checkpoints.key_maps import find_source
from seresnet_hub.checkpoints.renaming import rename
from seresnet_hub.errors import InputError


def from_mmpretrain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return rename(find_source(tensors, "mmpretrain"), tensors)[0]


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
    "name", ["conv2.weight", "backbone.stem.3.conv.weight", "other_backbone_conv1_weight", "head.layers.0.fc.weight"]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        from_mmpretrain({name: torch.ones(1)})
