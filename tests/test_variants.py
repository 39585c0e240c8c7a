"""The variants must have exactly the sizes the papers give, and consist of what the table says they do."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import SEModule
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from warm_python import run_python

from seresnet_hub.files import model_folder as folder
from seresnet_hub.models import blocks
from seresnet_hub.models.published_weights import WEIGHTS
from seresnet_hub.models.variants import CIFAR_VARIANTS, PAPER_VARIANTS


@cache
def _made_once(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name).eval()


def shapes(name: str) -> nn.Module:
    """The network on no device, of its own, for a test to hang hooks on."""
    return copy.deepcopy(_made_once(name))


def parameters(name: str) -> int:
    return sum(p.numel() for p in _made_once(name).parameters())


@cache
def multiply_adds(name: str) -> int:
    """Convolutions and linear layers, counted by torch."""
    model = _made_once(name)
    size = model.pretrained_cfg["input_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *size, device="meta"))
    return counter.get_total_flops() // 2


# arXiv 1512.03385 for the plain ones with projection shortcuts; imgclsmob's table for the ones with SE.
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet20_cifar", 272_474), ("seresnet20_cifar", 274_847), ("seresnet56_cifar", 862_889),
     ("seresnet110_cifar", 1_744_952), ("seresnet164_cifar", 1_906_258)],
)  # fmt: skip
def test_cifar_parameter_counts(name: str, count: int) -> None:
    assert parameters(name) == count


# arXiv 1709.01507v4, tables 10, 13 and 15: parameters in millions, and GFLOPs where it gives them.
PAPER_SIZES: dict[str, tuple[float, float | None]] = {
    "resnet50": (25.6, 3.86),
    "seresnet50_r2": (45.7, None),
    "seresnet50_r4": (35.7, None),
    "seresnet50_r8": (30.7, None),
    "seresnet50": (28.1, 3.87),
    "seresnet50_r32": (26.9, None),
    "seresnet50_stage2": (25.6, 3.86),
    "seresnet50_stage3": (25.7, 3.86),
    "seresnet50_stage4": (26.4, 3.86),
    "seresnet50_3x3": (25.8, 3.86),
}


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_parameters_are_the_papers(name: str) -> None:
    """The paper rounds up throughout (35.636 is given as 35.7); without the SE units' biases, r = 8 would not fit."""
    assert math.ceil(parameters(name) / 1e5) / 10 == PAPER_SIZES[name][0]


@pytest.mark.parametrize("name", [name for name, (_, gflops) in PAPER_SIZES.items() if gflops])
def test_operations_are_the_papers(name: str) -> None:
    """Its counts fit networks with the stride in the first 1x1 convolution, SE's pooling and scaling included."""
    se_layers = multiply_adds("seresnet50") - multiply_adds("resnet50")
    with_stride_in_the_1x1 = multiply_adds("legacy_seresnet50") - se_layers
    model = shapes(name)
    pooled_and_scaled = 0

    def count(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: object) -> None:
        nonlocal pooled_and_scaled
        pooled_and_scaled += 2 * inputs[0].numel()

    for module in model.modules():
        if isinstance(module, SEModule):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    own = multiply_adds(name) - multiply_adds("resnet50") + pooled_and_scaled
    assert round((with_stride_in_the_1x1 + own) / 1e9, 2) == PAPER_SIZES[name][1]


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: w.name)
def test_published_sizes_of_the_pretrained(weights: object) -> None:
    """mmpretrain's parameter and operation counts; its counter adds norms (2), ReLUs and pools to the multiply-adds."""
    model = shapes(weights.architecture)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == weights.params_millions
    elementwise = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        nonlocal elementwise
        elementwise += inputs[0].numel() * (2 if isinstance(module, nn.BatchNorm2d) else 1)

    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, SEModule)):  # an SE unit pools its input
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    assert round((multiply_adds(weights.architecture) + elementwise) / 1e9, 2) == weights.gflops


@pytest.mark.parametrize("name", ["resnet20_cifar", "resnet56_cifar", "resnet110_cifar"])
def test_cifar_multiply_adds_by_hand(name: str) -> None:
    """Every convolution of He et al.'s design has k x k x in x out x height x width multiply-adds."""
    n = next(v.blocks_per_stage for v in CIFAR_VARIANTS if v.name == name)
    expected = 9 * 3 * 16 * 32 * 32 + 64 * 10
    expected += 2 * n * 9 * 16 * 16 * 32 * 32
    for width, side in ((32, 16), (64, 8)):
        first = 9 * (width // 2) * width + (width // 2) * width  # the strided convolution and the projection
        expected += (first + (2 * n - 1) * 9 * width * width) * side * side
    assert multiply_adds(name) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("seresnet20_cifar", 41.3),
        ("seresnet56_cifar", 127.1),
        ("seresnet110_cifar", 255.7),
        ("seresnet164_cifar", 255.5),
    ],
)
def test_published_operations_of_the_cifar_networks(name: str, millions: float) -> None:
    """imgclsmob's table gives half the operations: 4 an element of a norm or a sigmoid, 1 of a ReLU, no SE pooling."""
    model = shapes(name)
    operations = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal operations
        if isinstance(module, nn.Conv2d):
            filters, taps = module.in_channels * module.out_channels, math.prod(module.kernel_size)
            operations += filters * (2 * taps * output[0, 0].numel() - (module.bias is None))
        elif isinstance(module, nn.Linear):
            operations += 2 * module.in_features * module.out_features
        elif isinstance(module, nn.BatchNorm2d) or type(module).__name__ == "Sigmoid":
            operations += 4 * inputs[0].numel()
        elif isinstance(module, (nn.ReLU, nn.AdaptiveAvgPool2d)):
            operations += inputs[0].numel()

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32, device="meta"))
    assert round(operations / 2e6, 1) == millions


@pytest.mark.parametrize("variant", PAPER_VARIANTS, ids=lambda v: v.name)
def test_from_timm_means_timms_own_modules(variant: object) -> None:
    model = _made_once(variant.name)
    ours = {
        type(module)
        for module in model.modules()
        if (isinstance(module, Bottleneck) and type(module) is not Bottleneck)
        or (isinstance(module, SEModule) and type(module) is not SEModule)
    }
    assert (not ours) == variant.from_timm
    assert type(model) is timm.models.resnet.ResNet


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_a_stage_variant_has_se_in_that_stage_alone(stage: int) -> None:
    model = _made_once(f"seresnet50_stage{stage}")
    # The paper calls conv2_x stage 2; timm calls it layer1.
    with_se = [k for k in (1, 2, 3, 4) if all(block.se is not None for block in getattr(model, f"layer{k}"))]
    without = [k for k in (1, 2, 3, 4) if all(block.se is None for block in getattr(model, f"layer{k}"))]
    assert (with_se, len(without)) == ([stage - 1], 3)


@pytest.mark.parametrize("ratio", [2, 4, 8, 32])
def test_a_ratio_variant_divides_every_squeeze(ratio: int) -> None:
    model = _made_once(f"seresnet50_r{ratio}")
    for module in model.modules():
        if isinstance(module, SEModule):
            assert module.fc1.out_channels * ratio == module.fc1.in_channels


def test_plain_twins_have_no_se_and_timms_blocks() -> None:
    for variant in CIFAR_VARIANTS:
        model = _made_once(variant.name)
        kinds = {type(module) for module in model.modules() if isinstance(module, (BasicBlock, Bottleneck))}
        assert len(kinds) == 1
        if variant.placement in (None, "standard"):
            assert kinds <= {BasicBlock, Bottleneck}
        has_se = any(isinstance(module, SEModule) for module in model.modules())
        assert has_se == (variant.placement is not None)


PLAIN_TIMM = """
import hashlib, json, sys, timm, torch
from functools import partial
from timm.layers import SEModule
designs = {
    "seresnet50_r8": partial(SEModule, rd_ratio=1 / 8),
    "seresnet50_tanh": partial(SEModule, gate_layer="tanh"),
    "seresnet50_stage3": lambda channels, **kw: SEModule(channels, **kw) if channels == 512 else None,
}
found = {}
for name, attention in designs.items():
    torch.manual_seed(0)
    model = timm.create_model("seresnet50", block_args={"attn_layer": attention}, zero_init_last=False).eval()
    found[name] = hashlib.sha256(model(torch.ones(1, 3, 64, 64)).detach().numpy().tobytes()).hexdigest()
assert "seresnet_hub" not in sys.modules
try:
    timm.create_model("local-dir:" + sys.argv[1], pretrained=True)
except RuntimeError as error:
    found["folder"] = str(error)
print(json.dumps(found))
"""


def test_plain_timm_makes_the_same_networks_from_python_arguments(tmp_path: Path) -> None:
    """What the README's table says of plain timm, in a process without the plugin."""
    model = timm.create_model("seresnet20_cifar")
    config = folder.timm_config(model, pretrained_cfg={})
    folder.write_model(tmp_path / "m", model.state_dict(), config=config, card=lambda _: "")
    command = [sys.executable, "-c", PLAIN_TIMM, str(tmp_path / "m")]
    done = run_python(command, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "Unknown model" in found.pop("folder")
    for name, digest in found.items():
        assert next(v for v in PAPER_VARIANTS if v.name == name).from_timm
        torch.manual_seed(0)
        ours = timm.create_model(name, zero_init_last=False).eval()(torch.ones(1, 3, 64, 64))
        assert hashlib.sha256(ours.detach().numpy().tobytes()).hexdigest() == digest, name


@pytest.mark.usefixtures("quick_weights")
@pytest.mark.parametrize(
    ("name", "block"),
    [("seresnet50_pre", blocks.SEPreBottleneck), ("seresnet50_identity", blocks.SEIdentityBottleneck)],
)
def test_the_blocks_are_reached_through_timms_arguments(name: str, block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    entrypoint = timm.create_model(name, zero_init_last=False).eval()
    torch.manual_seed(0)
    built = timm.create_model("resnet50", block=block, zero_init_last=False).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(built(x), entrypoint(x))
    se_resnet = timm.create_model("seresnet50", block=block)
    assert se_resnet.state_dict().keys() == entrypoint.state_dict().keys()
