"""Compare a model's files with the hashes they must have, load it and run it; exit code 1 where that fails."""

from __future__ import annotations

import _start  # isort: skip

import argparse
from collections.abc import Sequence
from typing import Any


def parser() -> argparse.ArgumentParser:
    parser = _start.command(__doc__)
    parser.add_argument("model", metavar="MODEL", help=_start.MODEL)
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.publishing.push import verify

    return verify(options.model)


if __name__ == "__main__":
    _start.start(parser(), main)
