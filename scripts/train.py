"""Train a recipe; see --help. The last line of standard output is one JSON object."""

from __future__ import annotations

import _ctrl_c  # noqa: F401  # isort: skip

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from seresnet_hub.command_line import run
from seresnet_hub.recipe_fields import AUTO_TEXT, aligned, described
from seresnet_hub.recipes import RECIPES, SUMMARIES, Recipe, get_recipe, override
from seresnet_hub.training import train


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="digits", help=f"one of: {', '.join(RECIPES)} (default: digits)")
    parser.add_argument("--data", metavar="DIR_OR_HUB_ID", help="data set to train on (default: the recipe's own)")
    parser.add_argument("--output", metavar="DIR", help="folder for the model (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--max-steps", type=int, metavar="N", help="stop after N steps")
    parser.add_argument(
        "--tracker", action="append", default=[], metavar="NAME", help="also log to tensorboard, wandb, trackio, ..."
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        nargs="+",
        help="replace fields of the recipe (see --show-recipe)",
    )
    parser.add_argument("--list-recipes", action="store_true", help="list the recipes and stop")
    parser.add_argument(
        "--show-recipe", nargs="?", const="", metavar="NAME",
        help="explain each field of a recipe (default: that of --recipe) with its value and stop",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.list_recipes:
        return list_recipes()
    recipe = get_recipe(options.show_recipe or options.recipe)
    recipe = override(recipe, [assignment for group in options.set for assignment in group])
    if options.show_recipe is not None:
        return show_recipe(recipe)
    return train(
        recipe,
        output=options.output or f"runs/{recipe.name}",
        data=options.data,
        resume=options.resume,
        max_steps=options.max_steps,
        trackers=options.tracker,
    )


def list_recipes() -> dict[str, Any]:
    rows = [
        {"recipe": name, "model": recipe.model or AUTO_TEXT, "data": recipe.data or "yours",
         "summary": SUMMARIES[name]} for name, recipe in RECIPES.items()
    ]  # fmt: skip
    print(aligned([list(row.values()) for row in rows]))
    return {"recipes": rows}


def show_recipe(recipe: Recipe) -> dict[str, Any]:
    rows = described(recipe)
    print(aligned([(f"{row['field']}={row['value']}", f"{row['explanation']} ({row['values']})") for row in rows]))
    return {"recipe": recipe.name, "fields": rows}


if __name__ == "__main__":
    sys.exit(run(main))
