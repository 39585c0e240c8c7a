"""An int8 network computes nearly what the float one does, and exactly that where its layers are kept; in both formats,
to the same bytes each time, with nothing told to anyone."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from warm_python import run_python

from seresnet_hub.errors import InputError
from seresnet_hub.exporting.calibration_pictures import CalibrationPictures
from seresnet_hub.exporting.forms import INTEGER_PRODUCTS
from seresnet_hub.exporting.int8 import to_int8
from seresnet_hub.exporting.kept_layers import matching_layers, with_own_operations
from seresnet_hub.exporting.openvino_forms import has_integer_products
from seresnet_hub.exporting.tracing import traced
from seresnet_hub.models.fusion import fuse
from seresnet_hub.models.load import load

pytest.importorskip("nncf", reason="int8 needs the extra onnx or openvino")

PICTURES = CalibrationPictures(
    inputs=tuple(np.random.default_rng(0).normal(size=(12, 1, 3, 32, 32)).astype(np.float32)),
    source="noise", split="train", classes=None,
)  # fmt: skip


class Case(NamedTuple):
    """A float network in one format, its layers, and its int8 form."""

    format: str
    model: Any
    layers: Mapping[str, str]
    int8: Any
    record: Mapping[str, Any]

    def run(self, model: Any) -> np.ndarray:
        from seresnet_hub.exporting.int8_onnx import run_of_onnx
        from seresnet_hub.exporting.int8_openvino import run_of_openvino

        return (run_of_onnx if self.format == "onnx" else run_of_openvino)(model)(PICTURES.inputs)

    def bytes(self, model: Any) -> bytes:
        if self.format == "onnx":
            return model.SerializeToString(deterministic=True)
        from openvino import serialize

        with tempfile.TemporaryDirectory() as folder:
            serialize(model, f"{folder}/m.xml", f"{folder}/m.bin")
            return b"".join(Path(folder, name).read_bytes() for name in ("m.xml", "m.bin"))


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def case(request: pytest.FixtureRequest) -> Case:
    format = request.param
    pytest.importorskip("onnxruntime" if format == "onnx" else "openvino", reason=f"needs the extra {format}")
    from seresnet_hub.exporting import onnx_writer, openvino_writer

    program = traced(fuse(load("seresnet20_cifar.c10").eval()), batch=None, size=(32, 32))
    if format == "onnx":
        model: Any = onnx_writer.onnx_model(program)
        layers = onnx_writer.layers_of(model)
    else:
        model = openvino_writer.openvino_model(program)
        layers = openvino_writer.layers_of(model)
    made = to_int8(format, model, PICTURES, layers=layers)
    return Case(format, model, layers, made.model, made.record)


def test_int8_is_near_the_float_network_and_not_the_same(case: Case) -> None:
    exact, rounded = case.run(case.model), case.run(case.int8)
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.2


def test_the_record_names_the_layers_that_hurt_most_with_what_they_cost(case: Case) -> None:
    sensitive = case.record["sensitive"]
    assert 1 <= len(sensitive) <= 5
    assert sensitive[0]["gain"] == max(one["gain"] for one in sensitive)
    for one in sensitive:
        assert matching_layers([one["layer"]], with_own_operations(case.layers).values()), "a name that keep takes"
    assert case.record["int8_layers"] >= 20
    assert case.record["calibration"]["pictures"] == 12
    first = sensitive[0]["layer"]
    kept = to_int8(case.format, case.model, PICTURES, layers=case.layers, keep=[first])
    exact = case.run(case.model)
    before, after = (np.square(case.run(model) - exact).mean() for model in (case.int8, kept.model))
    assert after < before  # that is what a gain means
    assert kept.record["keep"] == [first]
    assert kept.record["int8_layers"] < case.record["int8_layers"]


def test_two_runs_give_the_same_bytes_and_change_nothing(case: Case) -> None:
    before = case.bytes(case.model)
    again = to_int8(case.format, case.model, PICTURES, layers=case.layers)
    assert case.bytes(again.model) == case.bytes(case.int8)
    assert case.bytes(case.model) == before


def test_layers_back_in_float_compute_what_the_float_network_does(case: Case) -> None:
    from seresnet_hub.exporting.int8_onnx import with_float_layers_onnx
    from seresnet_hub.exporting.int8_openvino import with_float_layers_openvino

    restore = with_float_layers_onnx if case.format == "onnx" else with_float_layers_openvino
    exact = case.run(case.model)
    all_back = case.run(restore(case.int8, case.model, set(case.layers.values()), layers=case.layers))
    assert np.abs(all_back - exact).max() <= 1e-4 * np.abs(exact).max()


def test_weights_are_rounded_with_a_scale_for_each_channel_around_zero(case: Case) -> None:
    if case.format != "onnx":
        pytest.skip("the file of ONNX says it plainly; the quantiser is the same")
    import onnx

    values = {one.name: onnx.numpy_helper.to_array(one) for one in case.int8.graph.initializer}
    weights = [
        node for node in case.int8.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values and values[node.input[0]].ndim == 4
    ]  # fmt: skip
    assert len(weights) >= 20
    for node in weights:
        weight, scale, zero = (values[name] for name in node.input)
        assert weight.dtype == np.int8
        assert not zero.any()
        assert scale.shape == (len(weight),)


def test_keep_of_an_unknown_layer_is_refused_before_anything_is_quantised(case: Case) -> None:
    with pytest.raises(InputError, match="did you mean"):
        to_int8(case.format, case.model, PICTURES, layers=case.layers, keep=["layer3.0.conv9"])


def test_a_network_without_an_int8_layer_is_no_int8_export(case: Case) -> None:
    with pytest.raises(InputError, match="nothing is int8"):
        to_int8(case.format, case.model, PICTURES, layers=case.layers, keep=["*"])


def test_the_form_is_what_was_written_and_what_is_measured(case: Case) -> None:
    if case.format != "openvino":
        pytest.skip("forms are OpenVINO's")
    measured: list[bool] = []

    def top1(model: Any) -> float:
        measured.append(has_integer_products(model))
        return 90.0

    made = to_int8("openvino", case.model, PICTURES, layers=case.layers, form=INTEGER_PRODUCTS, max_drop=1.0, top1=top1)
    assert (made.form, has_integer_products(made.model)) == (INTEGER_PRODUCTS, True)
    assert measured == [False, True], "the float network, and the int8 one as it is written"
    stages = ["layer1", "layer2", "layer3"]  # with them, no product is left in int8
    kept = to_int8("openvino", case.model, PICTURES, layers=case.layers, form=INTEGER_PRODUCTS, keep=stages)
    assert (kept.form, has_integer_products(kept.model)) == ("plain", False)


def test_the_gates_of_basic_blocks_stay_in_float_but_for_the_mean_and_the_product(case: Case) -> None:
    """NNCF leaves the two convolutions of such a gate alone, so keeping them changes nothing."""
    layers = _int8_layers(case, case.int8)
    assert [layer for layer in layers if ".se" in layer] == [f"layer{k}.{n}.se" for k in (1, 2, 3) for n in (0, 1, 2)]


@pytest.mark.slow
def test_max_drop_keeps_layers_until_the_accuracy_is_there(case: Case) -> None:
    def top1(model: Any) -> float:  # as if each layer in float were worth a fifth of a point
        rounded = len(_int8_layers(case, model))
        return 90 - 0.2 * max(rounded - (case.record["int8_layers"] - 2), 0)

    made = to_int8(case.format, case.model, PICTURES, layers=case.layers, max_drop=0.0, top1=top1)
    assert 1 <= len(made.record["kept_for_accuracy"]) <= 4


def _int8_layers(case: Case, model: Any) -> list[str]:
    from seresnet_hub.exporting.int8_onnx import int8_layers_onnx
    from seresnet_hub.exporting.int8_openvino import int8_layers_openvino

    find = int8_layers_onnx if case.format == "onnx" else int8_layers_openvino
    return find(model, layers=case.layers)


def test_nothing_is_printed_and_no_package_that_reports_is_loaded() -> None:
    pytest.importorskip("openvino", reason="openvino is in the extra 'openvino'")
    code = (
        "import sys\n"
        "from seresnet_hub.engines.required_packages import require_package\n"
        "require_package('openvino'); require_package('nncf')\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "from nncf.telemetry import telemetry\n"
        "from nncf.telemetry.wrapper import NNCFTelemetry\n"
        "assert not isinstance(telemetry, NNCFTelemetry)\n"
    )
    done = run_python([sys.executable, "-c", code])
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
