"""Make an ONNX model of a traced network, with its layers' names, and write it as one file that the checker takes."""

from __future__ import annotations

import ast
import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from seresnet_hub.engines.export_facts import ExportFacts
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError, message_of
from seresnet_hub.exporting.tracing import IMAGES, LOGITS, NETWORK, PICTURES, PROBABILITIES, quiet

OPSET = 18
MOST_BYTES = 2**31 - 1  # of a file without others beside it
SCOPES = "pkg.torch.onnx.name_scopes"  # which modules made a node, outermost first, then the node's own name
# Where a dimension is free, runtimes show these names.
DIMENSIONS = {IMAGES: ("batch", "channels", "height", "width"), PICTURES: ("batch", "height", "width", "channels")}


def require_onnx() -> None:
    """Raise `InputError` where a package is missing that exports to ONNX or reads the file back."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require_package(name, "onnx")


def onnx_model(program: torch.export.ExportedProgram) -> Any:
    """Return the `onnx.ModelProto` of a traced network, in opset 18, with inputs and outputs named as in `tracing`.

    A node is called by the layer it was made by, `layer1.0.conv2/Conv`. Errors: `InputError` where a package is missing
    or torch's exporter cannot write the graph.
    """
    require_onnx()
    (given,) = program.graph_signature.user_inputs
    result = PROBABILITIES if given == PICTURES else LOGITS
    try:
        with quiet(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            exported: Any = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, input_names=[str(given)], output_names=[result],
                external_data=False, optimize=True, verbose=False,
            )  # fmt: skip
            model = exported.model_proto
    except Exception as error:  # the exporter's own, of many lines, and onnxscript's
        raise InputError(f"torch cannot export the network to ONNX: {message_of(error)}") from error
    _name_dimensions(model.graph, str(given))
    _name_by_layers(model)
    return model


def _name_dimensions(graph: Any, given: str) -> None:
    free = {}
    for dimension, name in zip(graph.input[0].type.tensor_type.shape.dim, DIMENSIONS[given], strict=True):
        if dimension.dim_param:
            free[dimension.dim_param] = name
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in free:
                dimension.dim_param = free[dimension.dim_param]


def _name_by_layers(model: Any) -> None:
    """Call nodes by their layers, and drop what the exporter notes beside them: lines of code, and folders here."""
    count: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
        paths = [str(path) for path in ast.literal_eval(scopes)[:-1]]
        layer = paths[-1] if paths else ""
        if layer.startswith(f"{NETWORK}."):
            layer = layer.removeprefix(f"{NETWORK}.")
            name = f"{layer}/{node.op_type}"
            node.name = name + (f"_{count[name]}" if count[name] else "")
            count[name] += 1
    for thing in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input,
                  *model.graph.output, *model.graph.initializer, *model.functions):  # fmt: skip
        thing.ClearField("metadata_props")
        thing.ClearField("doc_string")


def layers_of(model: Any) -> dict[str, str]:
    """Return the layer of the network that each node was made by: `{"layer1.0.conv2/Conv": "layer1.0.conv2"}`."""
    return {node.name: node.name.rpartition("/")[0] for node in model.graph.node if "/" in node.name}


def write_onnx(model: Any, path: Path, facts: ExportFacts) -> None:
    """Write a model with the facts in its metadata, and have onnx's checker read it: structure, types and shapes.

    Errors: `InputError` where it is too large for one file, the checker refuses it, or it cannot be written.
    """
    onnx = require_package("onnx")
    del model.metadata_props[:]
    for name, value in facts.to_text().items():
        model.metadata_props.add(key=name, value=value)
    model.producer_name, model.producer_version = "seresnet-hub", facts.version
    if model.ByteSize() > MOST_BYTES:
        raise InputError(f"the network takes {model.ByteSize():,} bytes, and an ONNX file has {MOST_BYTES:,} at most")
    content = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:  # the checker's, and those of its inference of shapes
        raise InputError(f"onnx's checker refuses the exported network: {message_of(error)}") from error
    path.write_bytes(content)
