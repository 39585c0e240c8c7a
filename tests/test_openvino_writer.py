"""OpenVINO's files compute what the network does, name their layers, say what they are, and appear whole or not."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import seresnet_hub  # noqa: F401  registers the architectures
from seresnet_hub.engines.export_facts import ExportFacts
from seresnet_hub.errors import InputError
from seresnet_hub.exporting.openvino_writer import SECTION, layers_of, openvino_model, write_openvino
from seresnet_hub.exporting.tracing import traced
from seresnet_hub.models.fusion import fuse

pytest.importorskip("openvino", reason="needs the extra [openvino]")

FACTS = ExportFacts(
    format="openvino", precision="fp32", architecture="seresnet20_cifar", model="seresnet20_cifar", num_classes=2,
    class_names=("a\n<&>\x1b", "ü"), input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
    interpolation="bicubic", crop_pct=1.0, crop_mode="center", license="", sha256=None, tensors_sha256="0" * 64,
    fused=True, form="plain", batch=None, dynamic_size=False, preprocessing=False, version="1",
)  # fmt: skip
WEIGHTED = ("/Convolution", "/MatMul")
HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16"}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = timm.create_model("seresnet20_cifar", num_classes=10)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean of what it sees
            torch.nn.init.uniform_(layer.weight, 0.5, 1.0)
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 32, 32))
    return network.eval()


@pytest.fixture(scope="module")
def model(network):
    return openvino_model(traced(fuse(network), batch=None, size=(32, 32)))


def logits_of(source, images, hint="f32"):
    import openvino

    core = openvino.Core()
    model = core.read_model(source) if isinstance(source, Path) else source
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1})(images)[0]


def difference(network, source, count, hint="f32"):
    """The largest difference of a logit from the float64 network's, in parts of the largest of these."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    with torch.no_grad():
        expected = network.double()(images.double()).numpy()
        network.float()
    return np.abs(logits_of(source, images.numpy(), hint) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_is_computed_as_by_the_network_in_float64(network, model, batch):
    assert difference(network, model, batch) <= 1e-5


def test_input_output_and_shapes_are_those_of_the_trace(network, model):
    (images,), (logits,) = model.inputs, model.outputs
    assert (images.get_names(), logits.get_names()) == ({"pixel_values"}, {"logits"})
    assert images.get_partial_shape().to_string() == "[?,3,32,32]"
    assert logits.get_partial_shape().to_string() == "[?,10]"
    fixed = openvino_model(traced(network, batch=4, size=(32, 32)))
    assert fixed.inputs[0].get_partial_shape().to_string() == "[4,3,32,32]"
    assert difference(network, fixed, 4) <= 1e-5
    free = openvino_model(traced(network, batch=None, size=(32, 32), dynamic_size=True))
    assert free.inputs[0].get_partial_shape().to_string() == "[?,3,?,?]"
    assert difference(network, free, 3) <= 1e-5


def test_every_weight_has_the_name_of_its_layer(network, model, tmp_path):
    layers = layers_of(model)
    assert {layers[name] for name in layers if name.endswith(WEIGHTED)} == weighted(network)
    modules = dict(network.named_modules())
    assert all(layer in modules for layer in layers.values())
    write_openvino(model, tmp_path / "m.xml", FACTS)
    assert layers_of(read(tmp_path / "m.xml")) == layers


def test_weights_with_a_batch_norm_folded_in_have_the_name_of_their_layer(network):
    layers = layers_of(openvino_model(traced(network, batch=None, size=(32, 32))))
    assert {layers[name] for name in layers if name.endswith(WEIGHTED)} == weighted(network)


def weighted(network):
    """The layers that have weights to multiply with."""
    return {name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)}


def read(path):
    import openvino

    return openvino.Core().read_model(path)


def test_the_file_says_what_it_is(model, tmp_path):
    write_openvino(model, tmp_path / "m.xml", FACTS)
    assert read(tmp_path / "m.xml").get_rt_info([SECTION]).value == FACTS.to_text()
    assert str(tmp_path) not in (tmp_path / "m.xml").read_text()


@pytest.mark.parametrize(
    ("precision", "most", "least"), [("fp32", 1e-5, 0), ("fp16", 2e-3, 1e-5), ("bf16", 2e-2, 1e-4)]
)
def test_half_precisions_take_half_of_the_bytes_and_stay_near(network, model, tmp_path, precision, most, least):
    write_openvino(model, tmp_path / "m.xml", replace(FACTS, precision=precision))
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert (tmp_path / "m.bin").stat().st_size == pytest.approx(weights * (4 if precision == "fp32" else 2), rel=0.02)
    assert least < difference(network, tmp_path / "m.xml", 7, HINTS[precision]) <= most


def test_bfloat16_weights_compute_what_float32_weights_do_in_bfloat16(model, tmp_path):
    write_openvino(model, tmp_path / "whole.xml", FACTS)
    write_openvino(model, tmp_path / "half.xml", replace(FACTS, precision="bf16"))
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    whole, half = (logits_of(tmp_path / f"{name}.xml", images, "bf16") for name in ("whole", "half"))
    np.testing.assert_array_equal(half, whole)


def test_writing_leaves_the_model_as_it_is(network, model, tmp_path):
    write_openvino(model, tmp_path / "m.xml", replace(FACTS, precision="bf16"))
    assert difference(network, model, 2) <= 1e-5
    assert SECTION not in dict(model.get_rt_info())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("full", ["m.xml", "m.bin"])
def test_a_full_disk_is_one_line(model, tmp_path, full):
    (tmp_path / full).symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"m\.xml") as caught:
        write_openvino(model, tmp_path / "m.xml", FACTS)
    assert "\n" not in str(caught.value)


def test_what_openvino_cannot_convert_is_one_line():
    class Sorted(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(images.mean(1))

    program, level = torch.export.export(Sorted(), (torch.zeros(2, 3, 4, 4),)), logging.getLogger().level
    with pytest.raises(InputError, match="OpenVINO cannot convert the network") as caught:
        openvino_model(program)
    assert "\n" not in str(caught.value)
    assert logging.getLogger().level == level  # warnings are still seen


def test_nothing_is_said_nor_sent(network, capfd, tmp_path):
    handlers = logging.getLogger().handlers[:]
    model = openvino_model(traced(network, batch=None, size=(32, 32)))
    write_openvino(model, tmp_path / "m.xml", FACTS)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    assert sys.modules["openvino_telemetry"] is None
