"""Networks that were never trained, and behave as if they were: no branch is zero, and none drowns the others."""

from __future__ import annotations

import timm
import torch
from timm.layers import SEModule
from timm.models import senet
from torch import nn


def network(name: str, *, seed: int = 0, size: int = 64, **kwargs: object) -> nn.Module:
    """A network in float64 in eval mode: statistics near those of real activations, everything else drawn."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **kwargs).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
            module.momentum = 1.0
        if isinstance(module, (SEModule, senet.SEModule)):
            module.fc1.bias.data.normal_(0, 0.5)
            module.fc2.bias.data.normal_(0, 0.5)
    for block in model.modules():
        if hasattr(block, "bn2"):  # small branches, as trained ones are: large ones make deep networks chaotic
            (block.bn3 if hasattr(block, "bn3") else block.bn2).weight.data *= 0.2
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size, size, dtype=torch.float64))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.2 * module.running_var.sqrt() * torch.randn_like(module.running_mean)
            module.running_var *= torch.empty_like(module.running_var).uniform_(0.7, 1.4)
    return model.eval()
