"""Print the machine, the versions, and what the GPU reaches at most in copies and in matrix products."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import datasets
import pyarrow
import torch

PACKAGES = (
    "torch", "torchvision", "triton", "timm", "accelerate", "huggingface_hub", "safetensors", "numpy", "pillow",
    "datasets", "pyarrow", "dill", "multiprocess", "fsspec", "pytest", "psutil",
)  # fmt: skip


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def of_the_gpu() -> dict[str, Any]:
    """Return its name and size, and the speed of copies (bytes read and written) and of bf16 matrix products."""
    from triton.testing import do_bench

    def seconds(work: Callable[[], object]) -> float:
        return float(do_bench(work, return_mode="median")) / 1e3

    properties = torch.cuda.get_device_properties(0)
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    pageable = torch.empty(2**28, dtype=torch.uint8).random_(0, 255)
    pinned, there = pageable.pin_memory(), pageable.cuda()
    return {
        "device": properties.name, "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory, "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "copy_TB_per_s": round(2 * source.numel() / seconds(lambda: target.copy_(source)) / 1e12, 3),
        "bf16_TFLOP_per_s": round(2 * 8192**3 / seconds(lambda: a @ b) / 1e12, 1),
        "pinned_to_device_GB_per_s": round(
            pinned.numel() / seconds(lambda: there.copy_(pinned, non_blocking=True)) / 1e9, 1
        ),
        "pageable_to_device_GB_per_s": round(pageable.numel() / seconds(lambda: there.copy_(pageable)) / 1e9, 1),
    }  # fmt: skip


facts: dict[str, Any] = {
    "python": sys.version.split()[0], "cuda": torch.version.cuda, "cores": len(os.sched_getaffinity(0)),
    "versions": {name: version(name) for name in PACKAGES}, "datasets": datasets.__file__, "pyarrow": pyarrow.__file__,
}  # fmt: skip
if torch.cuda.is_available():
    facts |= of_the_gpu()
print(json.dumps(facts))
