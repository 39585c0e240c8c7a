"""The moving average of the weights, which is measured and saved where a recipe asks for it."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import nn

Tensors = tuple[list[torch.Tensor], list[torch.Tensor]]


class MovingAverage(ModelEmaV3):  # type: ignore[misc]
    """timm's moving average of a float32 model, bit for bit, for one model whose tensors stay the same objects.

    timm makes both state dicts at each step and copies each counter by itself, which takes milliseconds of the host's
    time for seresnet50; a GPU that is done with its step would wait.
    """

    _pairs: tuple[Tensors, Tensors] | None = None

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move each parameter and buffer towards the model's, and copy what is no float."""
        if self._pairs is None:
            self._pairs = _split(self.module), _split(model)
        (own, own_counters), (given, counters) = self._pairs
        torch._foreach_lerp_(own, given, weight=1.0 - decay)
        if counters:
            torch._foreach_copy_(own_counters, counters)


def _split(model: nn.Module) -> Tensors:
    """Return what timm averages of a model, its floats and what else there is, in one order for equal models."""
    tensors: list[torch.Tensor] = list(model.state_dict(keep_vars=True).values())
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
