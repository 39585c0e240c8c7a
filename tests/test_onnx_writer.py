"""An ONNX file says what it is, holds nothing of the machine it was made on, and is what onnx's checker accepts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fusion import network
from test_torch_export_writer import FACTS
from torch import nn

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

from seresnet_hub.engines.export_facts import ExportFacts  # noqa: E402
from seresnet_hub.errors import InputError  # noqa: E402
from seresnet_hub.exporting.onnx_writer import OPSET, layers_of, onnx_model, write_onnx  # noqa: E402
from seresnet_hub.exporting.tracing import traced  # noqa: E402
from seresnet_hub.models.fusion import fuse  # noqa: E402


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network("seresnet20_cifar", size=32).float()


@pytest.fixture(scope="module")
def proto(model: nn.Module) -> Any:
    return onnx_model(traced(fuse(model), batch=None, size=(32, 32)))


def shape_of(value: Any) -> list[str | int]:
    return [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]


def test_the_graph_is_the_network_and_nothing_else(proto: Any) -> None:
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)]
    (images,), (logits,) = proto.graph.input, proto.graph.output
    assert (images.name, shape_of(images)) == ("pixel_values", ["batch", 3, 32, 32])
    assert (logits.name, shape_of(logits)) == ("logits", ["batch", 10])
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert set(kinds) == {"Conv", "Relu", "ReduceMean", "Sigmoid", "Mul", "Add", "Gemm"}


def test_nodes_are_called_by_their_layers(proto: Any, model: nn.Module) -> None:
    layers = layers_of(proto)
    kinds = {node.name: node.op_type for node in proto.graph.node}
    assert len(kinds) == len(proto.graph.node)
    weighted = sorted(layers[name] for name, kind in kinds.items() if kind in ("Conv", "Gemm"))
    assert weighted == sorted(
        name for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    )


def test_the_file_has_the_facts_and_nothing_of_this_machine(tmp_path: Path, proto: Any, model: nn.Module) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(proto, path, FACTS)
    content = path.read_bytes()
    for text in (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), "stack_trace", "Traceback"):
        assert text.encode() not in content
    read = onnx.load(path)
    onnx.checker.check_model(read, full_check=True)
    assert ExportFacts.from_text({entry.key: entry.value for entry in read.metadata_props}) == FACTS
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        (found,) = session.run(["logits"], {"pixel_values": images.numpy()})
        with torch.inference_mode():
            expected = model(images).numpy()
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_the_checker_refuses_is_not_written(tmp_path: Path, proto: Any) -> None:
    broken = type(proto)()
    broken.CopyFrom(proto)
    broken.graph.node[0].op_type = "NoSuchOperation"
    with pytest.raises(InputError, match="onnx's checker refuses the exported network"):
        write_onnx(broken, tmp_path / "model.onnx", FACTS)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnxscript.*pip install .*\[onnx\]"):
        onnx_model(traced(model, batch=1, size=(32, 32)))
