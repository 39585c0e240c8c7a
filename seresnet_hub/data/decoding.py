"""Turn encoded pictures into rows of a batch: exactly as Pillow does, or faster with torchvision's JPEG decoder.

The fast way is for JPEG files with one or three components and no rotation; all other pictures go the exact way. Where
a random crop comes first, "region" decodes the crop alone (`jpeg_region`), to the pixels of the fast way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.io import ImageReadMode
from torchvision.transforms import v2

from seresnet_hub.data.jpeg_region import UndecodedJpeg, decode_region, ends_as_jpeg, require_library
from seresnet_hub.data.read_image import open_picture, read_image, takes_too_long
from seresnet_hub.data.transforms import Transform, require_resizable
from seresnet_hub.errors import InputError

DecoderName = Literal["fast", "pil", "region"]
Buffer = bytes | memoryview

# The operator itself: torchvision's function around it warns, from 0.29 on, that torchcodec will take its place. Where
# there is none, every picture goes the exact way.
DECODE_JPEG: Any = getattr(torch.ops.image, "decode_jpeg", None)
# Markers of a JPEG file (ITU T.81, table B.1): frames of the usual codings, and two applications' own segments.
FRAMES, PROGRESSIVE, SCAN, EXIF, PAGES = frozenset({0xC0, 0xC1, 0xC2}), 0xC2, 0xDA, 0xE1, 0xE2
XMP = b"http://ns.adobe.com/xap/1.0/\0"  # how a segment of EXIF's kind begins that holds this instead
LARGEST = 2**26  # pixels; Pillow judges larger pictures


DecodedImage = Image.Image | torch.Tensor | UndecodedJpeg  # 8-bit RGB, or uint8 (3, height, width), or not yet decoded
PLAIN_SIDE = 64  # of an ordinary picture, in pixels


class TransformError(Exception):
    """A transform failed on a picture that is whole; the text names the step and says what it said."""


class Decoder:
    """Decode one encoded picture and apply `transform`, one of timm's or torchvision's compositions that ends in uint8.

    `decode` fails where the picture is damaged, `apply` where the transform is wrong. Random transforms draw the same
    numbers in the same order either way, all of them in `apply`, which may be called any number of times. Where that
    is `repeats` times, "region" decodes the picture once for all, as "fast" does.
    """

    def __init__(self, transform: Transform, name: DecoderName, repeats: int = 1) -> None:
        self.transform = transform
        steps: list[Any] = list(getattr(transform, "transforms", []))
        first = type(steps[0]) if steps and name != "pil" else None
        self._crops = first is RandomResizedCropAndInterpolation
        self._resizes = first is transforms.Resize and type(steps[1]) is transforms.CenterCrop and len(steps) == 3
        self._in_regions = name == "region" and self._crops and repeats == 1
        if name == "region":
            require_library()
        self._steps = steps
        # timm's crop of a picture of a few pixels may have a side of none, which Pillow takes.
        self._least = 1 / (min(steps[0].scale) * min(*steps[0].ratio, 1 / max(steps[0].ratio))) if self._crops else 0
        # Where there is nothing but a flip between the crop and the tensor, the device can do it later.
        self._flip = sum(step.p for step in steps[1:-1] if type(step) is transforms.RandomHorizontalFlip)
        self._distorts = any(type(step) is not transforms.RandomHorizontalFlip for step in steps[1:-1])

    def decode(self, data: Buffer) -> DecodedImage:
        """Return the picture; with "region" `apply` decodes it. Errors: `InputError` where `data` is no whole image."""
        size = _size_of_plain_jpeg(data) if self._crops or self._resizes else None
        if size is not None and size[0] * size[1] > self._least:
            if self._in_regions and ends_as_jpeg(data):
                return UndecodedJpeg(data, *size)
            pixels = _decode_jpeg(data)
            if pixels is not None:
                return pixels
        return read_image(data)

    def apply(self, picture: DecodedImage, out: torch.Tensor) -> bool:
        """Write a transformed picture into `out`, uint8 `(3, height, width)`; true where it is still to be mirrored.

        Errors: `TransformError` where the transform fails, `InputError` where it fails for this picture's shape, or
        where a picture that was not decoded yet is damaged.
        """
        size = picture.size if isinstance(picture, Image.Image) else (picture.shape[2], picture.shape[1])
        require_resizable(self.transform, size)
        if isinstance(picture, UndecodedJpeg) or (self._crops and isinstance(picture, torch.Tensor)):
            return self._crop(picture, out)
        if isinstance(picture, torch.Tensor):
            with _naming(self._steps[0]):
                return self._resize(picture, out)
        if not self._steps:
            with _naming(self.transform):
                out.copy_(self.transform(picture))
            return False
        first, *rest = self._steps
        try:
            with _naming(first):
                changed = first(picture)
        except TransformError as error:
            # Only the first step meets pictures of any shape; if it takes an ordinary one, then this one is to blame.
            if not _works(first):
                raise
            raise InputError(f"a picture of {picture.width} x {picture.height} pixels: {error}") from error
        out.copy_(_through(rest, changed))
        return False

    def _crop(self, picture: torch.Tensor | UndecodedJpeg, out: torch.Tensor) -> bool:
        crop, rest = self._steps[0], self._steps[1:]
        shape = picture if isinstance(picture, torch.Tensor) else torch.empty(picture.shape, device="meta")
        with _naming(crop):
            box = crop.get_params(shape, crop.scale, crop.ratio)
        region = _region(picture, *box)
        with _naming(crop):
            small = resize_into(region, crop.interpolation, torch.empty_like(out) if self._distorts else out)
        if not self._distorts:
            return self._flip > 0 and bool(torch.rand(1) < self._flip)  # as torchvision's flip draws it
        out.copy_(_through(rest, Image.fromarray(small.permute(1, 2, 0).contiguous().numpy())))
        return False

    def _resize(self, pixels: torch.Tensor, out: torch.Tensor) -> bool:
        resize, crop = self._steps[:2]
        resized = v2.functional.resize(pixels, resize.size, resize.interpolation, resize.max_size, antialias=True)
        out.copy_(v2.functional.center_crop(resized, crop.size))
        return False


@contextmanager
def _naming(step: Any) -> Iterator[None]:
    """Turn whatever a transform raises into a `TransformError` that names it."""
    try:
        yield
    except (MemoryError, TransformError):
        raise
    except Exception as error:
        name = getattr(step, "__name__", type(step).__name__)
        raise TransformError(f"the transform {name} failed: {type(error).__name__}: {error}") from error


def _through(steps: Sequence[Any], picture: Any) -> Any:
    """Apply one step after the other. Errors: `TransformError` names the one that failed."""
    for step in steps:
        with _naming(step):
            picture = step(picture)
    return picture


def _works(step: Any) -> bool:
    try:
        step(Image.new("RGB", (PLAIN_SIDE, PLAIN_SIDE)))
    except Exception:  # that it fails is the answer
        return False
    return True


def resize_into(window: torch.Tensor, interpolation: Any, out: torch.Tensor) -> torch.Tensor:
    """Resize as `torchvision.transforms.v2` does with antialiasing, but right into `out`."""
    mode = getattr(interpolation, "value", interpolation)  # "bilinear" or "bicubic", as timm and torchvision say it
    operator = getattr(torch.ops.aten, f"_upsample_{mode}2d_aa")
    operator.out(window[None], list(out.shape[-2:]), False, out=out[None])
    return out


def _region(picture: torch.Tensor | UndecodedJpeg, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """Return the pixels of a region. Errors: `InputError` where a picture that was not decoded yet is damaged."""
    if isinstance(picture, UndecodedJpeg):
        if (region := decode_region(picture, top, left, height, width)) is not None:
            return region
        pixels = _decode_jpeg(picture.data)  # whatever is wrong with these bytes, the others say it better
        picture = torch.from_numpy(np.array(read_image(picture.data))).permute(2, 0, 1) if pixels is None else pixels
    return picture[:, top : top + height, left : left + width]


def _decode_jpeg(data: Buffer) -> torch.Tensor | None:
    """Return the pixels `(3, height, width)`; `None` where Pillow must look at the picture, or complain."""
    if DECODE_JPEG is None:
        return None
    try:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: torch.Tensor = DECODE_JPEG(encoded, ImageReadMode.RGB.value, False)
        return pixels
    except RuntimeError:  # whatever is wrong with these bytes, Pillow says it better
        return None


def _size_of_plain_jpeg(data: Buffer) -> tuple[int, int] | None:
    """Return height and width of a JPEG file of one or three 8-bit components and usual size that is not to be rotated.

    `None` where it is anything else.
    """
    at, frame, components, size, plain = 2, 0, 0, (0, 0), False
    if data[:3] != b"\xff\xd8\xff":
        return None
    while at + 10 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in FRAMES:
            size = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            frame, components = marker, data[at + 9]
            plain = data[at + 4] == 8 and components in (1, 3) and 0 < size[0] * size[1] <= LARGEST
        if marker == SCAN:
            # Of a sequential file whose first scan has all components, libjpeg reads no other.
            is_alone = frame != PROGRESSIVE and data[at + 4] == components
            return size if plain and (is_alone or not takes_too_long(data, size[0] * size[1])) else None
        if marker == EXIF and _may_say_rotated(bytes(data[at + 4 : at + 2 + length])) and _is_rotated(data):
            return None
        if marker == PAGES and data[at + 4 : at + 8] == b"MPF\0":  # several pictures in one file
            return None
        at += 2 + length
    return None


def _may_say_rotated(segment: bytes) -> bool:
    """Return whether a segment is EXIF, or XMP that names an orientation, which Pillow reads where EXIF does not."""
    return segment.startswith(b"Exif\0\0") or (segment.startswith(XMP) and b"tiff:Orientation" in segment)


def _is_rotated(data: Buffer) -> bool:
    try:
        with open_picture(data, ("JPEG",)) as image:
            return image.getexif().get(0x0112, 1) not in (0, 1)
    except Exception:  # Pillow is asked again, and then what it says is reported
        return True
