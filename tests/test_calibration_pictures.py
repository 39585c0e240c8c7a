"""int8 is calibrated on the same pictures each time, spread over a data set, and a bad choice of them is noticed."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import seresnet_hub  # noqa: F401
from seresnet_hub.data.transforms import model_transform
from seresnet_hub.errors import InputError
from seresnet_hub.exporting.calibration_pictures import calibration_pictures, require_calibration


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return timm.create_model("seresnet20_cifar", num_classes=4)


def write(folder: Path, name: str, number: int) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (34, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, "PNG")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 60, 20, 6 and 4 pictures, one of them no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for label, count in (("ant", 60), ("bee", 20), ("cow", 6), ("dog", 4)):
        for k in range(count):
            write(folder, f"{label}/{k:02}.png", 100 * count + k)
    (folder / "cow" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_classes_are_shown_alike_and_what_cannot_be_read_is_left_out(photos: Path, model: nn.Module) -> None:
    found = calibration_pictures(str(photos), model, count=24)
    assert found.record() == {"data": photos.name, "split": found.split, "pictures": 24, "classes": 4}
    transform, config = model_transform(model)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    known = {}
    for path in sorted(photos.rglob("*.png")):
        if path.stat().st_size > 8:
            with Image.open(path) as picture:
                pixels = torch.as_tensor(np.asarray(transform(picture.convert("RGB"))))
            known[((pixels / 255 - mean) / std).numpy().tobytes()] = path.parent.name
    shown = [known[one.tobytes()] for one in found.inputs]  # each is a picture as the network takes it, none is black
    assert len({one.tobytes() for one in found.inputs}) == 24
    assert {name: shown.count(name) for name in set(shown)} == pytest.approx(
        {"ant": 7, "bee": 7, "cow": 5, "dog": 4}, abs=1
    )


def test_the_same_pictures_come_each_time_in_any_count(photos: Path, model: nn.Module) -> None:
    first, again = (calibration_pictures(str(photos), model, count=12) for _ in range(2))
    assert [one.tobytes() for one in first.inputs] == [one.tobytes() for one in again.inputs]
    more = calibration_pictures(str(photos), model, count=500)
    assert len(more.inputs) == 89  # all that can be read


def test_a_folder_without_classes_will_do_and_its_pictures_are_spread_over_it(tmp_path: Path, model: nn.Module) -> None:
    for k in range(60):
        write(tmp_path, f"{k:02}.png", k)
    found = calibration_pictures(str(tmp_path), model, count=12, prepared=False)
    assert found.classes is None
    assert {one.shape for one in found.inputs} == {(1, 34, 40, 3)}
    assert found.inputs[0].dtype == np.uint8
    numbers = {np.random.default_rng(k).integers(0, 256, (34, 40, 3), dtype=np.uint8).tobytes(): k for k in range(60)}
    taken = [numbers[one.tobytes()] for one in found.inputs]
    assert max(np.diff([-1, *taken, 60])) <= 10


def test_few_pictures_and_equal_ones_are_refused(tmp_path: Path, model: nn.Module) -> None:
    for k in range(9):
        write(tmp_path, f"few/{k}.png", k)
    with pytest.raises(InputError, match="has 9 pictures that can be read.* at least 10"):
        calibration_pictures(str(tmp_path / "few"), model)
    black = io.BytesIO()
    Image.new("RGB", (32, 32)).save(black, "PNG")
    for label in ("ant", "bee"):
        for k in range(8):
            path = tmp_path / "same" / label / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(black.getvalue())
    with pytest.raises(InputError, match="are all the same"):
        calibration_pictures(str(tmp_path / "same"), model)
    with pytest.raises(InputError, match="does not exist"):
        calibration_pictures(str(tmp_path / "nowhere"), model)


@pytest.mark.parametrize(("classes", "said"), [(["ant"], "all of one class"), (["ant", "bee", "cow", "dog"], "")])
def test_pictures_of_few_classes_are_warned_of(
    classes: list[str], said: str, tmp_path: Path, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    for number, label in enumerate(classes):
        for k in range(12):
            write(tmp_path, f"{label}/{k}.png", 50 * number + k)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "0.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        calibration_pictures(str(tmp_path), model)
    assert (said in caplog.text) if said else not caplog.text


def test_most_classes_missing_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, label in enumerate(("ant", "bee", "cow")):
        for k in range(12):
            write(tmp_path, f"{label}/{k}.png", 50 * number + k)
    with caplog.at_level(logging.WARNING):
        calibration_pictures(str(tmp_path), timm.create_model("seresnet20_cifar", num_classes=10))
    assert "show 3 of 10 classes" in caplog.text


def test_int8_needs_pictures_and_nothing_else_does() -> None:
    assert require_calibration("int8", None, "data") == "data"
    assert require_calibration("int8", "pictures", "data") == "pictures"
    assert require_calibration("fp32", None, "data") is None
    with pytest.raises(InputError, match="--calibrate with a folder"):
        require_calibration("int8", None, None)
    with pytest.raises(InputError, match="--calibrate is for --precision int8, not fp16"):
        require_calibration("fp16", "pictures", None)
