"""`explain gates`: show what the gates of a network's SE units do on a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import subcommand
from seresnet_hub.commands.speed_options import require_numbers
from seresnet_hub.models.name_forms import RUN_FORMS

EXAMPLE = "seresnet-hub explain gates runs/mine --data photos --output gates"


def add_parser(things: Any) -> None:
    """Add the thing `gates` to those of `explain`."""
    parser = subcommand(things, "gates", does="show what the gates of SE units do on a data set", example=EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help=RUN_FORMS)
    parser.add_argument("--data", required=True, metavar="DIR_OR_HUB_ID", help="data set with images and labels")
    parser.add_argument("--split", metavar="S", help="its split (validation, else test), or held-out")
    parser.add_argument("--label-column", metavar="NAME", help="its labels (default: found by its type)")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME",
        help="classes to draw, by name or number; figure 7 has the first two (default: four, evenly spread)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for pictures and tables")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=int, default=128, metavar="N", help="images at a time (default: 128)")
    speed.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that decode images (as many as suit)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Draw the figures, write the tables, and return what was measured."""
    from seresnet_hub.errors import InputError

    require_numbers(options)
    raise InputError(f"explain gates {options.model}: this version draws no gates yet")
