"""Compare a model's files with their hashes, load it and run it.

The exit code is 1 where any of it fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from seresnet_hub.commands.parser import command
from seresnet_hub.models.name_forms import NAME_FORMS

EXAMPLE = "seresnet-hub verify NS/NAME"


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, prog="seresnet-hub verify", example=EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help=NAME_FORMS)
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.publishing.verify import verify

    return verify(options.model)
