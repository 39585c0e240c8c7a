"""Read what a safetensors file says of its tensors, before any of them is.

This is for the weights of a model folder, which the library itself loads next: its reading of the header counts. The
files of strangers that are converted are read by `safetensors_file`, within a budget and over bytes already hashed.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from seresnet_hub.errors import InputError, message_of

# The largest network of timm's has 3,108 tensors, of some 100 bytes each in a header.
MOST_HEADER_BYTES = 2**23
Header = dict[str, tuple[tuple[int, ...], bool]]  # of each tensor its shape, and whether its values are fractions


def read_header(path: Path) -> Header:
    """Return the shapes and kinds of a file's tensors, in memory of the header's size.

    Errors: `InputError` where it is no whole safetensors file, or its header is larger than any network's.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if MOST_HEADER_BYTES < length <= path.stat().st_size:
            raise InputError(f"{path}: its header has {length:,} bytes, more than any network's")
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
            return {name: (tuple(one.get_shape()), _is_fraction(one.get_dtype())) for name, one in slices.items()}
    except InputError:
        raise
    except Exception as error:  # safetensors raises its own
        raise InputError(f"{path} is no whole safetensors file: {message_of(error)}") from error


def _is_fraction(dtype: str) -> bool:
    return dtype.startswith(("F", "BF"))  # and not C64, I8, U8, BOOL
