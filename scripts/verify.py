"""Compare a model's files with the hashes they must have, load it and run it; exit code 1 where that fails.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import _ctrl_c  # noqa: F401  # isort: skip

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from seresnet_hub.command_line import run
from seresnet_hub.hub import verify


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="NS/NAME[@rev], hf-hub:NS/NAME[@rev] or local-dir:DIR")
    options = parser.parse_args(arguments)
    return verify(options.model)


if __name__ == "__main__":
    sys.exit(run(main))
