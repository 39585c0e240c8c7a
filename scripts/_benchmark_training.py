"""Measure training steps side by side: a plain ResNet, timm's SE-ResNet, and the same of this package's blocks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from _benchmark_networks import PLAIN, SE, Benchmark, Networks, measure_networks, named_network
from _benchmark_timing import Call
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.models.training_blocks import SEBasicBlock, SEBottleneck

OURS = "ours"
BLOCKS = {Bottleneck: SEBottleneck, BasicBlock: SEBasicBlock}


def benchmark_training(options: argparse.Namespace) -> dict[str, Any]:
    """Time a step of the networks: forward, cross-entropy, backward, SGD; bf16 is autocast over fp32 weights."""
    return measure_networks(TRAINING, options)


def _networks(model: str, plain: str) -> Networks:
    timms = named_network(model)
    kinds = {type(module) for module in timms.modules() if hasattr(module, "conv2")}
    if len(kinds) != 1 or not kinds <= BLOCKS.keys():
        raise InputError(f"{model} is not made of timm's Bottleneck or BasicBlock alone")
    return {
        PLAIN: named_network(plain).train(),
        SE: timms.train(),
        OURS: named_network(model, block=BLOCKS[kinds.pop()]).train(),
    }


def _step(call: Call, parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> Call:
    fused = parameters[0].is_cuda or None  # one kernel for all weights
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=fused)

    def step(images: torch.Tensor) -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
            logits: Any = call(images)
        labels = torch.arange(len(images), device=images.device) % logits.shape[1]
        loss: Any = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _placed(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    placed: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


TRAINING = Benchmark(
    name="training", own=OURS, networks=_networks, step=_step, placed=_placed, passes=3, narrow_images=False,
    compile_options={"cpu": {}, "cuda": {}},
)  # fmt: skip
