"""Train a recipe; see --help. The last line of standard output is one JSON object."""

from __future__ import annotations

import _ctrl_c  # noqa: F401  # isort: skip

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from seresnet_hub.command_line import run
from seresnet_hub.errors import InputError
from seresnet_hub.recipes import RECIPES, get_recipe, override
from seresnet_hub.training import train


def main(arguments: Sequence[str]) -> tuple[dict[str, Any], int]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="digits", help=f"one of: {', '.join(RECIPES)} (default: digits)")
    parser.add_argument("--data", metavar="DIR_OR_HUB_ID", help="data set to train on (default: the recipe's own)")
    parser.add_argument("--output", metavar="DIR", help="folder for the model (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output; begin where there is none")
    parser.add_argument("--max-steps", type=int, metavar="N", help="stop after N steps")
    parser.add_argument(
        "--tracker", action="append", default=[], metavar="NAME", help="also log to tensorboard, wandb, trackio, ..."
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", nargs="+", help="replace fields of the recipe"
    )
    parser.add_argument(
        "--stopped-exit-code", type=int, default=0, metavar="N",
        help="exit code where a signal stopped the run, for schedulers that take 0 for complete (default: 0)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if not 0 <= options.stopped_exit_code <= 255:
        raise InputError(f"--stopped-exit-code {options.stopped_exit_code}: must be between 0 and 255")
    recipe = override(get_recipe(options.recipe), [assignment for group in options.set for assignment in group])
    result = train(
        recipe,
        output=options.output or f"runs/{recipe.name}",
        data=options.data,
        resume=options.resume,
        max_steps=options.max_steps,
        trackers=options.tracker,
    )
    return result, options.stopped_exit_code if result["stopped"] else 0


if __name__ == "__main__":
    sys.exit(run(main))
