"""Stop the making of a network that a stranger's config asks for, where it takes more than its file can account for."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from seresnet_hub.errors import InputError

# The slowest of timm 1.0.31's 1,255 architectures takes 1.1 seconds on the meta device, and the one with the most
# values in buffers has 25 million (relative positions of images of 512 pixels).
BUILD_SECONDS = 10.0
MOST_BUFFERED = 2**26
# Where there is no file to compare with: timm's largest networks have 3,108 tensors, and 2.6 billion values.
MOST_TENSORS, LARGEST_NETWORK = 10_000, 2**33
WATCH_SECONDS = 0.2


Made = TypeVar("Made")


class ExcessError(InputError):
    """A network is too large, or takes too long to make: making it in another way would be no better."""


class _OutOfTime(BaseException):
    """Raised in a thread by its watch; no `except Exception` of a library's takes it for an error of its own."""


def made_within(
    make: Callable[[], Made], *, what: str, parameters: int = MOST_TENSORS, values: int = LARGEST_NETWORK
) -> Made:
    """Return what `make` returns. Errors: `ExcessError` where it makes a larger network, or takes `BUILD_SECONDS`.

    `parameters` is the number of its parameters, `values` that of all their values, and `what` the beginning of the
    error. Parameters count before they are filled, so the memory is not taken yet. Time is the processor's.
    """
    thread, made, held, buffered = threading.get_ident(), 0, 0, 0

    def count(_module: object, _name: str, parameter: torch.Tensor | None) -> None:
        nonlocal made, held
        if threading.get_ident() != thread or parameter is None:
            return
        made, held = made + 1, held + parameter.numel()
        if made > parameters:
            raise ExcessError(f"{what} has far more layers than its file has tensors")
        if held > values:
            raise ExcessError(f"{what} has far more values than its file")

    def count_buffer(_module: object, _name: str, buffer: torch.Tensor | None) -> None:
        nonlocal buffered
        if threading.get_ident() == thread and buffer is not None:
            buffered += buffer.numel()
            if buffered > max(values, MOST_BUFFERED):
                raise ExcessError(f"{what} has far more constants than any of timm's")

    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count_buffer)
    try:
        return _in_time(make, BUILD_SECONDS, f"{what} takes more than {BUILD_SECONDS:.0f} seconds to make")
    finally:
        for hook in hooks:
            hook.remove()


def _in_time(make: Callable[[], Made], seconds: float, problem: str) -> Made:
    """Return what `make` returns. Errors: `ExcessError` where it takes more of the processor's time in this thread.

    A watch raises in this thread from outside: a loop of Python's own over all positions of a large image never comes
    to a place where it could look at a clock. One call into torch is not interrupted; the sizes limit those. This is no
    context manager, since what is raised while one is being left would skip its end.
    """
    thread, ended, sending = threading.get_ident(), threading.Event(), threading.Lock()
    used = _clock(thread)
    start = used()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            if used() - start > seconds:
                with sending:
                    if not ended.is_set():
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_OutOfTime))
                return  # once: it may arrive while the block is being left

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        try:
            watcher.start()
            return make()
        finally:
            with sending:
                ended.set()
            watcher.join()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)  # sent, but not arrived
    except _OutOfTime:
        ended.set()
        raise ExcessError(problem) from None


def _clock(thread: int) -> Callable[[], float]:
    """Return what reads the processor's time of a thread; where the system has no such clock, the time of day."""
    clock: Any = getattr(time, "pthread_getcpuclockid", None)
    return partial(time.clock_gettime, clock(thread)) if clock else time.monotonic
