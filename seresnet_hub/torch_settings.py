"""Torch's own settings while a run lasts: fast kernels on a GPU, or the same bits again where a recipe asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal

import torch

from seresnet_hub.errors import InputError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# The workspaces with which cuBLAS gives the same bits again, by NVIDIA's documentation; torch accepts no others.
WORKSPACES = (":4096:8", ":16:8")
Precision = Literal["no", "bf16", "fp16"]
# The types in which autocast computes, by the precision that is asked for; "no" is the type of the weights.
AUTOCAST: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
# How a setting is read and written.
Access = tuple[Callable[[], Any], Callable[[Any], object]]


@contextmanager
def settings_of_run(device_type: str, *, deterministic: bool) -> Iterator[None]:
    """Set what a run on this type of device computes with, and put it back at its end, whatever happens.

    On CUDA, as in timm's own training script: cuDNN tries its algorithms and keeps the fastest, and float32 arithmetic
    is TF32. With `deterministic`, on every device: algorithms that give the same bits each time, and none is
    chosen by its speed. Enter it before CUDA is used. Errors: `InputError` where it is too late for that, and where an
    operation has no such algorithm.
    """
    if deterministic and device_type == "cuda":
        _set_workspace(os.environ, too_late=torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn: Any = torch.backends.cudnn
    flags = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    try:
        if deterministic:
            torch.use_deterministic_algorithms(True)
            cudnn.benchmark, cudnn.deterministic = False, True
        elif device_type == "cuda":
            cudnn.benchmark = True
        with float32_arithmetic(device_type, "tf32"):
            yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error) or isinstance(error, InputError):
            raise
        operation = str(error).partition(" does not have")[0].splitlines()[-1]
        raise InputError(
            f"deterministic=true: {operation} has no deterministic algorithm on {device_type} in torch "
            f"{torch.__version__}; leave deterministic out, or train a model without it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        for name, value in flags.items():
            setattr(cudnn, name, value)


@contextmanager
def float32_arithmetic(device_type: str, kind: Literal["tf32", "exact"]) -> Iterator[None]:
    """Multiply matrices and convolve in float32 on CUDA with TF32's 10 bits of mantissa, or exactly; elsewhere nothing.

    torch's own default is between the two: TF32 in convolutions and not in products.
    """
    if device_type != "cuda":
        yield
        return
    tf32 = kind == "tf32"
    cudnn: Any = torch.backends.cudnn
    older_products = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    with (
        _replaced(_attribute(cudnn, "allow_tf32"), tf32, newer=cudnn.conv, tf32=tf32),
        _replaced(older_products, "high" if tf32 else "highest", newer=torch.backends.cuda.matmul, tf32=tf32),
    ):
        yield


def _attribute(owner: Any, name: str) -> Access:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


@contextmanager
def _replaced(older: Access, value: Any, *, newer: Any, tf32: bool) -> Iterator[None]:
    """Write `value` through torch's older setting for a while.

    Where a program uses the newer one, of `newer`, torch raises as the older is read, and the two must not be mixed.
    """
    read, write = older
    try:
        before = read()
    except RuntimeError:
        read, write = _attribute(newer, "fp32_precision")
        before, value = read(), "tf32" if tf32 else "ieee"
    write(value)
    try:
        yield
    finally:
        write(before)


def _set_workspace(environment: MutableMapping[str, str], *, too_late: bool) -> None:
    """Give cuBLAS a workspace with which it repeats its bits; it stays, since cuBLAS reads it once in a process."""
    given = environment.get(WORKSPACE)
    if given in WORKSPACES:
        return
    if given is not None:
        raise InputError(f"deterministic=true: {WORKSPACE}={given} must be {' or '.join(WORKSPACES)}, or be left out")
    if too_late:
        raise InputError(
            f"deterministic=true: too late, CUDA has been used in this process already; start it with "
            f"{WORKSPACE}={WORKSPACES[0]} in its environment"
        )
    environment[WORKSPACE] = WORKSPACES[0]
