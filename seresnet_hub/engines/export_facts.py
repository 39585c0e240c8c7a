"""What an exported file says of itself: its network, how pictures are prepared for it, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from seresnet_hub.errors import InputError

FORMATS = ("onnx", "openvino", "torch-export")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What an exported file says of itself.

    `model` is the name the network was loaded by, without the folders of a machine. `input_size` is (channels, height,
    width); with `dynamic_size` any height and width will do. `mean`, `std`, `interpolation`, `crop_pct` and `crop_mode`
    are timm's, and with `preprocessing` the file does all that itself. `batch` is None where any number of images will
    do. `sha256` is that of the file of weights, `tensors_sha256` that of the tensors before they were fused; `form` is
    how the SE units are written. `license` is "" and `class_names` None where they are not known.
    """

    format: str
    precision: str
    architecture: str
    model: str
    num_classes: int
    class_names: tuple[str, ...] | None
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    license: str
    sha256: str | None
    tensors_sha256: str
    fused: bool
    form: str
    batch: int | None
    dynamic_size: bool
    preprocessing: bool
    version: str

    def to_text(self) -> dict[str, str]:
        """Return each fact as JSON, by name: what the file's own metadata holds."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ExportFacts:
        """Return the facts that a parsed JSON object holds. Errors: `InputError` where one is missing or wrong."""
        names = [field.name for field in fields(cls)]
        if sorted(facts) != sorted(names):
            raise InputError(f"its facts are not those of an export: {', '.join(sorted(set(facts) ^ set(names)))}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
        }
        return cls(**values)
