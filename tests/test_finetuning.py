"""A recipe's open fields must get values that fit the weights and the data, and a field that is set must stay."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
from conftest import WriteSplit
from huggingface_hub import constants
from warm_python import free_port

from seresnet_hub.data.loader import loader
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.field_types import following, written
from seresnet_hub.recipes.recipe import AUTO, RECIPES, get_recipe, override
from seresnet_hub.training import finetuning
from seresnet_hub.training import train as training
from seresnet_hub.training.finetuning import Start, resolved, start_of

FINETUNE = get_recipe("finetune")
PACKAGED = "seresnet20_cifar.c10"


def timms(name: str) -> Start:
    """A start from weights of timm's that are not fetched."""
    return Start(name, timm.get_pretrained_cfg(name).to_dict())


def test_architecture_and_preprocessing_are_those_of_the_weights() -> None:
    recipe = replace(FINETUNE, weights=PACKAGED)
    found, line = resolved(recipe, start_of(recipe), images=162)
    cfg = timm.get_pretrained_cfg(PACKAGED)
    assert (found.model, found.input_size, found.interpolation, found.crop_pct) == (
        cfg.architecture, cfg.input_size[-1], cfg.interpolation, cfg.crop_pct,
    )  # fmt: skip
    assert following(found) == []
    assert "\n" not in line
    for name in following(recipe):
        assert f"{name}={written(getattr(found, name))}" in line
    large, _ = resolved(FINETUNE, timms("seresnet50.ra2_in1k"), images=5000)
    assert (large.model, large.input_size, large.interpolation, large.crop_pct) == ("seresnet50", 224, "bicubic", 0.875)


def test_weights_of_photographs_change_gently() -> None:
    """With ImageNet's weights and thousands of pictures the recipe is what it was before fields could follow."""
    found, _ = resolved(FINETUNE, timms("seresnet50.ra2_in1k"), images=5000)
    assert (found.batch_size, found.epochs, found.learning_rate, found.backbone_lr_factor) == (64, 20, 0.01, 0.1)
    assert found.warmup_epochs == 1


@pytest.mark.parametrize("images", [14, 162, 1599, 1600, 40_000])
def test_few_images_get_steps_enough(images: int) -> None:
    found, line = resolved(FINETUNE, timms("seresnet50.ra2_in1k"), images=images)
    steps = found.epochs * -(-images // found.batch_size)
    assert steps >= 500 or found.epochs == 100
    assert f"for {images:,} images: {steps:,} steps" in line


def test_a_set_field_wins() -> None:
    assignments = {"model": "seresnet50", "epochs": "3", "batch_size": "8", "learning_rate": "0.5", "input_size": "64",
                   "backbone_lr_factor": "0.7", "warmup_epochs": "2", "interpolation": "bilinear", "scale": "0.3,1",
                   "crop_pct": "0.9"}  # fmt: skip
    assert set(assignments) == set(following(FINETUNE))
    recipe = override(FINETUNE, [f"{name}={value}" for name, value in assignments.items()])
    assert resolved(recipe, timms("seresnet50.ra2_in1k"), images=100) == (recipe, "")
    alone, line = resolved(override(FINETUNE, ["epochs=1"]), timms("seresnet50.ra2_in1k"), images=100)
    assert (alone.epochs, alone.warmup_epochs) == (1, 0)
    assert "epochs=1" not in line.replace("warmup_epochs", "")


def test_recipes_without_open_fields_stay_as_they_are() -> None:
    for recipe in RECIPES.values():
        if recipe is not FINETUNE:
            assert resolved(recipe, Start(None, {}), images=100) == (recipe, "")


def test_a_random_start_takes_the_architectures_own_size() -> None:
    recipe = replace(FINETUNE, weights=None, model="seresnet20_cifar")
    assert resolved(recipe, start_of(recipe), images=100)[0].input_size == 32
    recipe = replace(FINETUNE, weights=None)
    assert resolved(recipe, start_of(recipe), images=100)[0].model == "seresnet50"


def test_a_loader_needs_values(write_split: WriteSplit) -> None:
    with pytest.raises(InputError, match="recipe 'finetune' leaves model, .*batch_size.* open: give them values"):
        loader(str(write_split([[8]])), "train", FINETUNE)


def test_what_was_chosen_is_recorded_and_resumed(
    tmp_path: Path, write_split: WriteSplit, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_split([[40]], classes=2))
    recipe = replace(FINETUNE, weights=PACKAGED, workers=0, shuffle_window=20, epochs=2)
    training.train(recipe, data=data, output=tmp_path / "run", max_steps=2)
    assert "chosen by recipe 'finetune' (--set changes them): model=seresnet20_cifar" in capsys.readouterr().err
    facts = json.loads((tmp_path / "run" / "config.json").read_text())["seresnet_hub"]
    assert (facts["recipe"]["input_size"], facts["recipe"]["batch_size"], facts["recipe"]["epochs"]) == (
        "32",
        "16",
        "2",
    )
    assert facts["recipe"]["model"] == "seresnet20_cifar"
    fields = "(weights|epochs|workers|shuffle_window)"
    expected = rf".*--recipe finetune --data numbers --max-steps 2( --set {fields}=\S+){{4}}"
    assert re.fullmatch(expected, facts["command"])
    words = [word.partition("=") for word in facts["command"].split() if "=" in word]
    assert override(get_recipe("finetune"), ["=".join((key, value)) for key, _, value in words]) == recipe
    result = training.train(recipe, data=data, output=tmp_path / "run", resume=True)
    assert result["steps"] == 2 * 2  # 32 images in batches of 16


# --- without a network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_weights_out_of_reach_name_the_ways_out_at_once(
    host: str, tmp_path: Path, write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{host}:{free_port()}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        training.train(replace(FINETUNE, workers=0), data=str(write_split([[8]])), output=tmp_path / "run")
    assert time.monotonic() - begun < 10
    for way in ("weights=DIR", f"weights={PACKAGED}", "weights=none"):
        assert way in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_simply_wrong_are_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder") as caught:
        start_of(replace(FINETUNE, weights=f"local-dir:{tmp_path / 'nowhere'}"))
    assert "weights=none" not in str(caught.value)


def test_the_packaged_weights_are_named_by_the_table() -> None:
    assert finetuning.OWN_WEIGHTS[0].name == PACKAGED
    assert FINETUNE.model is AUTO
