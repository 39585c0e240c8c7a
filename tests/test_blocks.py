"""Each SE placement must compute what the paper's figure 5 draws: compared with forwards written from the figure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import SEModule
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from seresnet_hub.models import blocks

State = dict[str, torch.Tensor]


def norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return F.batch_norm(
        x, state[f"{name}.running_mean"], state[f"{name}.running_var"], state[f"{name}.weight"], state[f"{name}.bias"]
    )


def squeeze_excite(x: torch.Tensor, state: State) -> torch.Tensor:
    """Global average, two fully connected layers with a ReLU between them, a sigmoid; then scale (section 3)."""
    z = x.mean(dim=(-1, -2))
    hidden = torch.relu(z @ state["se.fc1.weight"][:, :, 0, 0].T + state["se.fc1.bias"])
    gate = torch.sigmoid(hidden @ state["se.fc2.weight"][:, :, 0, 0].T + state["se.fc2.bias"])
    return x * gate[:, :, None, None]


def basic_branch(x: torch.Tensor, state: State, stride: int, inner: Callable = lambda x, _: x) -> torch.Tensor:
    x = norm(F.conv2d(x, state["conv1.weight"], stride=stride, padding=1), state, "bn1")
    x = torch.relu(inner(x, state))
    return norm(F.conv2d(x, state["conv2.weight"], padding=1), state, "bn2")


def bottleneck_branch(x: torch.Tensor, state: State, stride: int, inner: Callable = lambda x, _: x) -> torch.Tensor:
    x = torch.relu(norm(F.conv2d(x, state["conv1.weight"]), state, "bn1"))
    x = norm(F.conv2d(x, state["conv2.weight"], stride=stride, padding=1), state, "bn2")
    x = torch.relu(inner(x, state))
    return norm(F.conv2d(x, state["conv3.weight"]), state, "bn3")


def project(x: torch.Tensor, state: State, stride: int) -> torch.Tensor:
    if "downsample.0.weight" not in state:
        return x
    return norm(F.conv2d(x, state["downsample.0.weight"], stride=stride), state, "downsample.1")


def expected(placement: str, branch: Callable, x: torch.Tensor, state: State, stride: int) -> torch.Tensor:
    """Figure 5 of the paper; section 6 for SE_3x3."""
    if placement == "pre":
        return torch.relu(branch(squeeze_excite(x, state), state, stride) + project(x, state, stride))
    if placement == "post":
        return squeeze_excite(torch.relu(branch(x, state, stride) + project(x, state, stride)), state)
    if placement == "identity":
        return torch.relu(branch(x, state, stride) + squeeze_excite(project(x, state, stride), state))
    return torch.relu(branch(x, state, stride, squeeze_excite) + project(x, state, stride))


BLOCKS = {
    ("basic", "pre"): blocks.SEPreBasicBlock,
    ("basic", "post"): blocks.SEPostBasicBlock,
    ("basic", "identity"): blocks.SEIdentityBasicBlock,
    ("basic", "3x3"): blocks.SE3x3BasicBlock,
    ("bottleneck", "pre"): blocks.SEPreBottleneck,
    ("bottleneck", "post"): blocks.SEPostBottleneck,
    ("bottleneck", "identity"): blocks.SEIdentityBottleneck,
    ("bottleneck", "3x3"): blocks.SE3x3Bottleneck,
}


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            positive = name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight"))
            values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(values.abs() + 0.5 if positive else values * 0.3)


@pytest.mark.parametrize(("kind", "placement"), BLOCKS)
@pytest.mark.parametrize("stride", [1, 2])
def test_placements_compute_the_figure(kind: str, placement: str, stride: int) -> None:
    block_class = BLOCKS[kind, placement]
    out_channels = 32 * block_class.expansion
    in_channels = out_channels if stride == 1 else 48
    downsample = None
    if stride == 2:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm2d(out_channels)
        )
    block = block_class(in_channels, 32, stride=stride, downsample=downsample).double().eval()
    randomize(block)
    x = torch.randn(2, in_channels, 9, 9, dtype=torch.float64)
    branch = basic_branch if kind == "basic" else bottleneck_branch
    with torch.no_grad():
        reference = expected(placement, branch, x, block.state_dict(), stride)
        torch.testing.assert_close(block(x), reference, rtol=1e-12, atol=1e-12)
        standard = (BasicBlock if kind == "basic" else Bottleneck)(
            in_channels, 32, stride=stride, downsample=downsample
        )
        assert not torch.allclose(standard.double().eval()(x), reference), (
            "a placement that changes nothing proves nothing"
        )


@pytest.mark.parametrize(("kind", "placement"), BLOCKS)
def test_squeeze_width_is_a_sixteenth(kind: str, placement: str) -> None:
    block = BLOCKS[kind, placement](64, 32)
    channels = {"pre": 64, "post": 32, "identity": 32, "3x3": 32}[placement]
    if kind == "bottleneck":
        channels = {"pre": 64, "post": 128, "identity": 128, "3x3": 32}[placement]
    assert tuple(block.se.fc1.weight.shape) == (channels // 16, channels, 1, 1)


def test_max_squeeze_takes_the_maximum() -> None:
    module = blocks.MaxSqueezeSE(32).double()
    x = torch.randn(2, 32, 5, 5, dtype=torch.float64)
    z = x.flatten(2).max(dim=2).values
    hidden = torch.relu(F.linear(z, module.fc1.weight[:, :, 0, 0], module.fc1.bias))
    gate = torch.sigmoid(F.linear(hidden, module.fc2.weight[:, :, 0, 0], module.fc2.bias))
    torch.testing.assert_close(module(x), x * gate[:, :, None, None])
    assert module.state_dict().keys() == SEModule(32).state_dict().keys()


@pytest.mark.parametrize(("name", "gate"), [("seresnet50_relu", torch.relu), ("seresnet50_tanh", torch.tanh)])
def test_the_excitation_ends_in_the_named_gate(name: str, gate: Callable) -> None:
    module = timm.create_model(name).layer1[0].se
    assert type(module) is SEModule
    x = torch.randn(2, 256, 5, 5)
    hidden = torch.relu(F.linear(x.mean((2, 3)), module.fc1.weight[:, :, 0, 0], module.fc1.bias))
    expected_gate = gate(F.linear(hidden, module.fc2.weight[:, :, 0, 0], module.fc2.bias))
    torch.testing.assert_close(module(x), x * expected_gate[:, :, None, None])


@pytest.mark.parametrize("name", ["seresnet50_pre", "seresnet20_cifar_3x3"])
def test_stochastic_depth_drops_the_branch_alone(name: str) -> None:
    """With the branch dropped for certain, the block is its shortcut: SE on the branch must not survive it."""
    model = timm.create_model(name, drop_path_rate=0.999999).train()
    block = model.layer3[-1]
    x = torch.randn(4, model.feature_info[-1]["num_chs"] // (2 if name.startswith("seresnet50") else 1), 8, 8)
    block.drop_path.drop_prob = 1 - 1e-9
    torch.testing.assert_close(block(x), torch.relu(x))
