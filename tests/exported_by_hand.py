"""Small exported files with their records, written by hand: a mean of each colour and a matrix, for four classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from seresnet_hub.data.class_names import class_names
from seresnet_hub.engines.export_facts import ExportFacts
from seresnet_hub.engines.exported_files import files_of, record_of, record_text
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.files.model_folder import CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.inference.model_identity import preparation_of, tensors_sha256
from seresnet_hub.models.load import licence_in, load

PROOF = {"precision": "fp32", "largest_difference": 3.2e-07, "worst_batch": 7, "argmax_agreement": 1.0,
         "clear_pictures": 10, "tolerance": 1e-05, "batches": [1, 2, 7], "pictures": 10}  # fmt: skip
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 3 - 2


def facts_of(folder: Path, **changes: Any) -> ExportFacts:
    model: nn.Module = load(folder)
    names = class_names(model)
    prepared = {name: tuple(v) if isinstance(v, list) else v for name, v in preparation_of(model).items()}
    facts = ExportFacts(
        format="onnx", precision="fp32", architecture="seresnet20_cifar", model=f"local-dir:{folder.name}",
        num_classes=4, class_names=None if names is None else tuple(names), **prepared,
        license=licence_in(json.loads((folder / CONFIG_NAME).read_text())), sha256=sha256_of(folder / WEIGHTS_NAME),
        tensors_sha256=tensors_sha256(model), fused=True, form="plain", batch=None, dynamic_size=False,
        preprocessing=False, version="0.1.0",
    )  # fmt: skip
    return replace(facts, **changes)


def write_onnx(path: Path, facts: ExportFacts) -> None:
    import onnx
    from onnx import helper

    batch: Any = facts.batch or "batch"
    inputs = [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [batch, *facts.input_size])]
    outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, 4])]
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "network", inputs, outputs, [onnx.numpy_helper.from_array(WEIGHT, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, facts.to_text())
    onnx.save(model, path)


def write_openvino(path: Path, facts: ExportFacts) -> None:
    import openvino
    from openvino import opset13

    batch = -1 if facts.batch is None else facts.batch
    images = opset13.parameter([batch, *facts.input_size], np.float32, name="images")
    pooled = opset13.reduce_mean(images, opset13.constant(np.array([2, 3])))
    model = openvino.Model([opset13.matmul(pooled, opset13.constant(WEIGHT), False, False)], [images], "network")
    for name, text in facts.to_text().items():
        model.set_rt_info(text, ["seresnet_hub", name])
    openvino.save_model(model, path, compress_to_fp16=False)


def write_export(
    folder: Path, proof: Any = PROOF, accuracy: Any = None, quantization: Any = None, **facts: Any
) -> Path:
    """Write an export of the model in `folder` beside it, with `facts` changed; return the first file."""
    found = facts_of(folder, **facts)
    files = [folder / name for name in files_of(found.format, found.precision)]
    files[0].parent.mkdir(exist_ok=True)
    (write_onnx if found.format == "onnx" else write_openvino)(files[0], found)
    rewrite_record(folder, found, proof, accuracy, quantization)
    return files[0]


def rewrite_record(
    folder: Path, facts: ExportFacts, proof: Any = PROOF, accuracy: Any = None, quantization: Any = None
) -> Path:
    """Write the record of files that are there."""
    hashes = {Path(n).name: sha256_of(folder / n) for n in files_of(facts.format, facts.precision)}
    record = folder / record_of(facts.format, facts.precision)
    record.write_text(record_text(facts, hashes, proof, accuracy, quantization))
    return record


def logits_of(images: np.ndarray) -> np.ndarray:
    """What the network written by hand gives, computed without any runtime."""
    logits: np.ndarray = images.mean((2, 3)) @ WEIGHT
    return logits


def prepared_by_timm(folder: Path, picture: Any) -> np.ndarray:
    """What timm's own transform makes of a picture for the model in `folder`."""
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    images: torch.Tensor = timm.data.create_transform(**config)(picture)[None]
    return images.numpy()
