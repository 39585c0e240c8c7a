"""Make OpenVINO's model of a traced network, with its layers' names, and write it as the pair of .xml and .bin."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seresnet_hub.engines.export_facts import SECTION, ExportFacts
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError, message_of
from seresnet_hub.exporting.tracing import IMAGES, LOGITS, PICTURES, PROBABILITIES, layer_names

OUTPUTS = {IMAGES: LOGITS, PICTURES: PROBABILITIES}
WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")


def openvino_model(program: torch.export.ExportedProgram) -> Any:
    """Return the `openvino.Model` of a traced network, with the input and the output named as in `tracing`.

    An operation is called by the layer it was made by, `layer1.0.conv2/Convolution`. Errors: `InputError` where
    OpenVINO is not installed or cannot convert the graph.
    """
    openvino = require_package("openvino")
    try:
        with _quiet():
            from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

            decoder = TorchFXPythonDecoder.from_exported_program(program)
            model = openvino.convert_model(decoder)
            model.reshape(_input_shape(decoder.fx_gm))  # it takes every dimension for a free one
    except Exception as error:  # the runtime's are RuntimeErrors of many lines
        raise InputError(f"OpenVINO cannot convert the network: {message_of(error)}") from error
    (images,), (result,) = model.inputs, model.outputs
    name = images.get_node().get_friendly_name()
    result.get_tensor().set_names({OUTPUTS[name]})
    result.get_node().set_friendly_name(OUTPUTS[name])
    _name_by_layers(model, layer_names(decoder.fx_gm), _first_arguments(decoder.fx_gm))
    return model


def _input_shape(graph: torch.fx.GraphModule) -> list[int]:
    """Return the shape of the only input, with -1 for what is free."""
    (example,) = (node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder")
    return [side if isinstance(side, int) else -1 for side in example.shape]


def _first_arguments(graph: torch.fx.GraphModule) -> dict[str, str]:
    """Return by the name of each node that of its first argument, where that is a node."""
    nodes = [node for node in graph.graph.nodes if node.args and isinstance(node.args[0], torch.fx.Node)]
    return {node.name: node.args[0].name for node in nodes}


def _name_by_layers(model: Any, layers: dict[str, str], first_arguments: dict[str, str]) -> None:
    """Call the operations by their layers, and number those of one kind in one layer: `layer1.0/Add_1`.

    A convolution that OpenVINO has folded a batch norm into has lost its name; what takes its output tells it.
    """
    count: Counter[str] = Counter()
    for operation in model.get_ordered_ops():
        node = _node_of(operation)
        if node not in layers and operation.get_type_name() in WEIGHTED:
            node = _node_of(next(iter(operation.output(0).get_target_inputs())).get_node())
            while node in first_arguments and not node.startswith("conv"):
                node = first_arguments[node]
        layer = layers.get(node)
        if layer is not None and operation.get_type_name() != "Constant":
            name = f"{layer}/{operation.get_type_name()}"
            operation.set_friendly_name(name + (f"_{count[name]}" if count[name] else ""))
            count[name] += 1


def _node_of(operation: Any) -> str:
    name: str = operation.get_friendly_name().split("/")[0]
    return name


def layers_of(model: Any) -> dict[str, str]:
    """Return the layer of the network that each operation was made by: `{"layer1.0.conv2/Convolution": …}`."""
    operations = [operation for operation in model.get_ordered_ops() if operation.get_type_name() != "Constant"]
    names = [operation.get_friendly_name() for operation in operations]
    return {name: name.rpartition("/")[0] for name in names if name.count("/") == 1}


def write_openvino(model: Any, path: Path, facts: ExportFacts) -> None:
    """Write a float32 or int8 model to `path`, an .xml, and the .bin beside it, with the facts in rt_info.

    They are in its section `seresnet_hub`. In fp16 and bf16 the weights are stored in half of the bytes; what is
    computed in, the engine is told when the file is opened. Errors: `InputError` where the files cannot be written.
    """
    openvino = require_package("openvino")
    written = model.clone()
    for name, value in facts.to_text().items():
        written.set_rt_info(value, [SECTION, name])
    try:
        if facts.precision == "bf16":
            _store_as_bfloat16(written)
        with _quiet():
            openvino.save_model(written, path, compress_to_fp16=facts.precision == "fp16")
    except Exception as error:  # the runtime's are RuntimeErrors of many lines
        raise InputError(f"OpenVINO cannot write {path}: {message_of(error)}") from error


def _store_as_bfloat16(model: Any) -> None:
    """Store the float32 weights of convolutions and products as bfloat16; what computes in it rounds them anyway."""
    import openvino
    from openvino import opset13

    for operation in model.get_ordered_ops():
        weights = operation.input_value(1).get_node() if operation.get_type_name() in WEIGHTED else None
        if weights is None or weights.get_type_name() != "Constant" or weights.get_element_type() != openvino.Type.f32:
            continue
        rounded = torch.from_numpy(np.array(weights.data)).bfloat16().view(torch.float16).numpy()
        tensor = openvino.Tensor(rounded, openvino.Shape(rounded.shape), openvino.Type.bf16)
        constant = openvino.op.Constant(tensor, shared_memory=False)  # the array is not kept
        constant.set_friendly_name(weights.get_friendly_name())
        operation.input(1).replace_source_output(opset13.convert(constant, "f32").output(0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what OpenVINO logs by the root logger, and what it changes there: handlers and the level.

    Where it cannot convert a network it leaves the level at errors, and nobody's warnings would be seen any more.
    """
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
