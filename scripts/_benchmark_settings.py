"""What a benchmark of networks sets before it measures: Inductor's settings, and what a precision means on a device."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import UnionType
from typing import Any

import torch

from seresnet_hub.errors import InputError
from seresnet_hub.torch_settings import float32_arithmetic

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def inductor_settings(given: Iterable[str]) -> dict[str, Any]:
    """Return Inductor's settings from `KEY=VALUE` texts; a value is JSON, or plain text where the setting is text.

    Errors: `InputError` where a setting is unknown to this torch, or its value has another type.
    """
    from torch._inductor import config

    known = config.get_config_copy()
    settings: dict[str, Any] = {}
    for text in given:
        key, equals, written = text.partition("=")
        if not equals:
            raise InputError(f"--inductor {text}: must be KEY=VALUE")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"--inductor {text}: torch {torch.__version__} has no setting {key!r}{meant}")
        kind = config.get_type(key)  # type: ignore[attr-defined]
        try:
            value = json.loads(written)
        except ValueError:
            value = written
        if not _fits(value, kind):
            what = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
            raise InputError(
                f"--inductor {text}: must be {what} in JSON (default: {json.dumps(known[key], default=str)})"
            )
        settings[key] = value
    return settings


def _fits(value: Any, kind: Any) -> bool:
    """Say whether a value has a setting's declared type; the type is not read further than its outermost part."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    kind = origin or kind
    if kind is Any:
        return True
    if not isinstance(kind, type):
        return False
    if isinstance(value, bool):  # a number to Python, and not to whoever wrote it
        return kind is bool
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


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
