"""What an export costs in accuracy must be measured: a network quantised on the wrong pictures shows in the report."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import seresnet_hub
from seresnet_hub.data.class_names import class_names
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.units import Row, picture_of, rows_of
from seresnet_hub.errors import InputError
from seresnet_hub.exporting import int8
from seresnet_hub.exporting.calibration_pictures import calibration_pictures
from seresnet_hub.exporting.export import export
from seresnet_hub.exporting.export_accuracy import export_accuracy, warn_of_large_drop

LEVELS = 255


@pytest.fixture(scope="module")
def model() -> Any:
    return seresnet_hub.load("seresnet20_cifar.c10")


@pytest.fixture(scope="module")
def labelled(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders named by the class that the network finds in them: it is right about all of them."""
    folder = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    pictures = [
        np.kron(random.integers(0, 256, (cells, cells, 3), np.uint8), np.ones((32 // cells, 32 // cells, 1), np.uint8))
        for cells in (2, 4, 8, 16) for _ in range(30)
    ]  # fmt: skip
    for name in class_names(model) or ():
        (folder / "test" / name).mkdir(parents=True)
    for number, answers in enumerate(seresnet_hub.predict(model, pictures, topk=1)):
        Image.fromarray(pictures[number]).save(folder / "test" / answers[0]["name"] / f"{number:03d}.png")
    for name in class_names(model) or ():
        if not any((folder / "test" / name).iterdir()):
            (folder / "test" / name).rmdir()
    return folder


def quantised(model: Any, pictures: np.ndarray) -> nn.Module:
    """The network with the outputs of its activations in 255 levels of the range that they have on these pictures."""
    changed: Any = copy.deepcopy(model)
    relus = [module for module in changed.modules() if isinstance(module, nn.ReLU)]
    ranges: dict[nn.Module, float] = {}

    def note(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        ranges[module] = max(ranges.get(module, 0.0), float(output.max()))

    def rounded(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        step = max(ranges[module], 1e-6) / LEVELS
        return (output / step).round().clamp(0, LEVELS) * step

    hooks = [module.register_forward_hook(note) for module in relus]
    with torch.inference_mode():
        changed(torch.from_numpy(pictures))
    for hook in hooks:
        hook.remove()
    for module in relus:
        module.register_forward_hook(rounded)
    return changed


def test_a_bad_calibration_set_is_noticed(model: Any, labelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = open_split(str(labelled), "test")
    black = np.full((10, 3, 32, 32), -1.9, np.float32)
    bad = export_accuracy(model, quantised(model, black), split)
    with caplog.at_level(logging.WARNING):
        warn_of_large_drop(bad, "int8")
    assert (bad.top1_before, bad.images) == (100.0, 120)
    assert bad.drop > 10
    (record,) = caplog.records
    message = record.getMessage()
    assert f"int8 loses {bad.drop:.2f} points of top-1 on 120 images" in message
    assert all(way_out in message for way_out in ("--calibrate", "--keep", "--max-drop"))
    assert "\n" not in message
    good_pictures = calibration_pictures(str(labelled), model, count=60, split="test")
    good = export_accuracy(model, quantised(model, np.concatenate(good_pictures.inputs)), split)
    assert good.drop < bad.drop / 2
    assert good.top1_after == pytest.approx(good.top1_before - good.drop)


def test_the_same_network_loses_nothing(model: Any, labelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = open_split(str(labelled), "test")
    found = export_accuracy(model, copy.deepcopy(model), split)
    assert (found.top1_after, found.top5_after, found.drop) == (100.0, 100.0, 0.0)
    warn_of_large_drop(found, "fp32")
    assert not caplog.records
    assert found.to_json()["split"] == "test"


def test_classes_of_another_order_and_some_of_them_are_known_by_name(model: Any, labelled: Path) -> None:
    """The exported file knows no class names of its own here: those of the network count."""
    order = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    turned: Any = copy.deepcopy(model)
    turned.fc.weight = nn.Parameter(turned.fc.weight[order])
    turned.fc.bias = nn.Parameter(turned.fc.bias[order])
    names = class_names(model) or []
    turned.pretrained_cfg = {**model.pretrained_cfg, "label_names": [names[k] for k in order]}
    unnamed = copy.deepcopy(turned)
    unnamed.pretrained_cfg = {k: v for k, v in model.pretrained_cfg.items() if k != "label_names"}
    split = open_split(str(labelled), "test")
    found = export_accuracy(turned, unnamed, split)
    assert (found.top1_before, found.top1_after) == (100.0, 100.0)
    assert found.classes == (None if len(split.class_names or ()) == 10 else len(split.class_names or ()))


def test_a_set_of_other_classes_is_refused(model: Any, tmp_path: Path) -> None:
    for name in ("apple", "pear"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "test" / name / "one.png")
    with pytest.raises(InputError, match="2 classes, the model 10"):
        export_accuracy(model, model, open_split(str(tmp_path), "test"))


@pytest.fixture
def unranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the search for the layers that int8 hurts most, which takes longer than all the rest."""
    monkeypatch.setattr(int8, "sensitive_layers", lambda *_: [])


def calibrated_on(folder: Path, levels: int, output: Path, **options: Any) -> dict[str, Any]:
    """Export to int8, calibrated on noise of so many levels; what is nearly black shows a network nothing."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(random.integers(0, levels, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    return export("seresnet20_cifar.c10", output, precision="int8", calibrate=str(folder), **options)


@pytest.mark.usefixtures("unranked")
def test_an_export_calibrated_on_black_pictures_is_refused(labelled: Path, tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnxscript", "nncf"):
        pytest.importorskip(package, reason="needs the extra onnx")
    with pytest.raises(InputError, match="nothing was written: calibrate on pictures like those it will see"):
        calibrated_on(tmp_path / "black", 4, tmp_path / "bad", data=str(labelled))
    assert not (tmp_path / "bad").exists()
    good = export("seresnet20_cifar.c10", tmp_path / "good", precision="int8", data=str(labelled))
    assert good["drop"] < 10
    quantization = good["quantization"]
    assert 0.01 < quantization["calibration_error"] < quantization["calibration_error_allowed"]


@pytest.mark.slow
@pytest.mark.usefixtures("unranked")
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_bad_calibration_set_is_noticed_on_real_pictures(
    format: str, cifar10_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("nncf", reason="needs the extra onnx or openvino")
    options = {"format": format, "data": str(cifar10_copy)}
    for name, levels in (("black", 4), ("noise", 256)):
        with pytest.raises(InputError, match="calibrate on pictures like those it will see"):
            calibrated_on(tmp_path / name, levels, tmp_path / "bad", **options)
    # Of a quarter of the contrast, they show too small ranges: that passes every proof, and the accuracy alone tells.
    (tmp_path / "faint").mkdir()
    split = open_split(str(cifar10_copy), "train")
    for number, row in rows_of(split, range(0, 6000, 20)):
        assert isinstance(row, Row)
        levels_of = np.asarray(picture_of(split, row), np.float32)
        Image.fromarray((115 + (levels_of - 115) / 4).astype(np.uint8)).save(tmp_path / "faint" / f"{number:05d}.png")
    bad = export(
        "seresnet20_cifar.c10", tmp_path / "bad", precision="int8", calibrate=str(tmp_path / "faint"), **options
    )
    assert bad["drop"] > 5
    assert f"int8 loses {bad['drop']:.2f} points of top-1 on 10,000 images" in caplog.text
    caplog.clear()
    good = export("seresnet20_cifar.c10", tmp_path / "good", precision="int8", calibrate=str(cifar10_copy), **options)
    assert good["drop"] <= 0.3
    assert "loses" not in caplog.text  # torch writes down what it traces, at the lowest level
