"""The weights that come with the package must load without a network, be what their card says, and be checked."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import safetensors
import timm
import torch
from PIL import Image
from warm_python import run_python

import seresnet_hub
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.data.read_image import read_image
from seresnet_hub.errors import InputError
from seresnet_hub.models import pretrained
from seresnet_hub.models.published_weights import OWN_WEIGHTS, OwnWeights

PREDICT = str(Path(__file__).parents[1] / "scripts" / "predict.py")


@pytest.fixture(params=OWN_WEIGHTS, ids=lambda weights: weights.name)
def own(request: pytest.FixtureRequest) -> OwnWeights:
    weights: OwnWeights = request.param
    return weights


def test_they_are_small_and_whole(own: OwnWeights) -> None:
    assert sum(path.stat().st_size for path in own.folder.iterdir()) < 2e6
    with safetensors.safe_open(own.folder / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    seresnet_hub.verify(f"local-dir:{own.folder}")


def test_plain_timm_loads_them_by_name(own: OwnWeights) -> None:
    model = timm.create_model(own.name, pretrained=True)
    stored = safetensors.torch.load_file(own.folder / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    config = json.loads((own.folder / "config.json").read_text())
    assert list(model.pretrained_cfg["label_names"]) == config["label_names"]
    assert own.name in timm.list_pretrained()
    random = timm.create_model(own.architecture)
    assert not torch.equal(random.conv1.weight, model.conv1.weight)


def test_changed_bytes_are_refused(own: OwnWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = shutil.copytree(own.folder, tmp_path / own.name)
    monkeypatch.setattr(OwnWeights, "folder", copied)
    assert pretrained.own_file(own) == copied / "model.safetensors"
    data = bytearray((copied / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"model.safetensors has sha256 \w+…, not \w+…: install the package again"):
        seresnet_hub.load(own.name)
    (copied / "model.safetensors").unlink()
    with pytest.raises(InputError, match="No such file or directory; install the package again"):
        pretrained.own_file(replace(own))


def test_pictures_are_named_without_a_network_or_a_model_name(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.png")
    command = [sys.executable, PREDICT, str(tmp_path / "a.png"), "--topk", "10"]
    environment = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = run_python(command, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    config = json.loads((OWN_WEIGHTS[0].folder / "config.json").read_text())
    assert result["model"] == OWN_WEIGHTS[0].name
    said = f"model: {OWN_WEIGHTS[0].name}, the default, which comes with the package (seresnet20_cifar, 10 classes)"
    assert said in done.stderr
    assert {found["name"] for found in result["predictions"][0]["classes"]} == set(config["label_names"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere.png", "nowhere.png: no such file or folder"),
        (
            "seresnet20_cifar",
            "there is no picture to look at: seresnet20_cifar is taken for a model, since no such file or folder is "
            "here; name pictures after it",
        ),
    ],
)
def test_a_model_without_pictures_is_told_so(argument: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    from seresnet_hub.commands.predict import main

    assert run(main, [argument]) == 2
    assert f"error: {message}" in capfd.readouterr().err


def test_real_pictures_are_recognised(own: OwnWeights, cifar10_copy: Path) -> None:
    """The first 200 test images: within three standard errors of the accuracy on the card."""
    rows = datasets.load_dataset(str(cifar10_copy), split="test[:200]").cast_column(
        "image", datasets.Image(decode=False)
    )
    found = seresnet_hub.predict(
        seresnet_hub.load(own.name), [read_image(row["image"]["bytes"]) for row in rows], topk=1
    )
    right = sum(best[0]["index"] == label for best, label in zip(found, rows["label"], strict=True))
    top1 = json.loads((own.folder / "config.json").read_text())["seresnet_hub"]["results"][0]["top1"]
    assert abs(100 * right / 200 - top1) < 3 * 100 * (0.85 * 0.15 / 200) ** 0.5


def test_the_counts_of_the_classes_are_the_accuracy(own: OwnWeights) -> None:
    facts = json.loads((own.folder / "config.json").read_text())["seresnet_hub"]
    [result], counted = facts["results"], facts["per_class"]
    assert sum(counted["images"]) == result["images"]
    assert 100 * sum(counted["correct"]) / sum(counted["images"]) == pytest.approx(result["top1"])


@pytest.mark.slow
def test_the_accuracy_on_the_card_is_measured_again(own: OwnWeights, cifar10_copy: Path) -> None:
    split = seresnet_hub.open_split(str(cifar10_copy), "test")
    accuracy = seresnet_hub.evaluate(seresnet_hub.load(own.name), split, workers=0)
    result = json.loads((own.folder / "config.json").read_text())["seresnet_hub"]["results"][0]
    assert accuracy.seen == result["images"]
    # Which of two almost equal logits is larger may depend on the machine.
    assert (accuracy.top1, accuracy.top5) == pytest.approx((result["top1"], result["top5"]), abs=0.05)
