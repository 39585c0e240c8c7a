"""How every script starts: Ctrl-C gives one line from the first moment, and --help needs none of the heavy imports.

Imported first, and needs the standard library alone; a script imports the package inside its `main`, after its options
have been read.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

JSON_HELP = "print the result as one line of JSON, as in a pipe"
MODEL = (
    "a timm name, a model folder (DIR or local-dir:DIR), or a Hub repository (NS/NAME[@rev] or hf-hub:NS/NAME[@rev])"
)


def _stop(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


signal.signal(signal.SIGINT, _stop)  # until `seresnet_hub.command_line.run` takes over


def command(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that all scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    return parser


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Add the options that make a model faster."""
    parser.add_argument("--fuse", action="store_true", help="rewrite the model for inference first")
    parser.add_argument(
        "--compile", nargs="?", const="default", choices=("default", "epilogue"), metavar="SETTINGS",
        help="compile the model first, with the settings default or epilogue (takes a minute or more)",
    )  # fmt: skip


def start(
    parser: argparse.ArgumentParser,
    main: Callable[[Sequence[str]], dict[str, Any]],
    exit_code: Callable[[argparse.Namespace, dict[str, Any]], int] = lambda *_: 0,
) -> NoReturn:
    """Run a script's `main` on the command line's arguments, and exit with what `exit_code` makes of the result."""
    options = parser.parse_args()  # --help and wrong options end here
    from seresnet_hub.command_line import run

    sys.exit(run(main, as_json=options.json, exit_code=partial(exit_code, options)))
