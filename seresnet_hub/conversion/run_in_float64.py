"""Let a network compute in float64, where it is not made for that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def float64_outputs(
    network: nn.Module, images: torch.Tensor, *, without_se: bool = False
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return a timm network's stage features and logits for `images`, computed in float64.

    `without_se` opens every SE gate.
    """
    features: list[torch.Tensor] = []
    stages = [layer for name, layer in network.named_children() if re.fullmatch(r"layer[1-4]", name) and len(layer)]  # type: ignore[arg-type]
    hooks = [
        stage.register_forward_hook(lambda _layer, _inputs, result: features.append(result.clone())) for stage in stages
    ]
    try:
        with in_float64(network, without_se=without_se):
            logits: torch.Tensor = network(images.double())
    finally:
        for hook in hooks:
            hook.remove()
    return features, logits


@contextmanager
def in_float64(network: nn.Module, *, without_se: bool) -> Iterator[None]:
    """Let `network` compute in float64, widening one layer at a time: no second copy of the weights is needed.

    `without_se` opens every SE gate.
    """
    narrow: dict[nn.Module, tuple[dict[str, Any], dict[str, Any]]] = {}

    def widen(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        narrow[layer] = dict(layer._parameters), dict(layer._buffers)
        tables: Any = (layer._parameters, layer._buffers)
        for values in tables:
            for name, value in values.items():
                if value is not None and value.is_floating_point():
                    values[name] = nn.Parameter(value.double()) if isinstance(value, nn.Parameter) else value.double()

    def restore(layer: nn.Module, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        parameters, buffers = narrow.pop(layer)
        layer._parameters.update(parameters)
        layer._buffers.update(buffers)

    def open_gate(layer: nn.Module, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> torch.Tensor:
        return inputs[0]

    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            hooks += [layer.register_forward_pre_hook(widen), layer.register_forward_hook(restore)]
        elif without_se and name.endswith(".se"):
            hooks.append(layer.register_forward_hook(open_gate))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
