"""Measure inference side by side: a plain ResNet, timm's SE-ResNet, and the same network fused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from _benchmark_networks import PLAIN, SE, Benchmark, Networks, measure_networks, named_network
from _benchmark_timing import Call
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.models.compiling import INFERENCE_SETTINGS
from seresnet_hub.models.fusion import fuse

FUSED = "fused"


def benchmark_inference(options: argparse.Namespace) -> dict[str, Any]:
    """Time a forward pass of the networks in eval mode; weights and images have the precision that is named.

    With `--peer`, exported networks are timed too, by the engines that run them.
    """
    if options.peer:
        from _benchmark_inference_engines import measure_engines  # here, as it needs the packages of extras

        return measure_engines(options)
    for name in ("precision", "calibrate", "exports", "output"):
        if getattr(options, name):
            raise InputError(f"--{name} is of exported networks: name an engine as well, with --peer")
    benchmark = replace(INFERENCE, compile_options=INFERENCE_SETTINGS[options.settings])
    return {**measure_networks(benchmark, options), "settings": options.settings}


def _networks(model: str, plain: str) -> Networks:
    made = {name: named_network(one).eval().requires_grad_(False) for name, one in ((PLAIN, plain), (SE, model))}
    return {**made, FUSED: fuse(made[SE])}


def _step(call: Call, parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> Call:
    def step(images: torch.Tensor) -> None:
        with torch.no_grad():
            call(images)

    return step


def _placed(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    placed: nn.Module = network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


INFERENCE = Benchmark(
    name="inference", own=FUSED, networks=_networks, step=_step, placed=_placed, passes=1, narrow_images=True,
    compile_options=INFERENCE_SETTINGS["default"],
)  # fmt: skip
