"""SE-ResNets for timm and the Hugging Face Hub; importing this package registers its models with timm."""

from seresnet_hub.errors import InputError
from seresnet_hub.models import list_models

__all__ = ["InputError", "list_models"]
