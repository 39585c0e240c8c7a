"""Convert a checkpoint into a folder that timm loads; the last line of standard output is one JSON object."""

from __future__ import annotations

import _ctrl_c  # noqa: F401  # isort: skip

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from seresnet_hub.command_line import run
from seresnet_hub.conversion import convert
from seresnet_hub.sources import SOURCES


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source_file", metavar="SRC", help="a file, a URL, or a Hub file NS/NAME:path")
    parser.add_argument("--output", required=True, metavar="DIR", help="the model folder to write")
    parser.add_argument("--model", metavar="NAME", help="timm's architecture, where the tensors' shapes do not decide")
    names = ", ".join(source.name for source in SOURCES)
    parser.add_argument("--source", metavar="NAME", help=f"the code base that wrote it: {names} (default: found)")
    parser.add_argument("--num-classes", type=int, metavar="N", help="put in a new classifier of N classes; 0 for none")
    parser.add_argument("--labels", metavar="FILE", help="class names, one a line")
    parser.add_argument(
        "--license", metavar="ID", help="the weights' licence, such as apache-2.0, where it is not known"
    )
    parser.add_argument("--force", action="store_true", help="replace the model in an existing folder")
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True, help="compare with the source's own network"
    )
    options = parser.parse_args(arguments)
    return convert(
        options.source_file,
        options.output,
        model=options.model,
        source=options.source,
        num_classes=options.num_classes,
        labels=options.labels,
        license=options.license,
        force=options.force,
        verify=options.verify,
    )


if __name__ == "__main__":
    sys.exit(run(main))
