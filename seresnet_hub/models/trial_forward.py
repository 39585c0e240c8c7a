"""Show that a model runs as its config says, before anything depends on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from seresnet_hub.errors import InputError, message_of


@torch.no_grad()
def check_runs(model: nn.Module, origin: object) -> None:
    """Run the model on one grey image of the size in its config; `origin` is how errors call it.

    Errors: `InputError` where it takes no such image, or does not compute finite numbers, one for each class where it
    has classes.
    """
    config: Any = model.pretrained_cfg
    try:
        dtype = next(model.parameters()).dtype
        logits = model.eval()(torch.zeros(1, *config["input_size"], dtype=dtype))
        finite = bool(torch.isfinite(logits).all())
    except Exception as error:  # whatever the model makes of it
        raise InputError(f"{origin} loads but does not run: {message_of(error)}") from error
    if not finite:
        raise InputError(f"{origin} computes NaN or infinite values")
    classes = getattr(model, "num_classes", 0)
    if classes and logits.shape != (1, classes):
        raise InputError(f"{origin} gives {tuple(logits.shape)} values for an image, and not one for each class")
