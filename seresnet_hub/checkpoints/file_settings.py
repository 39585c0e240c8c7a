"""What a checkpoint may say beside its tensors: how images are prepared, what the classes are called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images must be prepared: the fields of timm's pretrained configuration that say so."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    input_size: tuple[int, int, int] = (3, 224, 224)


USUAL_PREPROCESSING = Preprocessing()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a file says beside its shapes: preprocessing, class names, and what had to be assumed."""

    preprocessing: Preprocessing | None = None
    label_names: tuple[str, ...] = ()
    assumed: str = ""
