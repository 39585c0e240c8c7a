"""A few batches in memory that the loader's process and its workers share, used again and again."""

from __future__ import annotations

import math
import mmap
import weakref
from collections import deque

import numpy as np
import torch

from seresnet_hub.errors import InputError


class SharedBatches:
    """Room for `slots` batches of up to `shape`; a slot is free again when nobody has its batch any more.

    Plain memory instead of torch's shared tensors: these lie in /dev/shm, which is often small. Errors: `InputError`
    where there is not enough memory.
    """

    def __init__(self, slots: int, shape: tuple[int, ...]) -> None:
        self._bytes = math.prod(shape)
        try:
            self._memory = mmap.mmap(-1, max(slots * self._bytes, 1))
        except (OSError, OverflowError, ValueError) as error:
            raise InputError(
                f"not enough memory for {slots} batches of {shape[0]:,} images of {shape[1]} x {shape[2]} pixels "
                f"({error}): choose a smaller batch or input size"
            ) from error
        self._free = deque(range(slots))

    def reserve(self) -> int | None:
        """Take a free slot; `None` where there is none."""
        return self._free.popleft() if self._free else None

    def release(self, slot: int) -> None:
        """Give back a slot whose batch nobody has."""
        self._free.append(slot)

    def batch(self, slot: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the batch in a slot, to be written."""
        return torch.from_numpy(self._flat(slot, shape)).view(shape)

    def lend(self, slot: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the batch in a slot, which is free again when the last tensor over this memory is gone."""
        flat = self._flat(slot, shape)
        weakref.finalize(flat, self.release, slot).atexit = False
        return torch.from_numpy(flat).view(shape)

    def _flat(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self._memory, np.uint8, math.prod(shape), slot * self._bytes)
