"""Make pictures small, for sheets of many and for pages that hold them in their own text."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

from PIL import Image

QUALITY = 85  # of JPEG, from 1 to 95


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """Return the picture as RGB, with its longer side `side` pixels long; a smaller picture is enlarged.

    The shorter side has at least one pixel.
    """
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def as_jpeg_data_uri(image: Image.Image) -> str:
    """Return a picture as the text of an address that holds it whole, a JPEG file, for a page without other files."""
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
