"""What an exported file says of itself: its network, how pictures are prepared for it, and where it comes from."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.field_types import LEAST_CROP_PCT, LONGEST_SIDE

FORMATS = ("onnx", "openvino", "torch-export")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
SECTION = "seresnet_hub"  # of an OpenVINO file's rt_info: where the facts are
DYNAMIC = "dynamic"  # any number of images, any size
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What an exported file says of itself.

    `model` is the name the network was loaded by, without the folders of a machine. `input_size` is (channels, height,
    width); with `dynamic_size` any height and width will do. `mean`, `std`, `interpolation`, `crop_pct` and `crop_mode`
    are timm's, and with `preprocessing` the file does all that itself. `batch` is None where any number of images will
    do. `sha256` is that of the file of weights, `tensors_sha256` that of the tensors before they were fused; `form` is
    how the SE units are written. `held_out` says which images were held out when the network was trained, as a model
    folder records it (see `data.held_out.record_of`). `license` is "", and `class_names` and `held_out` are None, where
    they are not known.
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
    held_out: Mapping[str, Any] | None = None

    @classmethod
    def names(cls) -> list[str]:
        """Return what the facts are called."""
        return [field.name for field in fields(cls)]

    def to_text(self) -> dict[str, str]:
        """Return each fact as JSON, by name: what the file's own metadata holds."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ExportFacts:
        """Return the facts that a parsed JSON object holds. Errors: `InputError` where one is missing or wrong."""
        names = cls.names()
        if sorted(facts) != sorted(names):
            raise InputError(f"its facts are not those of an export: {', '.join(sorted(set(facts) ^ set(names)))}")
        for name, (fits, words) in RULES.items():
            if not fits(facts[name]):
                raise InputError(f"{name!r} is {reprlib.repr(facts[name])}, expected {words}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
        }
        made = cls(**values)
        if made.class_names is not None and len(made.class_names) != made.num_classes:
            raise InputError(f"it has {len(made.class_names)} class names for {made.num_classes} classes")
        if {len(made.mean), len(made.std)} != {made.input_size[0]}:
            raise InputError(f"'mean' and 'std' must have a number for each of the {made.input_size[0]} channels")
        return made

    @classmethod
    def from_text(cls, texts: Mapping[str, str]) -> ExportFacts:
        """Return the facts that a file's metadata holds, as `to_text` writes them; others there are passed over.

        Errors: `InputError` where one is missing or wrong.
        """
        try:
            return cls.from_json({name: json.loads(text) for name, text in texts.items() if name in cls.names()})
        except (ValueError, RecursionError) as error:
            raise InputError(f"its facts are no JSON: {error}") from error


# --- the rules --------------------------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_sha256(value: Any) -> bool:
    """Return whether a value is the text of a sha256."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most  # false of NaN


def _is_numbers(value: Any, least: float) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_number(one, least, 1e6) for one in value)


def _is_size(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(_is_count(one, LONGEST_SIDE) for one in value)


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and all(map(_is_text, value)))


def _is_held_out(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_plain, value.values())))


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float))


MOST_CLASSES = 10_000_000
MOST_IMAGES = 65_536  # of a batch
TEXT = (_is_text, "a text")
FLAG = (lambda value: isinstance(value, bool), "true or false")
# What each fact must be, and in words.
RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: value in FORMATS, f"one of {', '.join(FORMATS)}"),
    "precision": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    **dict.fromkeys(("architecture", "model", "license", "form", "version"), TEXT),
    "num_classes": (lambda value: _is_count(value, MOST_CLASSES), f"a whole number from 1 to {MOST_CLASSES:,}"),
    "class_names": (_is_names, "a list of texts or null"),
    "input_size": (_is_size, f"three positive whole numbers up to {LONGEST_SIDE:,}"),
    "mean": (lambda value: _is_numbers(value, -1e6), "a list of finite numbers"),
    "std": (lambda value: _is_numbers(value, 1e-6), "a list of positive numbers"),
    "interpolation": (lambda value: value in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
    "crop_pct": (lambda value: _is_number(value, LEAST_CROP_PCT, 10), f"a number from {LEAST_CROP_PCT} to 10"),
    "crop_mode": (lambda value: value in CROP_MODES, f"one of {', '.join(CROP_MODES)}"),
    "sha256": (lambda value: value is None or is_sha256(value), "64 hexadecimal digits or null"),
    "tensors_sha256": (is_sha256, "64 hexadecimal digits"),
    **dict.fromkeys(("fused", "dynamic_size", "preprocessing"), FLAG),
    "batch": (lambda value: value is None or _is_count(value, MOST_IMAGES), "a positive whole number or null"),
    "held_out": (_is_held_out, "a table of texts and numbers or null"),
}
