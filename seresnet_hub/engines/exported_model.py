"""An exported file as a model: what predictions and measurements take, with its runtime behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seresnet_hub.engines import onnx_engine, openvino_engine
from seresnet_hub.engines.exported_files import Record, find_export, read_record
from seresnet_hub.errors import InputError

ENGINES = {"onnx": onnx_engine, "openvino": openvino_engine}


class ExportedModel(nn.Module):
    """A model that an exported file computes; it stays on the CPU, and has no layers."""

    def __init__(self, record: Record) -> None:
        """Take a record; its files are opened at the first batch."""
        super().__init__()
        facts = record.facts
        self.record, self.facts, self.num_classes = record, facts, facts.num_classes
        names = ("architecture", "num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        self.pretrained_cfg: dict[str, Any] = {name: getattr(facts, name) for name in names}
        self.pretrained_cfg |= {"label_names": facts.class_names, "license": facts.license}
        self.register_buffer("_nothing", torch.zeros(()), persistent=False)
        self._engine: Any = None
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `(batch, classes)` for normalised float32 images `(batch, 3, height, width)`."""
        if self._engine is None:
            self._engine = ENGINES[self.facts.format].open_engine(self.record)
        return torch.from_numpy(np.array(self._engine.run(images.numpy())))


def load_exported(name: str) -> ExportedModel:
    """Return the model of a name such as `onnx:DIR` or `openvino:DIR/openvino/openvino_model.xml`."""
    format, _, path = name.partition(":")
    if format not in ENGINES:
        raise InputError(f"{name}: only {' and '.join(ENGINES)} are run")
    return ExportedModel(read_record(find_export(Path(path), format)))
