"""Pictures that a person named or gave, row by row, without an object for each: files, addresses, what is in memory."""

from __future__ import annotations

import array
import os
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from PIL import Image

from seresnet_hub.data.download_image import fetch_picture
from seresnet_hub.data.read_image import read_file, read_image
from seresnet_hub.errors import InputError

ImageInput = str | Path | bytes | Image.Image | np.ndarray
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
UNIT_ROWS = 4096  # of a list: a reader has a few numbers for each row of the units that it is at


class PictureList:
    """Names of pictures, one after the other in one piece of memory; and the pictures that are in memory already."""

    def __init__(self) -> None:
        self._names, self._ends = bytearray(), array.array("Q")
        self._held: dict[int, ImageInput] = {}
        self._opened: set[int] = set()  # Pillow's images, by their ids
        self.has_addresses = False

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, name: str | Path) -> None:
        """Add a file, or an address: a text with "://"."""
        self.has_addresses = self.has_addresses or is_address(name)
        self._append(os.fsencode(name))

    def hold(self, picture: ImageInput, name: str = "") -> None:
        """Add encoded bytes, an array or Pillow's image, which may have a name. Errors: `InputError` for others."""
        if not isinstance(picture, (bytes, memoryview, Image.Image, np.ndarray)):
            raise InputError(
                f"{type(picture).__name__} is no picture: give paths, bytes, Pillow's images or NumPy arrays"
            )
        if isinstance(picture, Image.Image):
            if id(picture) in self._opened:  # workers that read one file at once would share the place in it
                with suppress(Exception):  # what is wrong is said where it is decoded
                    picture.load()
            self._opened.add(id(picture))
        self._held[len(self)] = bytes(picture) if isinstance(picture, memoryview) else picture
        self._append(os.fsencode(name))

    def _append(self, name: bytes) -> None:
        self._names += name
        self._ends.append(len(self._names))

    def name(self, row: int) -> str | None:
        """Return a picture's name as the system takes it; `None` where it has none."""
        first = self._ends[row - 1] if row else 0
        return os.fsdecode(bytes(self._names[first : self._ends[row]])) or None

    def held(self, row: int) -> ImageInput | None:
        """Return a picture that is in memory, `None` where it is read by its name."""
        return self._held.get(row)

    @property
    def unit_rows(self) -> tuple[int, ...]:
        """The rows of each unit of a split of these pictures."""
        whole, rest = divmod(len(self), UNIT_ROWS)
        return (UNIT_ROWS,) * whole + ((rest,) if rest else ())

    @property
    def first_file(self) -> str:
        """The first local file, "" where there is none among the first pictures."""
        names = (self.name(row) for row in range(min(len(self), UNIT_ROWS)) if row not in self._held)
        return next((name for name in names if name and not is_address(name)), "")

    @cached_property
    def fingerprint(self) -> int:
        """A number that other names, or other pictures in memory, do not have; files are not read for it."""
        state = xxhash.xxh3_64(bytes(self._names) + self._ends.tobytes())
        for row, picture in self._held.items():
            state.update(f"{row} {getattr(picture, 'mode', '')} ".encode())
            with suppress(Exception):  # Pillow raises almost anything where its file is damaged
                pixels = np.frombuffer(picture, np.uint8) if isinstance(picture, bytes) else np.asarray(picture)
                state.update(f"{pixels.dtype} {pixels.shape}".encode())
                state.update(pixels.tobytes())
        return state.intdigest() >> 4

    def sizes_fingerprint(self) -> int:
        """Return a number that files of these names do not have once one of them has another size."""
        state = xxhash.xxh3_64()
        for row in range(len(self)):
            name = self.name(row)
            if row in self._held or name is None or is_address(name):
                continue
            try:
                size = os.stat(name).st_size
            except (OSError, ValueError):  # a link that leads nowhere
                size = -1
            state.update(size.to_bytes(8, "little", signed=True))
        return state.intdigest() >> 4


def is_address(name: str | Path) -> bool:
    """Return whether a name is an address, of whatever kind, and no file."""
    return isinstance(name, str) and ADDRESS.match(name) is not None


def read_named(name: str) -> bytes:
    """Return the encoded picture that a name stands for. Errors: as of `fetch_picture` and `read_file`."""
    return fetch_picture(name) if is_address(name) else read_file(name)


def as_rgb(picture: Image.Image | np.ndarray) -> Image.Image:
    """Return a picture in memory as 8-bit RGB (see `read_image`).

    An array is uint8: `(height, width, 3)` in RGB order, or grey `(height, width)`. Errors: `InputError` where it is
    something else.
    """
    if isinstance(picture, Image.Image):
        return read_image(picture)
    shape = picture.shape
    if picture.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or not picture.size:
        scale = "; values in [0, 1] times 255, rounded, are uint8" if picture.dtype.kind == "f" else ""
        raise InputError(
            f"an array of {picture.dtype} {shape} is no picture: it must be uint8, (height, width, 3) in RGB order, or "
            f"grey (height, width){scale}"
        )
    return Image.fromarray(picture).convert("RGB")
