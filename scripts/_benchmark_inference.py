"""Measure inference side by side: a plain ResNet, timm's SE-ResNet, and the same network fused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from _benchmark_networks import PLAIN, SE, Benchmark, Call, Networks, measure_networks, named_network
from torch import nn

from seresnet_hub.fusion import fuse

FUSED = "fused"


def benchmark_inference(options: argparse.Namespace) -> dict[str, Any]:
    """Time a forward pass of the three networks in eval mode; weights and images have the precision that is named."""
    return measure_networks(INFERENCE, options)


def _networks(model: str, plain: str) -> Networks:
    made = {name: named_network(one).eval().requires_grad_(False) for name, one in ((PLAIN, plain), (SE, model))}
    return {**made, FUSED: fuse(made[SE])}


def _step(call: Call, parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> Call:
    def step(images: torch.Tensor) -> None:
        with torch.no_grad():
            call(images.to(dtype))

    return step


def _placed(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    placed: nn.Module = network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


# Frozen weights let Inductor fold norms and prepack them for oneDNN; on a GPU, tuning lets it make the 1 x 1
# convolutions matrix products of its own, which take in what follows them. (As `options` of `torch.compile`, `freezing`
# comes too late: dynamo asks for it first.)
INFERENCE = Benchmark(
    name="inference", own=FUSED, networks=_networks, step=_step, placed=_placed, passes=1,
    compile_options={
        "cpu": {"freezing": True},
        "cuda": {"freezing": True, "max_autotune": True, "triton.cudagraphs": True},
    },
)  # fmt: skip
