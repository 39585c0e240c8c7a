"""The forms in which a picture may be given: a file, an address, encoded bytes, Pillow's image or an array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from seresnet_hub.data.read_image import read_image
from seresnet_hub.errors import InputError
from seresnet_hub.inference.download_image import fetch_picture

ImageInput = str | Path | bytes | Image.Image | np.ndarray
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


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


def read_picture(picture: ImageInput) -> Image.Image:
    """Return the picture as 8-bit RGB (see `read_image`).

    A text with "://" is an address of http or https. An array is uint8: `(height, width, 3)` in RGB order, or grey
    `(height, width)`. Errors: `InputError` names the file or address.
    """
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if not isinstance(picture, (str, Path, bytes, memoryview, Image.Image)):
        raise InputError(f"{type(picture).__name__} is no picture: give paths, bytes, Pillow's images or NumPy arrays")
    if not (isinstance(picture, str) and ADDRESS.match(picture)):
        return read_image(picture)
    try:
        return read_image(fetch_picture(picture))
    except InputError as error:
        raise InputError(f"{picture}: {error}") from error


def _of_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or not array.size:
        scale = "; values in [0, 1] times 255, rounded, are uint8" if array.dtype.kind == "f" else ""
        raise InputError(
            f"an array of {array.dtype} {shape} is no picture: it must be uint8, (height, width, 3) in RGB order, or "
            f"grey (height, width){scale}"
        )
    return Image.fromarray(array).convert("RGB")
