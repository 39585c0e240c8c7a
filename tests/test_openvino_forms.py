"""Products of gates and maps stay in integers in OpenVINO's int8 engine, and no value of the network changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

openvino = pytest.importorskip("openvino", reason="int8 networks of OpenVINO are read by it")

from openvino import opset13 as op  # noqa: E402

from seresnet_hub.exporting.openvino_forms import with_integer_products  # noqa: E402

BATCH, CHANNELS, SIDE = 2, 16, 8


def quantizer(value: Any, low: float, high: float) -> Any:
    bounds = [op.constant(np.float32(bound)) for bound in (low, high, low, high)]
    return op.fake_quantize(value, *bounds, 256)


def int8_block(
    gate_low: float = 0.0, high: float = 4.96, gate_quantized: bool = True, convolutions: bool = True
) -> Any:
    """Return relu(x + gate * conv(x)) as a quantiser leaves it, with random weights, of one channel each if need be."""
    random = np.random.default_rng(0)
    images = op.parameter([-1, CHANNELS, SIDE, SIDE], np.float32, name="images")
    x = quantizer(images, 0.0, 5.1)

    def convolution(value: Any, scale: float) -> Any:
        weight = (random.integers(-127, 128, (CHANNELS, CHANNELS, 1, 1)) * scale / 127).astype(np.float32)
        grid = quantizer(op.constant(weight), -scale * 128 / 127, scale)
        if convolutions:
            made = op.convolution(value, grid, [1, 1], [0, 0], [0, 0], [1, 1])
        else:
            made = op.multiply(value, op.constant(weight[None, :, 0]))
        return op.add(made, op.constant(random.normal(0, 0.1, (1, CHANNELS, 1, 1)).astype(np.float32)))

    wide = quantizer(convolution(x, 1.0), -5.0, high)
    mean = quantizer(op.reduce_mean(x, op.constant([2, 3]), True), 0.0, 5.1)
    gate = op.sigmoid(convolution(mean, 0.5))
    gate = quantizer(gate, gate_low, 1.0) if gate_quantized else gate
    product = quantizer(op.multiply(wide, gate), -5.0, 4.96)
    y = op.relu(op.add(product, x))
    return openvino.Model([op.result(y)], [images], "block")


def images() -> np.ndarray:
    return np.random.default_rng(1).uniform(-0.5, 5.5, (BATCH, CHANNELS, SIDE, SIDE)).astype(np.float32)


def evaluated(model: Any) -> np.ndarray:
    """Return the output by OpenVINO's reference operations, none of which is an engine's."""
    out = openvino.Tensor(np.zeros((BATCH, CHANNELS, SIDE, SIDE), np.float32))
    assert model.evaluate([out], [openvino.Tensor(images())])
    return out.data.copy()


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def precisions(model: Any) -> list[str]:
    """Return in what the convolutions of the wide map write it, by the engine's own account."""
    model = model.clone()
    model.reshape([BATCH, CHANNELS, SIDE, SIDE])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [(node, node.get_rt_info()) for node in compiled.get_runtime_model().get_ordered_ops()]
    return [
        info["outputPrecisions"].astype(str)
        for node, info in infos
        if info["layerType"].astype(str) == "Convolution" and node.output(0).get_partial_shape()[3] == SIDE
    ]


def test_no_value_changes_and_the_network_given_stays() -> None:
    block = int8_block()
    before = kinds(block)
    integer = with_integer_products(block)
    assert kinds(block) == before
    assert kinds(integer).count("Clamp") == 1
    block = int8_block(convolutions=False)  # the reference operations have no convolution
    np.testing.assert_array_equal(evaluated(with_integer_products(block)), evaluated(block))
    assert len(np.unique(evaluated(block))) > 100


def test_the_engine_writes_the_map_in_integers() -> None:
    block = int8_block()
    if precisions(block) != ["f32"]:
        pytest.skip("this engine does not run the block's convolution in int8, or writes integers by itself")
    assert precisions(with_integer_products(block)) == ["i8"]


@pytest.mark.parametrize(
    "options", [{"gate_low": -1.0}, {"high": -1.0}, {"gate_quantized": False}], ids=["gate", "map", "float gate"]
)
def test_what_the_engine_does_not_take_in_integers_stays(options: dict[str, Any]) -> None:
    block = int8_block(**options)
    assert kinds(with_integer_products(block)) == kinds(block)
