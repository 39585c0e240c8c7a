"""SE-ResNets for timm and the Hugging Face Hub; importing this package registers its models with timm."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seresnet_hub.environment import version
from seresnet_hub.errors import InputError
from seresnet_hub.fusion import fuse
from seresnet_hub.inference import extract_features, predict
from seresnet_hub.loading import load
from seresnet_hub.mmpretrain import get_model, inference_model
from seresnet_hub.models import create, list_models
from seresnet_hub.recipes import Recipe, get_recipe

if TYPE_CHECKING:
    from seresnet_hub.conversion import convert
    from seresnet_hub.data import loader, open_split
    from seresnet_hub.evaluation import evaluate
    from seresnet_hub.held_out import split_for
    from seresnet_hub.hub import push, verify
    from seresnet_hub.training import train

__version__ = version()

# Modules that load `datasets`, `accelerate` or the Hub's cards are imported when they are asked for.
_LATE = {
    "convert": "seresnet_hub.conversion",
    "evaluate": "seresnet_hub.evaluation",
    "loader": "seresnet_hub.data",
    "open_split": "seresnet_hub.data",
    "push": "seresnet_hub.hub",
    "split_for": "seresnet_hub.held_out",
    "train": "seresnet_hub.training",
    "verify": "seresnet_hub.hub",
}

__all__ = [
    "InputError",
    "Recipe",
    "__version__",
    "convert",
    "create",
    "evaluate",
    "extract_features",
    "fuse",
    "get_model",
    "get_recipe",
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
