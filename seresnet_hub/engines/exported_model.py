"""An exported file as a model: what predictions and measurements take, with its runtime behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from seresnet_hub.engines import onnx_engine, openvino_engine
from seresnet_hub.engines.exported_files import Record, checked_bytes
from seresnet_hub.engines.exported_names import found_export
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError

# Facts that timm's config has too, and the record of the images that were held out.
CONFIG = (
    "architecture", "num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "held_out",
)  # fmt: skip


class Engine(Protocol):
    """An exported file, open in its runtime."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the output for a batch."""


Opener = Callable[[Record, Mapping[str, bytes] | None], Engine]
# What opens the files of each format, and the package that it needs.
ENGINES: Mapping[str, tuple[Opener, str]] = {
    "onnx": (onnx_engine.open_engine, "onnxruntime"),
    "openvino": (openvino_engine.open_engine, "openvino"),
}


class ExportedModel(nn.Module):
    """A model that an exported file computes, on the CPU; moving it or changing its type changes nothing.

    It has `facts`, and timm's `num_classes` and `pretrained_cfg`, but no layers. The file is opened in the process and
    at the first batch that needs it, since no runtime outlives a fork; copies open it for themselves.
    """

    def __init__(self, record: Record, name: str, commit: str | None = None) -> None:
        """Take the record of a file, the name it was asked for by, and its commit on the Hub.

        Errors: `InputError` where the runtime is missing, or a file is not the one that the record describes.
        """
        super().__init__()
        facts = record.facts
        if facts.format not in ENGINES:
            raise InputError(f"{name}: load it with torch.export.load; {' and '.join(ENGINES)} are run here")
        if facts.preprocessing:
            raise InputError(
                f"{name} prepares pictures itself, for other programs; predict and validate do that for files that "
                "were exported without --with-preprocessing"
            )
        self._open, package = ENGINES[facts.format]
        require_package(package)
        self.record, self.name, self.commit = record, name, commit
        self.facts, self.num_classes = facts, facts.num_classes
        self.pretrained_cfg: dict[str, Any] = {key: getattr(facts, key) for key in CONFIG}
        self.pretrained_cfg |= {"label_names": facts.class_names, "license": facts.license}
        # Asked for the device and the type of images.
        self._like = nn.Parameter(torch.zeros(()), requires_grad=False)
        self._content: dict[str, bytes] | None = checked_bytes(record)
        self._engine: Engine | None = None
        self._process = 0
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `(batch, classes)` of normalised images `(batch, channels, height, width)`, both float32.

        Errors: `InputError` where the file does not take images of this size, or its runtime fails.
        """
        size = tuple(images.shape[1:])
        channels, *sides = self.facts.input_size
        if images.ndim != 4 or size[0] != channels or (list(size[1:]) != sides and not self.facts.dynamic_size):
            raise InputError(
                f"{self.name} takes images of {channels} x {' x '.join(map(str, sides))} alone: export the model with "
                "another --input-size, or with --input-size dynamic"
            )
        if images.is_meta or not len(images):  # shapes alone are asked for
            return images.new_empty(len(images), self.num_classes)
        engine, batch = self.engine(), images.detach().to("cpu", torch.float32).numpy()
        parts = [engine.run(part)[:rows] for part, rows in filled_batches(batch, self.facts.batch)]
        return torch.from_numpy(np.concatenate(parts) if len(parts) > 1 else np.array(parts[0]))

    def engine(self) -> Engine:
        """Return the file, open in this process. Errors: `InputError` where it cannot be opened."""
        engine = self._engine if self._process == os.getpid() else None
        if engine is None:
            engine = self._engine = self._open(self.record, self._content)
            self._process, self._content = os.getpid(), None
        return engine

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def train(self, mode: bool = True) -> ExportedModel:
        """Stay in eval mode. Errors: `InputError` where `mode` asks for training."""
        if mode:
            require_network(self, "training")
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None, "_content": None}


def filled_batches(images: np.ndarray, size: int | None) -> list[tuple[np.ndarray, int]]:
    """Return the images in batches of `size`, the last one filled up with zeros, and how many are in each."""
    if size is None or len(images) == size:
        return [(images, len(images))]
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    lacking = np.zeros((size - len(parts[-1]), *images.shape[1:]), images.dtype)
    return [(part if len(part) == size else np.concatenate([part, lacking]), len(part)) for part in parts]


def load_exported(name: str) -> ExportedModel:
    """Return the model of a name such as `onnx:DIR`, `openvino:DIR/openvino/openvino_model_int8.xml` or `onnx:NS/NAME`.

    Errors: `InputError` where there is no such export, or it cannot be used.
    """
    found = found_export(name)
    return ExportedModel(found.record, name, found.commit)


def require_network(model: nn.Module, what: str) -> None:
    """Raise `InputError` where the model is an exported file, and `what` needs the network itself."""
    if isinstance(model, ExportedModel):
        raise InputError(
            f"{what} needs the network itself, and {model.name} is an exported file: name the model that it was made "
            f"from ({model.facts.model})"
        )
