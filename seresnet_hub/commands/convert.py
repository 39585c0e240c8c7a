"""Convert a checkpoint into a folder that timm loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from seresnet_hub.commands.parser import command, keywords

EXAMPLE = "seresnet-hub convert my.pth --output my_model"


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, prog="seresnet-hub convert", example=EXAMPLE)
    parser.usage = "%(prog)s SRC --output DIR [options]"
    parser.add_argument("src", metavar="SRC", help="a file, a URL, or a Hub file NS/NAME:path")
    output = parser.add_argument_group("the model folder")
    output.add_argument("--output", required=True, metavar="DIR", help="the model folder to write")
    output.add_argument("--force", action="store_true", help="replace the model in an existing folder")
    known = parser.add_argument_group("what the checkpoint does not say")
    known.add_argument("--model", metavar="NAME", help="timm's architecture, where the tensors' shapes do not decide")
    known.add_argument(
        "--source", metavar="NAME", help="the code base that wrote it, such as mmpretrain (default: found)"
    )
    known.add_argument("--labels", metavar="FILE", help="class names, one a line")
    known.add_argument(
        "--license", metavar="ID", help="the weights' licence, such as apache-2.0, where it is not known"
    )
    changes = parser.add_argument_group("the conversion")
    changes.add_argument(
        "--num-classes", type=int, metavar="N", help="put in a new classifier of N classes; 0 for none"
    )
    changes.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True,
        help="compare with the source's own network (default: yes)",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.conversion.convert import convert

    return convert(**keywords(options))
