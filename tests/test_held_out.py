"""A model must not be measured on what it was trained on unless that is asked for by name, and a card's accuracy on
held-out images must be measurable again, on the same images or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import WriteSplit, encode, numbered_picture
from PIL import Image

import seresnet_hub
from seresnet_hub.data.held_out import open_splits, recorded, split_for
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.transforms import model_transform
from seresnet_hub.data.units import Row, picture_of, rows_of
from seresnet_hub.errors import InputError
from seresnet_hub.exporting.calibration_pictures import calibration_pictures
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import train as training

RECIPE = replace(
    get_recipe("finetune"), weights="seresnet20_cifar.c10", batch_size=8, epochs=2, workers=0, shuffle_window=20,
    holdout=0.25, seed=7,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 noisy pictures in three folders, hard enough that not all are told apart."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    draws = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog", "emu")):
        (folder / name).mkdir(parents=True)
        for k in range(8):
            pixels = np.clip(draws.normal(100 + 12 * number, 40, (30, 36, 3)), 0, 255).astype(np.uint8)
            (folder / name / f"{k}.jpg").write_bytes(encode(Image.fromarray(pixels), "JPEG"))
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "mine"
    training.train(RECIPE, data=str(photos), output=output)
    return output


def test_the_card_s_accuracy_is_measured_again(trained: Path, photos: Path, tmp_path: Path) -> None:
    from seresnet_hub.commands.validate import main

    facts = json.loads((trained / "config.json").read_text())["seresnet_hub"]
    (result,) = facts["results"]
    shutil.copytree(photos, tmp_path / "moved")  # elsewhere, and with other times of change
    for path in (photos, tmp_path / "moved"):
        measured = main([f"local-dir:{trained}", "--data", str(path), "--split", "held-out"])
        assert (measured["split"], measured["seen"]) == ("held-out", result["images"]) == ("held-out", 6)
        assert measured["top1"] == pytest.approx(result["top1"], abs=1e-4)
        assert measured["top5"] == pytest.approx(result["top5"], abs=1e-4)


def test_the_held_out_images_are_those_that_were_not_trained_on(trained: Path, photos: Path) -> None:
    model = seresnet_hub.load(f"local-dir:{trained}")
    rest, held = open_splits(str(photos), "train", None, holdout=0.25, seed=7)
    found = seresnet_hub.split_for(model, str(photos), "held-out")
    assert [found.place(k) for k in range(found.rows)] == [held.place(k) for k in range(held.rows)]
    assert not {rest.place(k) for k in range(rest.rows)} & {found.place(k) for k in range(found.rows)}
    assert split_for(model, str(photos), "train").rows == 24


def test_a_training_split_is_not_measured_in_silence(trained: Path, photos: Path, write_split: WriteSplit) -> None:
    from seresnet_hub.commands.validate import main

    with pytest.raises(InputError, match=r"only the split 'train', .* --split held-out measures .*, --split train all"):
        main([f"local-dir:{trained}", "--data", str(photos)])
    with pytest.raises(InputError, match="has only a train split, .*--split train"):
        main(["seresnet20_cifar.c10", "--data", str(photos)])
    with pytest.raises(InputError, match="has only a train split"):
        open_split(str(photos), None)
    numbers = str(write_split([[8]], split="test"))
    assert open_split(numbers, None).name == "test"


def test_a_training_split_of_another_name_is_known_to_the_model(tmp_path: Path, write_split: WriteSplit) -> None:
    root = write_split([[40]], classes=4)
    card = "configs:\n- config_name: default\n  data_files:\n  - split: all\n    path: '*.parquet'\n"
    (root / "README.md").write_text(f"---\n{card}---\n")
    data = str(root)
    training.train(replace(RECIPE, train_split="all"), data=data, output=tmp_path / "run", max_steps=1)
    model = seresnet_hub.load(f"local-dir:{tmp_path / 'run'}")
    with pytest.raises(InputError, match="only the split 'all'"):
        split_for(model, data)
    assert split_for(model, data, "held-out").rows == 8
    assert split_for(timm.create_model("seresnet20_cifar", num_classes=4), data).rows == 40


def test_what_was_trained_on_is_called_that(trained: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert split_for(seresnet_hub.load(trained), str(photos), "train").rows == 24
    assert "6 of the 24 images" in caplog.text
    assert "has learnt the others" in caplog.text


def test_other_pictures_are_not_called_those_of_the_training(trained: Path, photos: Path, tmp_path: Path) -> None:
    model = seresnet_hub.load(trained)
    new = shutil.copytree(photos, tmp_path / "new")
    for path in new.rglob("*.jpg"):
        path.write_bytes(encode(Image.new("RGB", (9, 9)), "JPEG"))
    with pytest.raises(
        InputError, match="it is not the data that this model was trained on, .*: --split train measures"
    ):
        split_for(model, str(new))
    assert split_for(model, str(new), "train").rows == 24


def test_a_broken_picture_among_the_held_out_is_left_out_again(photos: Path, tmp_path: Path) -> None:
    from seresnet_hub.commands.validate import main

    data = shutil.copytree(photos, tmp_path / "data")
    held = open_splits(str(data), "train", None, holdout=0.25, seed=7)[1]
    name = held.place(0).partition("row ")[2].partition(" of ")[0]
    broken = sorted(data.rglob("*.jpg"))[int(name)]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    recipe = replace(RECIPE, epochs=1, corrupt_share=0.1)
    result = training.train(recipe, data=str(data), output=tmp_path / "run")
    measured = main([str(tmp_path / "run"), "--data", str(data), "--split", "held-out"])
    assert measured["seen"] == 5
    assert measured["top1"] == pytest.approx(result["top1"], abs=1e-4)


def test_pictures_that_the_starting_weights_learnt_are_no_proof(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "The starting weights were trained on a collection of their own"
    for seed in (7, 8):
        recipe = replace(RECIPE, weights=str(trained), epochs=1, seed=seed)
        training.train(recipe, data=str(photos), output=tmp_path / str(seed), max_steps=1)
        assert (said in capsys.readouterr().err) == (seed == 8)
        assert (said in (tmp_path / str(seed) / "README.md").read_text()) == (seed == 8)


def test_other_data_or_changed_rows_are_named(trained: Path, photos: Path, tmp_path: Path) -> None:
    model = seresnet_hub.load(f"local-dir:{trained}")
    more, other, moved = (shutil.copytree(photos, tmp_path / name) for name in ("more", "other", "moved"))
    shutil.copy(more / "cat" / "0.jpg", more / "cat" / "new.jpg")
    with pytest.raises(InputError, match=r"more is not the data that 6 .* \(it has 25 images now, 24 then\)"):
        split_for(model, str(more), "held-out")
    (other / "dog" / "3.jpg").write_bytes(encode(Image.new("RGB", (9, 9)), "JPEG"))
    with pytest.raises(InputError, match=r"24 images, not the same"):
        split_for(model, str(other), "held-out")
    (moved / "emu").rename(moved / "ant")
    with pytest.raises(InputError, match=r"24 images, not the same"):
        split_for(model, str(moved), "held-out")


def test_a_model_without_held_out_images_says_so(tmp_path: Path, write_split: WriteSplit) -> None:
    write_split([[20]])
    data = str(write_split([[8]], split="validation"))
    recipe = replace(get_recipe("digits"), epochs=1, batch_size=10, input_size=8, shuffle_window=20, workers=0)
    training.train(recipe, data=data, output=tmp_path / "run", max_steps=1)
    model = seresnet_hub.load(f"local-dir:{tmp_path / 'run'}")
    assert recorded(model) is None
    with pytest.raises(InputError, match="--split held-out: the model does not record"):
        split_for(model, data, "held-out")
    assert split_for(model, data).name == "validation"


@pytest.mark.parametrize(
    "changes",
    [{"of": None}, {"seed": "x"}, {"seed": float("inf")}, {"seed": -1}, {"holdout": 5}, {"holdout": float("nan")}],
    ids=str,
)
def test_a_damaged_record_is_one_line(changes: dict[str, Any], trained: Path, photos: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    record = {**config["seresnet_hub"]["held_out"], **changes}
    config["seresnet_hub"]["held_out"] = {key: value for key, value in record.items() if value is not None}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not say how images were held out"):
        split_for(seresnet_hub.load(f"local-dir:{copy}"), str(photos), "held-out")


def test_shards_of_other_bytes_are_other_data(tmp_path: Path, write_split: WriteSplit) -> None:
    data = str(write_split([[20], [20]], classes=4))
    training.train(RECIPE, data=data, output=tmp_path / "run", max_steps=1)
    model = seresnet_hub.load(f"local-dir:{tmp_path / 'run'}")
    assert split_for(model, data, "held-out").rows == 8
    write_split([[20], [20]], classes=4, images=[numbered_picture(k + 1, 9) for k in range(40)])
    with pytest.raises(InputError, match="40 images, not the same"):
        split_for(model, data, "held-out")


def test_nothing_held_out_is_calibrated_on(trained: Path, photos: Path) -> None:
    model = seresnet_hub.load(trained)
    held_out = split_for(model, str(photos), "held-out")
    transform, config = model_transform(model)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    measured = {
        ((torch.as_tensor(np.asarray(transform(picture_of(held_out, row)))) / 255 - mean) / std).numpy().tobytes()
        for _, row in rows_of(held_out, range(held_out.rows)) if isinstance(row, Row)
    }  # fmt: skip
    found = calibration_pictures(str(photos), model)
    assert (len(found.inputs), found.classes, len(measured)) == (18, 3, 6)
    assert not measured & {one[0].tobytes() for one in found.inputs}
    other = timm.create_model("seresnet20_cifar", num_classes=3)
    assert measured < {one[0].tobytes() for one in calibration_pictures(str(photos), other).inputs}


def test_an_export_is_measured_on_what_was_held_out_from_its_source(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    from seresnet_hub.commands.validate import main

    made = seresnet_hub.export(trained, tmp_path, format="openvino", data=str(photos), split="held-out")
    name = f"openvino:{tmp_path}"
    assert recorded(seresnet_hub.load(name)) == recorded(seresnet_hub.load(trained))
    own, exported = (main([one, "--data", str(photos), "--split", "held-out"]) for one in (str(trained), name))
    same = ("split", "seen", "counted", "top1", "top5")
    assert [exported[key] for key in same] == [own[key] for key in same]
    assert (made["top1_before"], made["top1_after"]) == (own["top1"], own["top1"])
    with pytest.raises(InputError, match="--split held-out measures"):
        main([name, "--data", str(photos)])
