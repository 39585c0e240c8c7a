"""Every SE network must be the same function in ONNX Runtime and in OpenVINO, fused or not, for any number of images.

`EXPORT_DIFFERENCES=FILE` also writes the differences, a JSON object a line.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from plausible_networks import network
from test_fusion import BASIC, BOTTLENECKS, NOT_COVERED
from timm.layers import SEModule
from torch import nn

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.exporting.export import export
from seresnet_hub.exporting.export_proof import proof_pictures

pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra 'onnx'")
pytest.importorskip("onnxscript", reason="onnxscript is in the extra 'onnx'")
pytest.importorskip("openvino", reason="openvino is in the extra 'openvino'")
pytestmark = pytest.mark.slow

CASES = [(name, True) for name in [*seresnet_hub.list_models(), *sorted(BOTTLENECKS | BASIC)]]
CASES += [(name, False) for name in [*seresnet_hub.list_models(), *sorted(BOTTLENECKS | BASIC | NOT_COVERED)]]
ON_THE_SHORTCUT = ("_post", "_identity")
REAL_SIZE = {"seresnet50", "resnetrs50", "legacy_seresnet50", "seresnext26t_32x4d", "seresnet50_max"}


def on_photographs(name: str, size: int) -> nn.Module:
    """A network whose norms have the statistics of photographs, as trained ones have.

    With those of noise, photographs make some networks overflow: then torch's own float32 is off by 1e-4. Gates that
    stand in the way of the shortcut are nearly open: half open they leave nothing of it after some blocks, and what is
    left is a network without shortcuts, which is chaotic.
    """
    model = network(name, size=max(size, 64))
    for module in model.modules():
        if isinstance(module, SEModule) and name.endswith(ON_THE_SHORTCUT):
            module.fc2.bias.data += 4
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    pictures = torch.from_numpy(proof_pictures(model, input_size=(size, size)))
    with torch.no_grad():
        model.train()(pictures.double())
    return model.eval().float()


def size_of(name: str) -> int:
    """A small side, unless attention has positions of a fixed size, or the network is to be seen as it is used."""
    if "cifar" in name:
        return 32
    if name in ("sebotnet33ts_256", "sehalonet33ts"):
        return 256
    return 224 if name in REAL_SIZE else 64


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize(("name", "fused"), CASES, ids=[f"{n}-{'fused' if f else 'plain'}" for n, f in CASES])
def test_an_architecture_is_exported(name: str, fused: bool, format: str, tmp_path: Any) -> None:
    size = size_of(name)
    found = export(on_photographs(name, size), tmp_path, format=format, fuse=fused, input_size=size)
    if path := os.environ.get("EXPORT_DIFFERENCES"):
        row = {"name": name, "format": format, "fused": fused, "size": size, "difference": found["largest_difference"]}
        with open(path, "a") as file:
            print(json.dumps(row), file=file)
    assert found["largest_difference"] <= 1e-5
    assert found["batches"] == [1, 2, 7]
    assert found["fused"] is fused


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_network_without_blocks_to_fuse_is_exported_as_it_is(format: str, tmp_path: Any) -> None:
    found = export(network("seresnet33ts").float(), tmp_path, format=format, input_size=64)
    assert found["fused"] is False


def test_a_graph_that_computes_something_else_leaves_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from seresnet_hub.exporting import export as exporting

    def gates_forgotten(model: Any, **options: Any) -> Any:
        for block in model.layer1:
            block.gate.gate = type(block.gate.gate)()  # a copy, so that the network itself keeps its own
            block.gate.fc2.bias.data += 1.0
        return traced(model, **options)

    traced = exporting.traced
    monkeypatch.setattr(exporting, "traced", gates_forgotten)
    with pytest.raises(InputError, match="does not compute what the network does"):
        export(network("seresnet50").float(), tmp_path / "there", input_size=64)
    assert not (tmp_path / "there").exists()
