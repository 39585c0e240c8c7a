"""Quantise an ONNX network to int8, and give single layers of it their float weights and inputs back.

The quantiser is NNCF's, as for OpenVINO, so both formats round alike, and biases are corrected; ONNX Runtime's own
corrects none. It writes QuantizeLinear and DequantizeLinear, which ONNX Runtime turns into integer kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from seresnet_hub.engines.onnx_engine import session_of
from seresnet_hub.exporting.nncf_quantizer import quantized_by_nncf
from seresnet_hub.exporting.sensitive_layers import Run

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def quantized_onnx(
    model: Any, inputs: Sequence[np.ndarray], *, keep: Collection[str] = (), layers: Mapping[str, str]
) -> Any:
    """Return an int8 `onnx.ModelProto`; `model` is not changed.

    `inputs` are batches as the model takes them, `layers` says which layer each node by its name is of, and `keep`
    names the layers that stay as they are; so does what is of no layer. Errors: `InputError` where NNCF fails.
    """
    copied = type(model)()
    copied.CopyFrom(model)
    names = [node.name for node in model.graph.node]
    ignored = [node for node in names if node not in layers or layers[node] in keep]
    return quantized_by_nncf(copied, model.graph.input[0].name, inputs, ignored)


def int8_layers_onnx(quantized: Any, *, layers: Mapping[str, str]) -> list[str]:
    """Return the layers that take rounded values or have rounded weights, in the order in which they compute."""
    rounded = {output for node in quantized.graph.node if node.op_type == DEQUANTIZE for output in node.output}
    nodes = [node for node in quantized.graph.node if node.name in layers and rounded & set(node.input)]
    return list(dict.fromkeys(layers[node.name] for node in nodes))


def run_of_onnx(model: Any) -> Run:
    """Return what runs a network on batches."""
    session = session_of(model.SerializeToString())
    name = session.get_inputs()[0].name
    return lambda inputs: np.concatenate([session.run(None, {name: batch})[0] for batch in inputs])


def with_float_layers_onnx(quantized: Any, model: Any, kept: Collection[str], *, layers: Mapping[str, str]) -> Any:
    """Return the quantised network with some layers in float: weights, biases and inputs as in `model`, not rounded."""
    changed = type(quantized)()
    changed.CopyFrom(quantized)
    graph, floats = changed.graph, {node.name: node for node in model.graph.node}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = {output: node for node in graph.node for output in node.output}
    added: set[str] = set()
    for node in graph.node:
        if layers.get(node.name) not in kept:
            continue
        original = floats.get(node.name)
        for number, name in enumerate(node.input):
            before = original.input[number] if original is not None and number < len(original.input) else ""
            if before in constants:
                node.input[number] = f"{before}/float"
                if before not in added:
                    added.add(before)
                    graph.initializer.add().CopyFrom(constants[before])
                    graph.initializer[-1].name = f"{before}/float"
            elif (end := sources.get(name)) is not None and end.op_type == DEQUANTIZE:
                begin = sources.get(end.input[0])
                if begin is not None and begin.op_type == QUANTIZE:
                    node.input[number] = begin.input[0]
    return changed
