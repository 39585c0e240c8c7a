"""Try again with half as many images at a time where the memory is not enough."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from seresnet_hub.errors import InputError, PrintableLog, message_of

Result = TypeVar("Result")
# What torch's errors say where memory is short and their type does not: the CPU's allocator, and CUDA's libraries.
SIGNS = (
    "out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip

log = PrintableLog(__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device or the machine has no memory left, or comes from one that does."""
    if isinstance(error, InputError):
        return isinstance(error.__cause__, Exception) and is_out_of_memory(error.__cause__)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign.lower() in str(error).lower() for sign in SIGNS)


def with_smaller_batches(
    work: Callable[[int], Result], batch_size: int, *, gather: Callable[[Any], list[Any]] | None = None
) -> tuple[Result, int]:
    """Return what `work` returns for `batch_size`, or for half of it, and so on, and the size that had room.

    `gather` returns what each of several processes gives it: then all of them halve together, and an error of one is an
    error on all. Errors: `InputError` where a single image has no room, and what `work` raises for other reasons.
    """
    while True:
        own: Exception | None = None
        result: Result | None = None
        try:
            result = work(batch_size)
        except Exception as error:
            if gather is None and not is_out_of_memory(error):
                raise
            own = error
            if is_out_of_memory(error):  # the frames of its traceback, and of its cause's, hold tensors
                for one in (error, error.__cause__):
                    if one is not None:
                        one.with_traceback(None)
        said = _said(own)
        everywhere = [said] if gather is None else gather(said)
        kinds = {one[0] for one in everywhere if one}
        if not kinds:
            return result, batch_size  # type: ignore[return-value]
        if kinds != {"memory"}:
            if own is not None and said is not None and said[0] != "memory":
                raise own
            kind, text = next(one for one in everywhere if one and one[0] != "memory")
            raise (InputError if kind == "input" else RuntimeError)(text)
        if batch_size == 1:
            raise InputError("the memory is not enough for one image at a time") from own
        del own, result
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory with %d images at a time: trying again with %d", batch_size, batch_size // 2)
        batch_size //= 2


def _said(error: Exception | None) -> tuple[str, str] | None:
    """Return the kind of an error, and its text."""
    if error is None:
        return None
    kind = "memory" if is_out_of_memory(error) else "input" if isinstance(error, InputError) else "other"
    return kind, message_of(error)
