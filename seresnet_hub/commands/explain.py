"""Show what the gates of a network do, or where in a picture it looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seresnet_hub.commands import explain_gates, explain_maps
from seresnet_hub.commands.parser import Parser, command

EXAMPLE = explain_gates.EXAMPLE
THINGS = {"gates": explain_gates, "maps": explain_maps}


def parser() -> Parser:
    parser = command(__doc__, prog="seresnet-hub explain", example=EXAMPLE)
    parser.any_bytes = frozenset({"images"})
    things = parser.add_subparsers(dest="thing", required=True, metavar="|".join(THINGS))
    for module in THINGS.values():
        module.add_parser(things)
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    return THINGS[options.thing].run(options)
