"""Train a model by a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from seresnet_hub.commands.parser import command

EXAMPLE = "seresnet-hub train --recipe finetune --data photos --output runs/mine"


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, prog="seresnet-hub train", example=EXAMPLE)
    parser.usage = "%(prog)s [options]"
    what = parser.add_argument_group("what to train")
    what.add_argument("--recipe", default="digits", metavar="NAME", help="a recipe, or FILE.toml (default: digits)")
    what.add_argument(
        "--set", action="append", default=[], nargs="+", metavar="KEY=VALUE", help="replace fields of the recipe"
    )
    what.add_argument("--data", metavar="DIR_OR_HUB_ID", help="data set to train on (default: the recipe's own)")
    what.add_argument("--list-recipes", action="store_true", help="list the recipes and exit")
    what.add_argument(
        "--show-recipe", nargs="?", const="", metavar="NAME",
        help="explain each field of a recipe with its value and exit (default: that of --recipe)",
    )  # fmt: skip
    what.add_argument(
        "--print-recipe", action="store_true",
        help="print the recipe as a file for --recipe, with each value's origin, and exit",
    )  # fmt: skip
    run = parser.add_argument_group("the run")
    run.add_argument("--output", metavar="DIR", help="folder for the model (default: runs/RECIPE)")
    run.add_argument("--resume", action="store_true", help="continue the run in --output, or begin it there")
    run.add_argument("--max-steps", type=int, metavar="N", help="stop after N steps")
    run.add_argument(
        "--stopped-exit-code", type=int, default=0, metavar="N",
        help="exit code where a signal stopped the run, for schedulers that take 0 for complete (default: 0)",
    )  # fmt: skip
    watching = parser.add_argument_group("watching it")
    watching.add_argument(
        "--tracker",
        action="append",
        default=[],
        metavar="NAME",
        help="also log to tensorboard, wandb, trackio, ...; repeatable",
    )
    watching.add_argument(
        "--profile", metavar="FILE", help="write where the device's time goes in some 20 steps into this JSON file"
    )
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.errors import InputError
    from seresnet_hub.recipes.field_types import described
    from seresnet_hub.recipes.recipe import listed, with_origins
    from seresnet_hub.recipes.toml_files import as_toml

    if options.list_recipes:
        return {"recipes": listed()}
    assignments = [assignment for group in options.set for assignment in group]
    recipe, origins = with_origins(options.show_recipe or options.recipe, assignments)
    if options.show_recipe is not None:
        return {"recipe": recipe.name, "fields": described(recipe)}
    if options.print_recipe:
        return {"recipe": recipe.name, "toml": as_toml(recipe, origins), "origins": origins}
    from seresnet_hub.training.train import train

    if not 0 <= options.stopped_exit_code <= 255:
        raise InputError(f"--stopped-exit-code {options.stopped_exit_code}: must be between 0 and 255")
    return train(
        recipe,
        output=options.output or f"runs/{recipe.name}",
        data=options.data,
        resume=options.resume,
        max_steps=options.max_steps,
        trackers=options.tracker,
        profile=options.profile,
    )


def exit_code(options: argparse.Namespace, result: dict[str, Any]) -> int:
    stopped_by_a_signal = bool(result.get("stopped"))
    return int(options.stopped_exit_code) if stopped_by_a_signal else 0
