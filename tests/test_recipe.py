"""A recipe must refuse a wrong field before any work starts, and say what would be right."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
from PIL import Image

from seresnet_hub.data.loader import transform_of
from seresnet_hub.data.plan import Order, Plan, Reader
from seresnet_hub.data.transforms import seeded
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.field_types import described
from seresnet_hub.recipes.recipe import AUTO, RECIPES, Recipe, get_recipe, override
from seresnet_hub.training.finetuning import Start, resolved


def test_every_recipe_names_a_model_that_exists() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.model is AUTO or timm.is_model(recipe.model)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.data == "ILSVRC/imagenet-1k"])
@pytest.mark.parametrize(("workers", "most_readings"), [(8, 1.5), (12, 1.75)])
def test_imagenet_recipes_keep_all_workers_of_eight_gpus_busy(name: str, workers: int, most_readings: float) -> None:
    """Of 8 ranks each worker decodes its share of an epoch, and few read the same row group."""
    recipe = get_recipe(name)
    images = recipe.batch_size // recipe.repeated_augmentation
    plan = Plan(
        unit_rows=(100,) * 12_811 + (67,), batch_size=images, lanes=recipe.lanes,
        order=Order(0, 0, recipe.shuffle_window), drop_last=True,
    )  # fmt: skip
    rows = [0] * (8 * workers)
    for batch in range(192):
        for number in range(len(rows)):
            low, high = plan.places(batch, Reader(number // workers, 8, number % workers, workers))
            rows[number] += high - low
    assert sum(rows) == 192 * images
    assert 0 < max(rows) <= 1.05 * min(rows)
    assert plan.readings(8, workers) <= most_readings
    assert recipe.shuffle_window == 100 * recipe.lanes >= 9600  # a row group a lane: the smallest window that there is


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
        ("epoch=3", r"no such field; did you mean 'epochs'\?"),
        ("zzz=3", "no such field; it has: .*epochs.*--show-recipe explains each"),
        ("crop=resize", r"expected one of pad, resized; did you mean 'resized'\?"),
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
        ("backbone_lr_factor=0", "must be a finite number greater than 0"),
        ("freeze=layer9", "expected one of nothing, stem, layer1"),
        ("freeze=stem", "there is nothing to keep in a random start"),
        ("bn_momentum=1.5", "must be between 0 and 1"),
        ("lr_scaling=linear", "base_batch_size=None: needed with lr_scaling"),
        ("base_batch_size=256", "only with them"),
        ("schedule=staircase", "decay_every=None: needed with schedule=staircase"),
        ("decay_every=2.4", "and only with it"),
        ("holdout=0.1", "nothing is held out where eval_split=validation is measured on; set holdout=0 too"),
        ("dropout=1", "dropout=1: must be less than 1"),
        ("target_threshold=0.2", "target_threshold=0.2: needs loss=binary"),
        ("eval_split=", "eval_split is empty"),
    ],
)
def test_override_refuses_and_says_why(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(get_recipe("digits"), [assignment])


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"did you mean 'cifar10'\?; there are: cifar10, cifar10_paper, digits"):
        get_recipe("cifar100")


def test_zero_init_is_refused_where_weights_are_read() -> None:
    with pytest.raises(InputError, match="zero_init_last=True: of no effect where weights=x are read"):
        dataclasses.replace(get_recipe("digits"), weights="x", zero_init_last=True)


def test_the_rate_scales_with_the_batch() -> None:
    recipe = dataclasses.replace(
        get_recipe("digits"), learning_rate=0.1, batch_size=1024, base_batch_size=256, lr_scaling="linear"
    )
    assert recipe.peak_learning_rate == pytest.approx(0.4)
    assert dataclasses.replace(recipe, lr_scaling="sqrt").peak_learning_rate == pytest.approx(0.2)
    assert get_recipe("digits").peak_learning_rate == get_recipe("digits").learning_rate


def test_fewer_epochs_shorten_a_warm_up_that_was_not_set() -> None:
    assert override(get_recipe("cifar10"), ["epochs=1"]).warmup_epochs == 0
    assert override(get_recipe("rsb_a2"), ["epochs=3"]).warmup_epochs == 2
    assert override(get_recipe("rsb_a2"), ["epochs=30"]).warmup_epochs == 5
    for recipe in ("cifar10", "finetune"):
        with pytest.raises(InputError, match="warmup_epochs=1: must be fewer than the 1 epochs"):
            override(get_recipe(recipe), ["epochs=1", "warmup_epochs=1"])


def test_auto_is_a_value_of_the_fields_that_may_follow() -> None:
    recipe = override(get_recipe("finetune"), ["epochs=3", "input_size=64"])
    assert (recipe.epochs, recipe.input_size, recipe.batch_size) == (3, 64, AUTO)
    assert override(recipe, ["epochs=auto"]).epochs is AUTO
    with pytest.raises(InputError, match="--set seed=auto: expected a whole number"):
        override(recipe, ["seed=auto"])


def test_every_field_is_explained_in_order_and_can_be_written_back() -> None:
    for recipe in RECIPES.values():
        rows = described(recipe)
        assert [row["field"] for row in rows] == [field.name for field in dataclasses.fields(Recipe)]
        assert all(row["explanation"] and row["values"] for row in rows)
        again = override(recipe, [f"{row['field']}={row['value']}" for row in rows if row["field"] != "name"])
        assert again == recipe
    of_finetune = {row["field"]: row["values"] for row in described(get_recipe("finetune"))}
    assert of_finetune["epochs"] == "whole number, or auto"
    assert of_finetune["mixed_precision"] == "no | bf16 | fp16"
    assert of_finetune["eval_size"] == "whole number, or none"


def draw(name: str, times: int) -> None:
    """Draw a recipe's training transform, at 16 pixels, with the draws of so many rows."""
    recipe, _ = resolved(get_recipe(name), Start(None, {}), images=1000)
    transform = transform_of(dataclasses.replace(recipe, input_size=16))
    x, y = np.meshgrid(np.arange(40), np.arange(30))
    picture = Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8))
    with seeded(0):
        for _ in range(times):
            assert transform(picture).shape == (3, 16, 16)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipes_transform_works_with_the_libraries_installed(name: str) -> None:
    draw(name, 500)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipes_transform_works_on_a_large_data_set(name: str) -> None:
    draw(name, 20_000)
