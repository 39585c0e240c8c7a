"""What each format needs: its packages, how a traced network is written in it, and how the file is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seresnet_hub.engines import onnx_engine, openvino_engine
from seresnet_hub.engines.export_facts import ExportFacts
from seresnet_hub.engines.exported_files import Record
from seresnet_hub.engines.exported_model import filled_batches
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.exporting import onnx_writer, openvino_writer
from seresnet_hub.exporting.torch_export_writer import run_torch_export, write_torch_export

Run = Callable[[np.ndarray], np.ndarray]


def _nothing() -> None:
    """Need no package beside torch."""


def _openvino() -> None:
    require_package("openvino")


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a format is made and run: `convert` takes a traced network, and `write` and `layers` what it returns.

    `precisions` are those that it can be written in, `traced_in` those that the network is traced in; in the others the
    writer or the engine makes them of float32.
    """

    precisions: tuple[str, ...]
    traced_in: tuple[str, ...]
    require: Callable[[], Any]
    convert: Callable[[torch.export.ExportedProgram], Any]
    write: Callable[[Any, Path, ExportFacts], None]
    run: Callable[[Record], Run]
    layers: Callable[[Any], Mapping[str, str]] | None = None


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        precisions=("fp32", "fp16", "int8"), traced_in=("fp16",), require=onnx_writer.require_onnx,
        convert=onnx_writer.onnx_model, write=onnx_writer.write_onnx, layers=onnx_writer.layers_of,
        run=lambda record: onnx_engine.open_engine(record).run,
    ),
    "openvino": Format(
        precisions=("fp32", "fp16", "bf16", "int8"), traced_in=(), require=_openvino,
        convert=openvino_writer.openvino_model, write=openvino_writer.write_openvino, layers=openvino_writer.layers_of,
        run=lambda record: openvino_engine.open_engine(record, cut=False).run,  # as other programs run it
    ),
    "torch-export": Format(
        precisions=("fp32", "fp16", "bf16"), traced_in=("fp16", "bf16"), require=_nothing,
        convert=lambda program: program, write=write_torch_export,
        run=lambda record: run_torch_export(record.path.parent / next(iter(record.sha256))),
    ),
}  # fmt: skip


class ExportUnderTest(nn.Module):
    """An exported file as a model whose accuracy is measured: it takes what the network that it was made of takes."""

    def __init__(self, run: Run, network: Any, batch: int | None) -> None:
        super().__init__()
        self._run, self._batch = run, batch
        self.num_classes, self.pretrained_cfg = network.num_classes, network.pretrained_cfg
        self._like = nn.Parameter(torch.zeros(()), requires_grad=False)  # asked for the device and the type of images
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits for normalised images; of a fixed batch, the last one is filled up with zeros."""
        parts = [self._run(part)[:rows] for part, rows in filled_batches(images.numpy(), self._batch)]
        return torch.from_numpy(np.concatenate(parts))
