"""`explain maps`: show where in pictures a network looks."""

from __future__ import annotations

import argparse
from typing import Any

from seresnet_hub.commands.parser import subcommand

EXAMPLE = "seresnet-hub explain maps seresnet20_cifar.c10 photo.jpg --output maps"


def add_parser(things: Any) -> None:
    """Add the thing `maps` to those of `explain`."""
    parser = subcommand(things, "maps", does="show where in pictures a network looks", example=EXAMPLE)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("images", metavar="IMAGE", nargs="+")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Draw the maps, and return what was drawn."""
    from seresnet_hub.errors import InputError

    raise InputError(f"explain maps {options.model}: this version draws no maps yet")
