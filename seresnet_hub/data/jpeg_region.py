"""Decode the part of a JPEG file that a crop shows, and not the rest, with nvImageCodec; on the CPU, without any GPU.

nvImageCodec (NVIDIA; the extra `region`) has libjpeg-turbo's partial decoding. Its pixels are those that torchvision
decodes, also at the region's edges. What stands behind the region is not read, so a file that is cut off would not be
noticed: one that does not end as JPEG files do is to be decoded whole (`ends_as_jpeg`). Then only damage amid a file,
which decoders rarely notice, may pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from seresnet_hub.errors import InputError

LIBRARY = "nvidia.nvimgcodec"
END_OF_PICTURE = b"\xff\xd9"
# libjpeg-turbo interpolates the colours of four columns or fewer in another way, also where they end a wider picture.
LEAST_COLUMNS = 32


class UndecodedJpeg(NamedTuple):
    """A JPEG file of three or one 8-bit components, of which a region is decoded once it is known."""

    data: bytes | memoryview
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.height, self.width


def require_library() -> None:
    """Raise `InputError` where nvImageCodec is not installed."""
    try:
        found = find_spec(LIBRARY)
    except ModuleNotFoundError:  # nothing of that company is installed
        found = None
    if found is None:
        raise InputError(
            "decoder=region needs nvImageCodec, which Linux has: pip install 'seresnet-hub[region]'; decoder=fast "
            "gives the same pixels"
        )


def ends_as_jpeg(data: bytes | memoryview) -> bool:
    return bytes(data[-2:]) == END_OF_PICTURE


def decode_region(jpeg: UndecodedJpeg, top: int, left: int, height: int, width: int) -> torch.Tensor | None:
    """Return the pixels of a region, uint8 `(3, height, width)`; `None` where it cannot be decoded."""
    library, decoder, form = _decoder(os.getpid())
    first = left if width >= LEAST_COLUMNS else max(min(left, jpeg.width - LEAST_COLUMNS), 0)
    last = max(left + width, min(first + LEAST_COLUMNS, jpeg.width))
    region = library.Region(top, first, top + height, last)
    image = decoder.decode(library.CodeStream(jpeg.data).get_sub_code_stream(region=region), params=form)
    pixels = None if image is None else np.asarray(image)
    if pixels is None or pixels.shape != (height, last - first, 3):
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)[:, :, left - first : left - first + width]


@cache
def _decoder(process: int) -> tuple[Any, Any, Any]:
    """Return the library, a decoder that works in the calling thread, and the form of what it makes.

    Made anew in each process, since a forked copy may lack what the library began.
    """
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a damaged picture is reported by who asked for it
    with _standard_error_closed():  # it says there that it found no GPU codecs
        library: Any = import_module(LIBRARY)
        decoder = library.Decoder(
            device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1,
            backends=[library.Backend(library.CPU_ONLY)], options=":fancy_upsampling=1",
        )  # fmt: skip
    form = library.DecodeParams(
        apply_exif_orientation=False, color_spec=library.ColorSpec.SRGB, sample_format=library.SampleFormat.I_RGB
    )
    return library, decoder, form


@contextmanager
def _standard_error_closed() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
