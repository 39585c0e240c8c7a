"""Any network of this package and of timm's SE family becomes one graph, for any number of images, or one error."""

from __future__ import annotations

import pytest
import timm
import torch
from test_fusion import BASIC, BOTTLENECKS, network
from timm.data import resolve_model_data_config
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.exporting.preprocessing import Preparation
from seresnet_hub.exporting.tracing import layer_names, traced
from seresnet_hub.models.create import list_models
from seresnet_hub.models.fusion import fuse


def images(count: int, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network("seresnet20_cifar", size=32).float()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("fused", [False, True])
def test_the_graph_computes_what_the_network_does_for_any_number_of_images(model: nn.Module, fused: bool) -> None:
    program = traced(fuse(model) if fused else model, batch=None, size=(32, 32)).module()
    for count in (1, 2, 7):
        with torch.inference_mode():
            assert relative(program(images(count)), model(images(count))) < 1e-5


def test_a_fixed_batch_is_that_and_no_other(model: nn.Module) -> None:
    program = traced(model, batch=1, size=(32, 32)).module()
    assert program(images(1)).shape == (1, 10)
    with pytest.raises(Exception, match="batch|shape|size|expected"):
        program(images(2))


def test_any_size_of_images(model: nn.Module) -> None:
    program = traced(model, batch=None, size=(32, 32), dynamic_size=True).module()
    for size in (24, 32, 45):
        with torch.inference_mode():
            assert relative(program(images(2, size)), model(images(2, size))) < 1e-5


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("bf16", 5e-2)])
def test_narrow_types_are_inside_alone(model: nn.Module, precision: str, tolerance: float) -> None:
    program = traced(fuse(model), batch=None, size=(32, 32), precision=precision)
    with torch.inference_mode():
        found, expected = program.module()(images(3)), model(images(3))
    assert found.dtype == torch.float32
    assert 0 < relative(found, expected) < tolerance
    assert {tensor.dtype for tensor in program.state_dict.values()} == {
        torch.float16 if precision == "fp16" else torch.bfloat16
    }


def test_each_convolution_of_the_graph_has_the_name_of_its_layer(model: nn.Module) -> None:
    names = layer_names(traced(model, batch=None, size=(32, 32)))
    layers = {name for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    found = [name for node, name in names.items() if node.startswith(("conv2d", "linear"))]
    assert sorted(found) == sorted(layers)


def test_the_head_has_no_shapes_in_it(model: nn.Module) -> None:
    operations = {str(node.target) for node in traced(model, batch=None, size=(32, 32)).graph.nodes}
    assert not {one for one in operations if "shape" in one or "view" in one or "flatten" in one or "sym_size" in one}


def test_the_model_itself_is_as_it_was(model: nn.Module) -> None:
    before = {name: type(layer) for name, layer in model.named_modules()}
    traced(model, batch=None, size=(32, 32), preprocessing=Preparation(resolve_model_data_config(model)))
    assert {name: type(layer) for name, layer in model.named_modules()} == before
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())


class _Branches(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_what_cannot_be_traced_is_one_line() -> None:
    with pytest.raises(InputError, match="torch.export cannot trace _Branches: ") as caught:
        traced(_Branches(), batch=None, size=(8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*list_models(), *sorted(BOTTLENECKS | BASIC)])
def test_every_architecture(name: str) -> None:
    size = timm.get_pretrained_cfg(name).input_size[-1]
    model = network(name, size=size)
    for one in (model, fuse(model)):
        program = traced(one.float(), batch=None, size=(size, size)).module()
        with torch.inference_mode():
            assert relative(program(images(3, size)).double(), model.double()(images(3, size).double())) < 1e-5
