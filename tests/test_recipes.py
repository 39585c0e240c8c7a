"""A recipe must refuse a wrong field before any work starts, and say what would be right."""

from __future__ import annotations

import dataclasses

import pytest
import timm

from seresnet_hub.errors import InputError
from seresnet_hub.recipes import RECIPES, Recipe, get_recipe, override


def test_every_recipe_names_a_model_that_exists() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert timm.is_model(recipe.model)


def test_a_recipe_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("digits").epochs = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Recipe("digits")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="epoch"):
        dataclasses.replace(get_recipe("digits"), epoch=3)


def test_override_reads_each_type() -> None:
    recipe = override(
        get_recipe("digits"),
        ["epochs=3", "learning_rate=1e-2", "decay_all=false", "crop=resized", "scale=0.5,1", "mean=0.1, 0.2, 0.3",
         "num_classes=7", "model=resnet18"],
    )  # fmt: skip
    assert (recipe.epochs, recipe.learning_rate, recipe.decay_all, recipe.crop) == (3, 0.01, False, "resized")
    assert (recipe.scale, recipe.mean, recipe.num_classes, recipe.model) == (
        (0.5, 1.0), (0.1, 0.2, 0.3), 7, "resnet18",
    )  # fmt: skip
    assert override(recipe, ["num_classes=none"]).num_classes is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "write it as key=value"),
        ("epoch=3", "no such field; it has: .*epochs"),
        ("name=x", "no such field"),
        ("epochs=3.5", "expected a whole number"),
        ("learning_rate=fast", "expected a number"),
        ("decay_all=1", "expected true or false"),
        ("crop=square", "expected one of pad, resized"),
        ("scale=0.5", "expected 2 numbers"),
        ("epochs=0", "must be a finite number greater than 0"),
        ("learning_rate=nan", "must be a finite number"),
        ("learning_rate=inf", "must be a finite number"),
        ("seed=99999999999999999999", "nor beyond"),
        ("std=0,1,1", "std=.*must be greater than 0"),
        ("scale=1,0.5", "the smaller number first"),
        ("weight_decay=-1", "must not be negative"),
        ("label_smoothing=2", "between 0 and 1"),
    ],
)
def test_override_refuses_and_says_why(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(get_recipe("digits"), [assignment])


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="cifar10, cifar10_paper, digits"):
        get_recipe("cifar100")
