"""Training runs of a few small steps, and what is asked of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import write_numbers

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import Recipe, get_recipe
from seresnet_hub.training import train as training

SMALL = replace(get_recipe("digits"), epochs=2, batch_size=10, input_size=8, shuffle_window=20, workers=0)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `SMALL` over `numbers`, from its beginning to its end; not to be written to."""
    folder = tmp_path_factory.mktemp("whole")
    training.train(SMALL, data=write_numbers(folder), output=folder / "run")
    return folder / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refused(message: str, recipe: Recipe = SMALL, **arguments: object) -> None:
    with pytest.raises(InputError, match=message):
        training.train(recipe, **arguments)  # type: ignore[arg-type]
