"""SE-ResNets for timm and the Hugging Face Hub; importing this package registers its models with timm."""

from importlib import import_module
from typing import Any

from seresnet_hub.errors import InputError
from seresnet_hub.fusion import fuse
from seresnet_hub.inference import extract_features, predict
from seresnet_hub.mmpretrain import inference_model
from seresnet_hub.models import create, get_model, list_models

# Rooms that load `datasets` or `accelerate` open when they are asked for.
_LATE = {
    "convert": "seresnet_hub.conversion",
    "evaluate": "seresnet_hub.evaluation",
    "load": "seresnet_hub.hub",
    "loader": "seresnet_hub.data",
    "open_split": "seresnet_hub.data",
    "push": "seresnet_hub.hub",
    "split_for": "seresnet_hub.held_out",
    "train": "seresnet_hub.training",
    "verify": "seresnet_hub.hub",
}

__all__ = [
    "InputError",
    "convert",
    "create",
    "evaluate",
    "extract_features",
    "fuse",
    "get_model",
    "inference_model",
    "list_models",
    "load",
    "loader",
    "open_split",
    "predict",
    "push",
    "split_for",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
