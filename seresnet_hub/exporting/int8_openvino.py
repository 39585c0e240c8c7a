"""Quantise an OpenVINO network to int8, and give single layers of it their float weights and inputs back."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from seresnet_hub.engines.openvino_engine import core, engine_settings
from seresnet_hub.exporting.nncf_quantizer import quantized_by_nncf
from seresnet_hub.exporting.openvino_forms import QUANTIZER
from seresnet_hub.exporting.openvino_writer import WEIGHTED
from seresnet_hub.exporting.sensitive_layers import Run

AUTOMATIC = re.compile(r"[A-Za-z]+_[0-9]+")  # names that OpenVINO counts through the whole process


def quantized_openvino(
    model: Any, inputs: Sequence[np.ndarray], *, keep: Collection[str] = (), layers: Mapping[str, str]
) -> Any:
    """Return an int8 `openvino.Model`; `model` is not changed.

    `inputs` are batches as the model takes them, `layers` says which layer each node by its friendly name is of, and
    `keep` names the layers that stay as they are; so does what is of no layer. Errors: `InputError` where NNCF fails.
    """
    name = model.inputs[0].get_any_name()
    ignored = [node for node in _computed(model) if node not in layers or layers[node] in keep]
    result = quantized_by_nncf(model.clone(), name, inputs, ignored)
    for number, node in enumerate(result.get_ordered_ops()):
        if AUTOMATIC.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    return result


def _computed(model: Any) -> list[str]:
    given = ("Constant", "Parameter", "Result")
    return [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() not in given]


def int8_layers_openvino(quantized: Any, *, layers: Mapping[str, str]) -> list[str]:
    """Return the layers that take rounded values or have rounded weights, in the order in which they compute."""
    found = []
    for node in quantized.get_ordered_ops():
        sources = [value.get_node().get_type_name() for value in node.input_values()]
        rounded = QUANTIZER in sources or (node.get_type_name() in WEIGHTED and sources[1] != "Constant")
        if rounded and node.get_friendly_name() in layers:
            found.append(layers[node.get_friendly_name()])
    return list(dict.fromkeys(found))


def run_of_openvino(model: Any) -> Run:
    """Return what runs a network on batches, computing exactly what is not int8."""
    compiled = core().compile_model(model, "CPU", engine_settings("int8"))
    return lambda inputs: np.concatenate([np.array(compiled(batch)[0]) for batch in inputs])


def with_float_layers_openvino(quantized: Any, model: Any, kept: Collection[str], *, layers: Mapping[str, str]) -> Any:
    """Return the quantised network with some layers in float: weights, biases and inputs as in `model`, not rounded."""
    changed, floats = quantized.clone(), {node.get_friendly_name(): node for node in model.get_ops()}
    for node in changed.get_ordered_ops():
        name = node.get_friendly_name()
        if layers.get(name) not in kept:
            continue
        original = floats.get(name)
        for number in range(len(node.inputs())):
            source = node.input_value(number).get_node()
            before = original.input_value(number).get_node() if original is not None else None
            if before is not None and (constant := _constant(before)) is not None:
                node.input(number).replace_source_output(constant.output(0))
            elif source.get_type_name() == QUANTIZER:
                node.input(number).replace_source_output(source.input_value(0))
    changed.validate_nodes_and_infer_types()
    return changed


def _constant(node: Any) -> Any:
    """Return a copy of a constant, None for what is computed."""
    from openvino import opset13

    if node.get_type_name() != "Constant":
        return None
    return opset13.constant(np.array(node.data), dtype=node.get_element_type())
