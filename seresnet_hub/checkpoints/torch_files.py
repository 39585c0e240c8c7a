"""Read what `torch.save` and `pickle.dump` write: PyTorch's zip and legacy files, and plain pickles of arrays.

Tensors stay descriptions until every size in them has been held against the bytes that the file really has.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seresnet_hub.checkpoints import zip_directory
from seresnet_hub.checkpoints.dtypes import NUMPY_TYPES
from seresnet_hub.checkpoints.pickle_machine import ByteStream, unpickled
from seresnet_hub.checkpoints.pickle_values import (
    Array,
    LongBytes,
    Storage,
    Tensor,
    byte_count,
    storage_of,
)
from seresnet_hub.checkpoints.reading_budget import BUDGET, Account, Refused

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file describes, how to make its tensors, and `finish`, which waits for the checks of its bytes."""

    value: Any
    tensor: Callable[[Tensor], torch.Tensor]
    finish: Callable[[], None] = lambda: None
    metadata: dict[str, str] | None = None


class StorageBytes:
    """Makes the tensors whose storages are in a file's bytes, `buffer`."""

    def __init__(self, buffer: torch.Tensor, account: Account, start_of: Callable[[Storage], int]) -> None:
        self._buffer, self._account, self._start_of = buffer, account, start_of

    def tensor(self, described: Tensor) -> torch.Tensor:
        """Return a tensor as a view of the file's bytes where they are aligned, else as a copy."""
        storage, shape, stride = described.storage, described.shape, described.stride
        if 0 in shape:
            self._start_of(storage)
            return torch.empty(shape, dtype=storage.dtype)
        size = storage.dtype.itemsize
        start = self._start_of(storage) + (storage.offset + described.offset) * size
        # The buffer itself starts at a multiple of 64 bytes, so the offset in it decides.
        if start % size == 0:
            reach = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
            values = self._buffer[start : start + reach * size].view(storage.dtype)
            return values.as_strided(shape, stride, values.storage_offset())
        # Of its own elements alone: a copy of the storage could be made for each of a thousand small tensors.
        self._account.spend("copied", math.prod(shape) * size)
        bytes_of = self._buffer.as_strided((*shape, size), (*(step * size for step in stride), 1), start)
        return bytes_of.clone(memory_format=torch.contiguous_format).view(storage.dtype).reshape(shape)


def read_zip(view: memoryview, buffer: torch.Tensor, account: Account) -> Contents:
    """Read the file that `torch.save` writes; the checksums of its members are computed meanwhile."""
    members = zip_directory.members_of(view)
    roots = {name.split("/", 1)[0] for name in members}
    inner = {name.split("/", 1)[1] for name in members if "/" in name}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise Refused("it is a TorchScript program, which is code: save the model's state_dict() instead")
    if ".data/extern_modules" in inner or any(name.endswith(".py") for name in inner):
        raise Refused("it is a torch.package archive, which is code: save the model's state_dict() instead")
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(roots) != 1:
        raise Refused("it is a zip archive, but not one that torch.save writes")
    root = pickles[0].removesuffix("/data.pkl")

    def place(name: str) -> tuple[int, int]:
        if name not in members:
            raise Refused(f"its zip archive lacks {name[:100]}: it is truncated or damaged")
        return members[name].place()

    if f"{root}/byteorder" in members:
        start, size = place(f"{root}/byteorder")
        if bytes(view[start : start + min(size, 8)]) != b"little":
            raise Refused("its numbers are big-endian: save it on a little-endian machine")

    def start_of(storage: Storage) -> int:
        if "/" in storage.key:
            raise Refused(f"a storage is named {storage.key[:40]!r}")
        start, size = place(f"{root}/data/{storage.key}")
        if size != storage.whole * storage.dtype.itemsize:
            raise Refused(f"a storage of {storage.whole} values has {size} bytes: it is truncated or damaged")
        return start

    start, size = place(pickles[0])
    if size > BUDGET.pickle_bytes:
        raise Refused(f"its pickle has {size} bytes beside the tensors, more than {BUDGET.pickle_bytes}")
    checker = ThreadPoolExecutor(1)  # beside the hashing of the whole file, which takes longer
    checks = checker.submit(zip_directory.check, view, list(members.values()))
    checker.shutdown(wait=False)
    stream = ByteStream(view, start, start + size)
    value = unpickled(stream, account, storage_of)
    if stream.tell() != start + size:
        raise Refused(f"there are {start + size - stream.tell()} bytes behind its pickle: {CUT}")
    return Contents(value=value, tensor=StorageBytes(buffer, account, start_of).tensor, finish=checks.result)


CUT = "it is damaged, or hides something; get it again, or its weights as safetensors"


def read_pickles(view: memoryview, buffer: torch.Tensor, account: Account) -> Contents:
    """Read PyTorch's legacy format (five pickles, then the storages), or a single pickle of arrays."""
    stream = ByteStream(view, 0, len(view))
    first = unpickled(stream, account, storage_of)
    if first != LEGACY_MAGIC:
        if stream.tell() != len(view):
            raise Refused(f"there are {len(view) - stream.tell()} bytes behind its pickle: {CUT}")
        return Contents(value=first, tensor=_no_storage)
    # The bytes below are moved, so that no view of them may be kept.
    stream = ByteStream(view, stream.tell(), len(view), views=False)
    if unpickled(stream, account) != LEGACY_VERSION:
        raise Refused("it is of an unknown legacy version")
    system = unpickled(stream, account)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its numbers are big-endian: save it on a little-endian machine")
    used: dict[str, Storage] = {}

    def remember(identity: Any) -> Storage:
        storage = storage_of(identity)
        other = used.setdefault(storage.key, storage)
        if (other.dtype, other.whole) != (storage.dtype, storage.whole):
            raise Refused("two tensors disagree about the type of their storage")
        return storage

    value = unpickled(stream, account, remember)
    keys = unpickled(stream, account)
    are_names = isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys)
    if not are_names or {str(key) for key in keys} != set(used) or len(keys) != len(used):
        raise Refused("its list of storages does not match its tensors")
    # PyTorch puts the storages wherever the pickles end. Moving the bytes once aligns nearly all of them.
    if shift := stream.tell() % 8:
        ctypes.memmove(buffer.data_ptr(), buffer.data_ptr() + shift, len(view) - shift)
    at, end, starts = stream.tell() - shift, len(view) - shift, {}
    for key in map(str, keys):
        size = used[key].whole * used[key].dtype.itemsize
        if int.from_bytes(view[at : at + 8], "little") != used[key].whole or at + 8 + size > end:
            raise Refused("a storage has fewer bytes than its tensors need: it is truncated or damaged")
        starts[key] = at + 8
        at += 8 + size
    if at != end:
        raise Refused(f"there are {end - at} bytes behind its storages: {CUT}")
    return Contents(value=value, tensor=StorageBytes(buffer, account, lambda storage: starts[storage.key]).tensor)


def _no_storage(_: Tensor) -> torch.Tensor:
    raise Refused("its pickle points outside itself")


class ArrayBytes:
    """Makes tensors of pickled arrays; those that share their bytes share them as tensors too."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._made: dict[int, tuple[Any, np.ndarray]] = {}  # the bytes are kept, so that no others get their number

    def tensor(self, name: str, array: Array) -> torch.Tensor:
        """Return the tensor of an array. Errors: `Refused` where it has other bytes than its shape needs."""
        dtype = NUMPY_TYPES.get(array.dtype[1:])
        if dtype is None or array.dtype.startswith(">"):
            raise Refused(f"array {name[:80]!r} is of type {array.dtype[:20]!r}, which no weights are")
        count = byte_count(array.data)
        if count != math.prod(array.shape) * dtype.itemsize:
            raise Refused(f"array {name[:80]!r} of shape {array.shape} has {count} bytes: it is damaged")
        if not count:
            return torch.empty(array.shape, dtype=dtype)
        values = self._writable(array, dtype.itemsize).view(array.dtype)
        return torch.from_numpy(values.reshape(array.shape, order="F" if array.fortran else "C"))

    def _writable(self, array: Array, alignment: int) -> np.ndarray:
        data, key = array.data, id(array.data)
        if key not in self._made:
            values = data.values if isinstance(data, LongBytes) else np.frombuffer(data, np.uint8)
            if values.__array_interface__["data"][0] % 8 or not values.flags.writeable:
                self._account.spend("copied", len(values))
                values = values.copy()
            self._made[key] = (data, values)
        return self._made[key][1]
