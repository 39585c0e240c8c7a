"""Checkpoint files of other code bases for the tests of conversion, and what compares their conversions with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from references import networks
from torch import nn

from seresnet_hub.conversion.run_in_float64 import float64_outputs

SHORT = (1, 1, 1, 1)


EXACT = 1e-10


def images(*size: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def saved(value: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def load(folder: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def assert_same(folder: Path, original: nn.Module, *size: int) -> None:
    """Compare with the module that wrote the checkpoint, end to end in float64."""
    batch = images(*size)
    expected = original.double()(batch.double()).detach()
    features, logits = float64_outputs(load(folder), batch)
    assert (logits - expected).abs().max() < EXACT
    for found, wanted in zip(features, getattr(original, "features", []), strict=False):
        if isinstance(wanted, torch.Tensor):
            assert (found - wanted).abs().max() < EXACT


def small(**options: Any) -> dict[str, torch.Tensor]:
    return networks.randomise(networks.mmpretrain(SHORT, bottleneck=False, **options)).checkpoint("backbone.")


def bare_file(tmp_path: Path) -> Path:
    """A state dict alone, of an architecture for which timm itself has weights."""
    network = networks.randomise(timm.create_model("seresnet18", num_classes=3))
    timms = timm.get_pretrained_cfg("seresnet50").to_dict()
    assert timms["license"], "timm's entry of an architecture names a licence, which a file of it does not have"
    return saved(network.state_dict(), tmp_path / "mine.pth")
