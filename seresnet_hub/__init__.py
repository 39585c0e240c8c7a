"""SE-ResNets for timm and the Hugging Face Hub; importing this package registers its models with timm."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seresnet_hub.environment import version
from seresnet_hub.errors import InputError
from seresnet_hub.inference.predict import extract_features, predict
from seresnet_hub.mmpretrain import get_model, inference_model
from seresnet_hub.models import blocks
from seresnet_hub.models.create import create, list_models
from seresnet_hub.models.fusion import fuse
from seresnet_hub.models.load import load
from seresnet_hub.recipes.recipe import Recipe, get_recipe

if TYPE_CHECKING:
    from seresnet_hub.conversion.convert import convert
    from seresnet_hub.data.held_out import split_for
    from seresnet_hub.data.loader import loader, open_split
    from seresnet_hub.inference.evaluate import evaluate
    from seresnet_hub.publishing.push import push, verify
    from seresnet_hub.training.train import train

__version__ = version()

# Modules that load `datasets`, `accelerate` or the Hub's cards are imported when they are asked for.
_LATE = {
    "convert": "seresnet_hub.conversion.convert",
    "evaluate": "seresnet_hub.inference.evaluate",
    "loader": "seresnet_hub.data.loader",
    "open_split": "seresnet_hub.data.loader",
    "push": "seresnet_hub.publishing.push",
    "split_for": "seresnet_hub.data.held_out",
    "train": "seresnet_hub.training.train",
    "verify": "seresnet_hub.publishing.push",
}

__all__ = [
    "InputError",
    "Recipe",
    "__version__",
    "blocks",
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
