"""The options that make a model faster, and what they do to it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def add_speed_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add `--fuse` and `--compile`, and return their group."""
    speed = parser.add_argument_group("speed")
    speed.add_argument("--fuse", action="store_true", help="fold norms and SE units first; same results, sooner")
    speed.add_argument(
        "--compile", nargs="?", const="default", choices=("default", "epilogue"), metavar="SETTINGS",
        help="compile first (default or epilogue), a minute or more",
    )  # fmt: skip
    return speed


def require_numbers(options: argparse.Namespace) -> None:
    """Raise `InputError` where there are to be too few classes, neighbours, images at a time or workers."""
    from seresnet_hub.errors import InputError

    for name, least in (("topk", 1), ("top", 1), ("batch_size", 1), ("workers", 0)):
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise InputError(f"{name}={value}: must be at least {least}")


def prepared(model: nn.Module, options: argparse.Namespace) -> nn.Module:
    """Return the model on the GPU, where there is one, fused and compiled where the options say so.

    Errors: `InputError` where an option needs the network itself, and the model is an exported file.
    """
    import torch

    from seresnet_hub.commands.terminal import tell
    from seresnet_hub.engines.exported_model import require_network
    from seresnet_hub.models.compiling import compile_for_inference
    from seresnet_hub.models.fusion import fuse

    for option in ("fuse", "compile", "amp", "features", "knn"):
        if getattr(options, option, None) not in (None, False):
            require_network(model, f"--{option}")
    model = (fuse(model) if options.fuse else model).to("cuda" if torch.cuda.is_available() else "cpu")
    if options.compile:
        model = compile_for_inference(model, options.compile)
        tell("compiling the model at its first batch, which takes a minute or more")
    return model
