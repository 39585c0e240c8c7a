"""Count what a model costs: parameters, multiply-adds, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

KEEP_SHAPE = frozenset({nn.BatchNorm2d.forward, nn.ReLU.forward})


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model costs for one image: `multiply_adds` and `activations` are of its convolutions and linear layers.

    Activations are the values those layers put out (arXiv 2003.13678, section 3), as in timm's result tables.
    """

    parameters: int
    multiply_adds: int
    activations: int


@torch.no_grad()
def sizes_of(model: nn.Module, input_size: Sequence[int]) -> Sizes:
    """Return the sizes of `model`, which is on the meta device: nothing is computed but shapes.

    `input_size` is one image's, `(channels, height, width)`.
    """
    counts = {"multiply_adds": 0, "activations": 0}

    def count(layer: nn.Conv2d | nn.Linear, _: object, output: torch.Tensor) -> None:
        counts["multiply_adds"] += output.numel() * layer.weight[0].numel()
        counts["activations"] += output.numel()

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    # Two thirds of a forward pass without numbers would go into layers that change no shape.
    idle = [layer for layer in model.modules() if type(layer).forward in KEEP_SHAPE]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        for layer in idle:
            layer.forward = _unchanged
        model(torch.zeros(1, *input_size, device="meta"))
    finally:
        for layer in idle:
            del layer.forward
        for hook in hooks:
            hook.remove()
    return Sizes(parameters=sum(parameter.numel() for parameter in model.parameters()), **counts)
