"""SE-ResNets for timm and the Hugging Face Hub; importing this package registers its models with timm."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seresnet_hub.conversion.convert import convert
    from seresnet_hub.data.held_out import split_for
    from seresnet_hub.data.loader import loader
    from seresnet_hub.data.open_split import open_split
    from seresnet_hub.errors import InputError
    from seresnet_hub.evaluation.evaluate import evaluate
    from seresnet_hub.exporting.export import export
    from seresnet_hub.inference.predict import extract_features, iterate_features, predict
    from seresnet_hub.inference.search import search
    from seresnet_hub.inference.write_predictions import write_predictions
    from seresnet_hub.mmpretrain_api import get_model, inference_model
    from seresnet_hub.models import blocks
    from seresnet_hub.models.create import list_models
    from seresnet_hub.models.fusion import fuse
    from seresnet_hub.models.load import load
    from seresnet_hub.publishing.push import push
    from seresnet_hub.publishing.verify import verify
    from seresnet_hub.recipes.recipe import Recipe, get_recipe
    from seresnet_hub.training.train import train

    __version__: str

# A public name is imported from its module when it is asked for: some of them load `datasets`, `accelerate`, the Hub.
_MODULES = {
    "InputError": "seresnet_hub.errors",
    "Recipe": "seresnet_hub.recipes.recipe",
    "convert": "seresnet_hub.conversion.convert",
    "evaluate": "seresnet_hub.evaluation.evaluate",
    "export": "seresnet_hub.exporting.export",
    "extract_features": "seresnet_hub.inference.predict",
    "fuse": "seresnet_hub.models.fusion",
    "get_model": "seresnet_hub.mmpretrain_api",
    "get_recipe": "seresnet_hub.recipes.recipe",
    "inference_model": "seresnet_hub.mmpretrain_api",
    "iterate_features": "seresnet_hub.inference.predict",
    "list_models": "seresnet_hub.models.create",
    "load": "seresnet_hub.models.load",
    "loader": "seresnet_hub.data.loader",
    "open_split": "seresnet_hub.data.open_split",
    "predict": "seresnet_hub.inference.predict",
    "push": "seresnet_hub.publishing.push",
    "search": "seresnet_hub.inference.search",
    "split_for": "seresnet_hub.data.held_out",
    "train": "seresnet_hub.training.train",
    "verify": "seresnet_hub.publishing.verify",
    "write_predictions": "seresnet_hub.inference.write_predictions",
}

__all__ = [
    "InputError",
    "Recipe",
    "__version__",
    "blocks",
    "convert",
    "evaluate",
    "export",
    "extract_features",
    "fuse",
    "get_model",
    "get_recipe",
    "inference_model",
    "iterate_features",
    "list_models",
    "load",
    "loader",
    "open_split",
    "predict",
    "push",
    "search",
    "split_for",
    "train",
    "verify",
    "write_predictions",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("seresnet_hub.environment").version()
    if name == "blocks":
        return import_module("seresnet_hub.models.blocks")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# `python -m seresnet_hub` imports the package before the command; while Python looks for it, argv[0] is "-m".
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == __name__:
    import_module("seresnet_hub_command")
# A command reads its options first, and registers the models after that.
if "seresnet_hub_command" not in sys.modules:
    import_module("seresnet_hub.models.create")
