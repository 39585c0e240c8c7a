"""What a precision means to a benchmark of networks on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from seresnet_hub.errors import InputError
from seresnet_hub.torch_settings import float32_arithmetic

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def require_precision(dtype: str, device: torch.device) -> None:
    """Raise `InputError` where the device does not have the precision."""
    if dtype == "tf32" and device.type != "cuda":
        raise InputError("--dtype tf32 is a precision of NVIDIA's GPUs: on a CPU, take fp32 or bf16")


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Let convolutions and matrix products of fp32 numbers be exact (fp32) or TF32 (tf32, bf16) for a while.

    With bf16 it is as a training run sets it, so that the two share what Inductor compiles. torch's own default is
    between the two: TF32 in convolutions and not in products. cuDNN tries its algorithms out meanwhile, as shapes are
    fixed.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    try:
        cudnn.benchmark = True
        with float32_arithmetic("cuda", "exact" if dtype == "fp32" else "tf32"):
            yield
    finally:
        cudnn.benchmark = before
