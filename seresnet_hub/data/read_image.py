"""Read pictures of the few formats that are named here, of bounded size: the one place where bytes become pictures.

Pillow by itself opens some forty formats; one of them hands PostScript to another program, and many are hardly used.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401  # so that Pillow does not import all formats to find these two
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from seresnet_hub.errors import InputError

# Pillow's names; its JPEG reader opens files of several JPEG pictures (MPF) too.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# How files of these formats are called; in folders, files of other names are no pictures.
ENDINGS = frozenset(
    {".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
     ".webp"}
)  # fmt: skip
# Of one picture: what Pillow itself warns of, 358 MB at four bytes a pixel.
MOST_PIXELS = 2**30 // 12
# More than so many pixels have in the widest form, 16-bit RGBA that is not compressed.
MOST_BYTES = 2**30
# A progressive JPEG is decoded anew in each of its scans, of which usual files have about ten.
MOST_SCANNED = 2**31
LEAST_SCAN = 10  # bytes
# Usual files have a few dozen segments besides those of 64 KiB each that hold more than one takes.
MOST_SEGMENTS = 100_000
# The markers that a length follows, and the one that ends the picture (ITU T.81, table B.1).
MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
START_OF_SCAN, END_OF_PICTURE = b"\xda", b"\xd9"
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class UnavailableError(InputError):
    """A file is out of reach, which is no fault of the file."""


class OutOfResourcesError(UnavailableError):
    """This machine has no more open files or memory to give, so that no other file can be read either."""


def open_picture(data: bytes | memoryview, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Return the picture in `data`, of which only the header is read yet.

    Errors: `InputError` where it is none of `formats`, has more than `MOST_PIXELS` pixels, or takes too long.
    """
    if len(data) > MOST_BYTES:
        raise InputError(f"too large a picture ({len(data):,} bytes, of which {MOST_BYTES:,} are read at most)")
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise InputError(f"not an image of a kind that is read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"too large a picture ({error})") from error
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        image.close()
        raise InputError(
            f"too large a picture ({image.width} x {image.height} pixels, of which {MOST_PIXELS:,} are read at most)"
        )
    if image.format in ("JPEG", "MPO") and takes_too_long(data, pixels):
        image.close()
        raise InputError(f"a JPEG of too many scans for its {pixels:,} pixels")
    return image


def read_image(source: bytes | memoryview | str | Path | Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB, as a viewer shows it.

    EXIF rotation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits, CMYK and palettes are
    converted. Errors: `InputError` where the file is missing or no regular one, is no image of `FORMATS`, ends
    too early, or is too large (`MOST_PIXELS`).
    """
    name = f"{source}: " if isinstance(source, (str, Path)) else ""
    try:
        data = read_file(source) if isinstance(source, (str, Path)) else source
        if isinstance(data, Image.Image):
            return _as_shown(data)
        with open_picture(data) as image:
            return _as_shown(image)
    except InputError as error:
        raise InputError(f"{name}{error}") from error
    except MemoryError as error:
        raise InputError(f"{name}not enough memory for a picture of this size") from error
    except Image.DecompressionBombError as error:  # of a later frame or a tile
        raise InputError(f"{name}too large a picture ({error})") from error
    except Exception as error:  # Pillow's decoders raise almost anything on broken bytes
        raise InputError(f"{name}not a whole image ({error or type(error).__name__})") from error


def _as_shown(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 when it converts; a viewer shows the whole range.
        levels = np.asarray(image).clip(0, 65535).astype(np.uint16)
        image = Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))  # rounded: 257 is odd
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def takes_too_long(jpeg: bytes | memoryview, pixels: int) -> bool:
    """Return whether a JPEG file has so many scans that decoding it would take minutes."""
    if len(jpeg) * pixels < LEAST_SCAN * MOST_SCANNED:  # as most have; their scans need not be counted
        return False
    # Behind its end phones put videos, whose bytes look like many scans.
    at, scans = 2, 0
    for _ in range(MOST_SEGMENTS):
        found = MARKER.search(jpeg, at)
        if found is None or found[1] == END_OF_PICTURE:
            return False
        scans += found[1] == START_OF_SCAN
        if scans * pixels > MOST_SCANNED:
            return True
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
    return True


def read_file(path: str | Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file, whole.

    Never waits for another process, as for one that writes into a pipe. Errors: `InputError` where it cannot be read,
    is no regular file, has more than `most` bytes, or was changed meanwhile; its message does not name the file.
    """
    try:
        _require_regular(os.stat(path), most)  # opening some devices does something
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            before = os.fstat(descriptor)
            _require_regular(before, most)  # it may be another file by now
            data = bytearray()
            while len(data) <= before.st_size and (more := file.read(before.st_size + 1 - len(data))):
                data += more
            after = os.fstat(descriptor)
    except OSError as error:
        kind = OutOfResourcesError if error.errno in OUT_OF_RESOURCES else InputError
        raise kind(error.strerror or error) from error
    except ValueError as error:  # a NUL in the name
        raise InputError(error) from error
    if len(data) != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise InputError("the file was changed while it was read")
    return bytes(data)


def _require_regular(found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise InputError("no regular file, but a pipe, a device or a socket")
    if found.st_size > most:
        raise InputError(f"too large a file ({found.st_size:,} bytes, of which {most:,} are read at most)")
