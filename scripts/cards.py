"""Render the cards in model_cards/ from the facts and measured results; --check says whether they are current."""

from __future__ import annotations

import seresnet_hub_command  # noqa: F401  # isort: skip

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seresnet_hub.commands.parser import command
from seresnet_hub.commands.result_or_error import start

if TYPE_CHECKING:
    from seresnet_hub.cards.card import Card, Result
    from seresnet_hub.cards.snippets import Place
    from seresnet_hub.models.published_weights import OwnWeights

# A card links into the repository, wherever the package was imported from: an installed one has no pictures.
OWN_FOLDERS = Path(__file__).resolve().parent.parent / "seresnet_hub" / "own_weights"


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, example="python scripts/cards.py --check")
    parser.add_argument("--directory", default="model_cards", type=Path, help="default: model_cards")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a card is stale")
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from _tables import sizes

    from seresnet_hub.cards.card import card_of_weights, render
    from seresnet_hub.errors import InputError
    from seresnet_hub.files.atomic_writing import write_text
    from seresnet_hub.models.published_weights import OWN_WEIGHTS, WEIGHTS

    published = [
        card_of_weights(weights, sizes(weights.architecture), measured(options.directory / f"{weights.name}.json"))
        for weights in WEIGHTS
    ]
    cards = [*published, *(own_card(weights, options.directory) for weights in OWN_WEIGHTS)]
    rendered = {options.directory / f"{card.title}.md": render(card) for card in cards}
    stale = [path for path, text in rendered.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if options.check and stale:
        raise InputError(f"stale: {', '.join(map(str, stale))}; run python scripts/cards.py")
    for path in stale:
        write_text(path, rendered[path])
    return {"cards": [str(path) for path in rendered], "changed": [str(path) for path in stale]}


def own_card(weights: OwnWeights, directory: Path) -> Card:
    """Return the card of weights that come with the package, from the folder that their training wrote."""
    from _tables import sizes

    from seresnet_hub.cards.card import card_of
    from seresnet_hub.files.atomic_writing import read_json
    from seresnet_hub.files.model_folder import CONFIG_NAME, CURVES_NAME

    config = read_json(weights.folder / CONFIG_NAME)
    card = card_of(config, sizes(weights.architecture), needs_plugin=True, has_curves=True)
    return replace(
        card, title=weights.name, notes=(*card.notes, *weights.notes),
        results=(*card.results, *measured(directory / f"{weights.name}.json")), place=place_of(weights),
        curves=os.path.relpath(OWN_FOLDERS / weights.name / CURVES_NAME, directory),
    )  # fmt: skip


def place_of(weights: OwnWeights) -> Place:
    """Return how code names weights that come with the package."""
    from seresnet_hub.cards.snippets import Place

    return Place(
        timm=weights.name,
        transformers=f'seresnet_hub.__path__[0] + "/own_weights/{weights.name}"',
        note="The weights come with the package; nothing is downloaded.",
    )


def measured(path: Path) -> list[Result]:
    """Return the results in a JSON file, none where there is no such file."""
    from seresnet_hub.cards.card import Result
    from seresnet_hub.errors import InputError

    if not path.exists():
        return []
    try:
        return [Result(**{**result, "origin": "measured"}) for result in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read the measured results in {path}: {error}") from error


if __name__ == "__main__":
    start(parser(), main)
