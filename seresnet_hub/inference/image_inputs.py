"""Several pictures or one, as a person may give them to a call in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from seresnet_hub.data.picture_list import ImageInput
from seresnet_hub.errors import InputError


def listed(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """Return one picture as a list of it, and several as they are; the first axis of an array of four counts pictures.

    Errors: `InputError` where there are none.
    """
    if isinstance(images, (str, Path, bytes, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim != 4):
        return [images]
    if hasattr(images, "shape") and not isinstance(images, np.ndarray):
        raise InputError(f"a {type(images).__name__} is no picture: give NumPy arrays, Pillow's images, paths or bytes")
    if not len(images):
        raise InputError("no images were given")
    return list(images) if isinstance(images, np.ndarray) else images
