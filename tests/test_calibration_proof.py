"""An int8 file that was damaged after it was quantised is refused, also where most first classes are right still."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import resolve_model_data_config
from torch import nn

from seresnet_hub.data.transforms import model_transform, normalize
from seresnet_hub.errors import InputError
from seresnet_hub.exporting import export as export_module
from seresnet_hub.exporting import int8, onnx_writer, openvino_writer
from seresnet_hub.exporting.calibration_pictures import CalibrationPictures
from seresnet_hub.exporting.calibration_proof import LIMIT, calibration_error, require_calibrated
from seresnet_hub.exporting.export import _batched
from seresnet_hub.exporting.export_proof import photograph_crops
from seresnet_hub.exporting.int8_onnx import quantized_onnx, run_of_onnx
from seresnet_hub.exporting.int8_openvino import quantized_openvino, run_of_openvino
from seresnet_hub.exporting.preprocessing import Preparation
from seresnet_hub.exporting.tracing import traced
from seresnet_hub.models.fusion import fuse
from seresnet_hub.models.load import load

pytest.importorskip("nncf", reason="int8 needs the extra onnx or openvino")

Run = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def model() -> Any:
    return load("seresnet20_cifar.c10").eval()


@pytest.fixture(scope="module")
def pictures(model: Any) -> CalibrationPictures:
    transform, config = model_transform(model)
    levels = torch.stack([torch.as_tensor(np.asarray(transform(crop))) for crop in photograph_crops(16)])
    return calibrated(normalize(levels, mean=config["mean"], std=config["std"]).contiguous().numpy())


def calibrated(pictures: np.ndarray) -> CalibrationPictures:
    return CalibrationPictures(inputs=tuple(one[None] for one in pictures), source="x", split="", classes=None)


def one_batch(run_of: Callable[[Any], Any]) -> Callable[[Any], Run]:
    def opened(network: Any) -> Run:
        run = run_of(network)
        return lambda images: run([images])

    return opened


class Quantised(NamedTuple):
    """An int8 network in one format, and what runs one like it."""

    format: str
    network: Any
    run_of: Callable[[Any], Run]


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def quantised(request: pytest.FixtureRequest, model: Any, pictures: CalibrationPictures) -> Quantised:
    format = request.param
    pytest.importorskip("onnxruntime" if format == "onnx" else "openvino", reason=f"needs the extra {format}")
    program = traced(fuse(model), batch=None, size=(32, 32))
    made: Any
    if format == "onnx":
        made = onnx_writer.onnx_model(program)
        int8 = quantized_onnx(made, pictures.inputs, layers=onnx_writer.layers_of(made))
        return Quantised(format, int8, one_batch(run_of_onnx))
    made = openvino_writer.openvino_model(program)
    int8 = quantized_openvino(made, pictures.inputs, layers=openvino_writer.layers_of(made))
    return Quantised(format, int8, one_batch(run_of_openvino))


# --- the damage -------------------------------------------------------------------------------------------------------


def zeroed(weight: np.ndarray) -> np.ndarray:
    return np.zeros_like(weight)


def swapped(weight: np.ndarray) -> np.ndarray:
    """Return the classifier's weights with two of ten classes exchanged, cats and dogs, which look alike."""
    changed = weight.copy()
    places: Any = (slice(None),) * weight.shape.index(10)
    changed[(*places, [3, 5])] = weight[(*places, [5, 3])]
    return changed


def an_eighth(bound: np.ndarray) -> np.ndarray:
    return bound / np.float32(8)


def with_weights(quantised: Quantised, layer: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Return the network with a layer's int8 weights changed."""
    if quantised.format == "onnx":
        return _changed_onnx(quantised.network, f"q_output_network.{layer}.weight_1", change)
    return _changed_openvino(quantised.network, rf"{layer}/(Convolution|MatMul)", 1, change)


def with_a_smaller_range(quantised: Quantised, layer: str) -> Any:
    """Return the network with most of the range cut off that the inputs of a layer have."""
    if quantised.format == "onnx":
        nodes = quantised.network.graph.node
        (taken,) = (node.input[0] for node in nodes if node.name == f"{layer}/Conv")
        (scale,) = (node.input[1] for node in nodes if taken in node.output)
        return _changed_onnx(quantised.network, scale, an_eighth)
    network = quantised.network
    (node,) = (one for one in network.get_ops() if one.get_friendly_name() == f"{layer}/Convolution")
    quantiser = node.input_value(0).get_node().get_friendly_name()
    for place in (2, 4):  # the upper bounds of what goes in and of what comes out
        network = _changed_openvino(network, re.escape(quantiser), place, an_eighth)
    return network


def _changed_onnx(network: Any, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    import onnx

    copied = type(network)()
    copied.CopyFrom(network)
    (tensor,) = (one for one in copied.graph.initializer if one.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), name))
    return copied


def _changed_openvino(network: Any, pattern: str, place: int, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    from openvino import opset13

    copied = network.clone()
    (node,) = (one for one in copied.get_ops() if re.fullmatch(pattern, one.get_friendly_name()))
    constant = node.input_value(place).get_node()
    while constant.get_type_name() != "Constant":
        constant = constant.input_value(0).get_node()
    made = opset13.constant(change(np.array(constant.data)), dtype=constant.get_element_type())
    for target in constant.output(0).get_target_inputs():
        target.replace_source_output(made.output(0))
    return copied


# --- the tests --------------------------------------------------------------------------------------------------------


def error_of(quantised: Quantised, network: Any, model: Any, pictures: CalibrationPictures) -> float:
    return calibration_error(quantised.run_of(network), model, pictures)


def test_a_sound_file_passes(quantised: Quantised, model: Any, pictures: CalibrationPictures) -> None:
    error = error_of(quantised, quantised.network, model, pictures)
    assert 0.01 < error < LIMIT / 2
    found = require_calibrated(quantised.run_of(quantised.network), model, pictures, "x")
    assert found == {"calibration_error": round(error, 4), "calibration_error_allowed": LIMIT}


@pytest.mark.parametrize(
    "damaged",
    [
        lambda quantised: with_weights(quantised, "layer1.1.conv2", zeroed),
        lambda quantised: with_weights(quantised, "fc", swapped),
        lambda quantised: with_a_smaller_range(quantised, "layer2.1.conv1"),
    ],
    ids=["a layer at zero", "two classes exchanged", "a wrong range"],
)
def test_planted_damage_is_refused(
    quantised: Quantised, model: Any, pictures: CalibrationPictures, damaged: Callable[[Quantised], Any]
) -> None:
    with pytest.raises(InputError, match=r"model_int8 does not compute .* 16 calibration pictures .* nothing was wri"):
        require_calibrated(quantised.run_of(damaged(quantised)), model, pictures, "model_int8")


def photograph(number: int) -> np.ndarray:
    """Return a part of a photograph, of its own place and size."""
    whole = load_sample_image(("china.jpg", "flower.jpg")[number % 2])
    return np.array(whole[15 * number : 15 * number + 200 + number, 25 * number : 25 * number + 300])


def linear(classes: int) -> nn.Linear:
    torch.manual_seed(0)
    network = nn.Linear(8, classes)
    network.weight.data[7] = 0  # a class whose logit never varies
    return network.eval()


def test_one_class_of_a_thousand_counts_and_one_that_never_varies_is_no_fault() -> None:
    network = linear(1000)
    drawn = calibrated(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    def swapped(images: np.ndarray) -> np.ndarray:
        found = run(images)
        found[:, [3, 5]] = found[:, [5, 3]]
        return found

    def rounded(images: np.ndarray) -> np.ndarray:
        return np.round(run(images), 1)

    assert calibration_error(run, network, drawn) < 1e-6
    assert calibration_error(rounded, network, drawn) < LIMIT
    assert calibration_error(swapped, network, drawn) > 1


def test_files_of_a_fixed_batch_and_with_the_preprocessing_inside(model: Any) -> None:
    pictures = [photograph(k)[None] for k in range(5)]
    unprepared = CalibrationPictures(inputs=tuple(pictures), source="x", split="", classes=None)
    inside = Preparation(resolve_model_data_config(model))
    seen: list[int] = []

    def run(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        with torch.inference_mode():
            return model(inside(torch.from_numpy(images))).softmax(1).numpy()

    assert calibration_error(run, model, unprepared) < 0.01
    assert seen == [1] * 5
    seen.clear()
    batched = _batched(unprepared, 2)  # of pictures of several sizes
    assert calibration_error(run, model, batched) < 0.01
    assert (seen, batched.count) == ([2] * 5, 5)
    same = replace(unprepared, inputs=tuple(one[:, :200, :250] for one in unprepared.inputs))
    batched = _batched(same, 2)
    assert calibration_error(run, model, batched) < 0.01
    assert (len(batched.inputs), batched.count) == (3, 5)
    assert calibration_error(lambda images: run(images)[:, ::-1], model, unprepared) > 0.5


def test_a_damaged_file_is_not_written(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    to_int8 = export_module.to_int8

    def damaged(format: str, *given: Any, **options: Any) -> Any:
        made = to_int8(format, *given, **options)
        return replace(made, model=with_weights(Quantised(format, made.model, run_of_onnx), "layer1.1.conv2", zeroed))

    monkeypatch.setattr(export_module, "to_int8", damaged)
    monkeypatch.setattr(int8, "sensitive_layers", lambda *_: [])  # takes longer than all the rest
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(photograph(number)).save(folder / f"{number}.png")
    asked: dict[str, Any] = {"precision": "int8", "calibrate": str(folder)}
    with pytest.raises(InputError, match="over the 12 calibration pictures"):
        export_module.export("seresnet20_cifar.c10", tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()
