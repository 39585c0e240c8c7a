"""Blocks made for training must be timm's: the same outputs, gradients and statistics, whatever surrounds them.

timm's own blocks are the reference throughout. Compiled with the backend "eager", a block runs the operations that are
written in it, one by one.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import BlurPool2d, DropPath, GroupNorm, SEModule
from timm.models.resnet import BasicBlock, Bottleneck, downsample_conv
from torch import nn
from torch.utils.checkpoint import checkpoint
from warm_python import run_ranks

from seresnet_hub.models import blocks
from seresnet_hub.models.training_blocks import ScaleAdd, SEBasicBlock, SEBottleneck, use_training_blocks

# Two blocks: one with a stride and a projection, one with its input as shortcut.
KINDS: dict[str, tuple[type[nn.Module], type[nn.Module], dict[str, Any]]] = {
    "bottleneck": (Bottleneck, SEBottleneck, {}),
    "basic": (BasicBlock, SEBasicBlock, {}),
    "resnext": (Bottleneck, SEBottleneck, {"cardinality": 4, "base_width": 16}),
    "anti-aliased": (Bottleneck, SEBottleneck, {"aa_layer": BlurPool2d}),
    "silu, wide SE": (Bottleneck, SEBottleneck, {"act_layer": nn.SiLU, "attn_layer": partial(SEModule, rd_ratio=0.25)}),
    "SE with norm": (
        BasicBlock,
        SEBasicBlock,
        {"attn_layer": partial(SEModule, norm_layer=nn.BatchNorm2d, bias=False)},
    ),
}


def pair(kind: str = "bottleneck", **kwargs: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """timm's blocks and ours with the same weights, in float64, no weight of which is zero."""
    torch.manual_seed(0)
    timms_class, our_class, settings = KINDS[kind]
    settings = {"attn_layer": "se", **settings, **kwargs}
    made = []
    for block in (timms_class, our_class):
        planes, out = 16, 16 * block.expansion
        projection = downsample_conv(8, out, 1, stride=2, norm_layer=settings.get("norm_layer"))
        first = block(8, planes, stride=2, downsample=projection, **settings)
        made.append(nn.Sequential(first, block(out, planes, **settings)).double().train())
    timms, ours = made
    for module in timms.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    ours.load_state_dict(timms.state_dict())
    return timms, ours


def compiled(model: nn.Module, backend: str = "eager") -> Callable[..., torch.Tensor]:
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True)  # type: ignore[return-value]


def maps(count: int = 6, channels: int = 8, size: int = 10) -> torch.Tensor:
    """Maps of images of different contrast and with a mean far from zero, in float64."""
    contrast = torch.arange(1, count + 1)[:, None, None, None]
    return torch.randn(count, channels, size, size, dtype=torch.float64) * contrast + 3


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def assert_same_step(
    timms: nn.Module, ours: nn.Module, call: Callable[..., torch.Tensor], images: torch.Tensor
) -> None:
    """Compare outputs, every gradient (that of the images among them) and every buffer after one step."""
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    torch.manual_seed(1)
    expected = timms(inputs[0])
    torch.manual_seed(1)
    found = call(inputs[1])
    assert not torch.equal(found, expected), "to the last bit: timm's own block ran"
    assert largest_difference(found, expected) < 1e-10
    direction = torch.randn_like(expected)
    for output in (expected, found):
        (output * direction).sum().backward()
    assert largest_difference(inputs[1].grad, inputs[0].grad) < 1e-10
    for (name, parameter), other in zip(timms.named_parameters(), ours.parameters(), strict=True):
        assert parameter.grad.abs().max() > 0, name
        assert largest_difference(other.grad, parameter.grad) < 1e-10, name
    for (name, buffer), other in zip(timms.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, rtol=1e-10, atol=1e-12, msg=name)


# --- the same function ------------------------------------------------------------------------------------------------


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The norms that our blocks take apart."""
    return [getattr(block, "bn3", None) or block.bn2 for block in model.modules() if hasattr(block, "conv2")]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_gradients_and_statistics_are_timms(kind: str) -> None:
    timms, ours = pair(kind)
    call = compiled(ours)
    for _ in range(2):  # twice, so that statistics move from what they were moved to
        assert_same_step(timms, ours, call, maps())
        timms.zero_grad()
        ours.zero_grad()


@pytest.mark.parametrize("momentum", [0.03, 0.0, None])
def test_momentum_of_the_statistics(momentum: float | None) -> None:
    timms, ours = pair()
    for norm in (*norms(timms), *norms(ours)):
        norm.momentum = momentum
    call = compiled(ours)
    for _ in range(3):
        assert_same_step(timms, ours, call, maps())
        timms.zero_grad()
        ours.zero_grad()


def test_statistics_may_be_untracked() -> None:
    timms, ours = pair(norm_layer=partial(nn.BatchNorm2d, track_running_stats=False))
    assert_same_step(timms, ours, compiled(ours), maps())


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_drop_path_drops_the_same_images(kind: str) -> None:
    timms, ours = pair(kind, drop_path=DropPath(0.4))
    assert_same_step(timms, ours, compiled(ours), maps(12))


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_grad_checkpointing_changes_nothing(kind: str) -> None:
    timms, ours = pair(kind)
    run = torch.compile(lambda x: checkpoint(ours, x, use_reentrant=False), backend="aot_eager", fullgraph=True)
    inputs = maps()
    results = []
    for call in (compiled(ours, "aot_eager"), run):
        ours.load_state_dict(timms.state_dict())
        ours.zero_grad()
        output = call(inputs)
        output.square().sum().backward()
        results.append((output.detach(), [parameter.grad.clone() for parameter in ours.parameters()]))
    (output, gradients), (again, others) = results
    assert torch.equal(output, again)
    for gradient, other in zip(gradients, others, strict=True):
        assert largest_difference(other, gradient) < 1e-12


@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_channels_last(kind: str, backend: str) -> None:
    timms, ours = pair(kind)
    ours = ours.to(memory_format=torch.channels_last)
    inputs = maps().contiguous(memory_format=torch.channels_last)
    assert_same_step(timms, ours, compiled(ours, backend), inputs)


def network(name: str, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    timms = timm.create_model(name, num_classes=10, **kwargs).double().train()
    for norm in norms(timms):
        nn.init.uniform_(norm.weight, 0.1, 0.3)  # small branches, as trained ones are: large ones are chaotic
    block = SEBasicBlock if name in ("seresnet18", "seresnet34") else SEBottleneck
    ours = timm.create_model(name, num_classes=10, block=block, **kwargs).double().train()
    ours.load_state_dict(timms.state_dict())
    assert sum(type(module) is block for module in ours.modules()) == len(norms(timms)) > 7
    return timms, ours


@pytest.mark.parametrize(
    "name",
    ["seresnet50 of half the depth", *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "seresnet50", "seresnet18", "seresnet34", "seresnet50t", "seresnet101", "seresnet152d", "seresnetaa50d",
        "seresnext26t_32x4d", "seresnext50_32x4d", "senet154", "resnetrs50", "seresnet50_r4",
    ))],
)  # fmt: skip
def test_networks_are_timms(name: str) -> None:
    name, _, half = name.partition(" ")
    timms, ours = network(name, **({"layers": (2, 2, 2, 2)} if half else {}))
    assert_same_step(timms, ours, compiled(ours), maps(3, 3, 64))


@pytest.mark.parametrize("block", [SEBottleneck, SEBasicBlock])
def test_gradients_are_those_of_the_function(block: type[nn.Module]) -> None:
    """Numerical derivatives of a block, by its input and every parameter."""
    torch.manual_seed(0)
    ours = block(4, 4 // block.expansion, attn_layer="se", act_layer=nn.SiLU).double().train()  # ReLU has kinks
    names = [name for name, _ in ours.named_parameters()]
    for name in names:
        if "bn" in name and "weight" in name:
            nn.init.uniform_(ours.get_parameter(name), 0.5, 1.5)

    def call(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        state = {name: tensor.clone() for name, tensor in ours.named_buffers()}  # or each call would move them
        return run(x, dict(zip(names, parameters, strict=True)) | state)

    run = torch.compile(lambda x, state: torch.func.functional_call(ours, state, (x,)), backend="eager", fullgraph=True)
    x = torch.randn(3, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert not torch.equal(call(x, *ours.parameters()), copy.deepcopy(ours)(x))  # timm's code runs where not compiled
    assert torch.autograd.gradcheck(call, (x, *ours.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seresnet18", "seresnet50"])
def test_twenty_steps_of_sgd_stay_together(name: str) -> None:
    timms, ours = network(name)
    models = {timms: timms, ours: compiled(ours)}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in models]
    labels = torch.arange(8) % 10
    losses = []
    for _ in range(20):
        images = maps(8, 3, 64)
        both = []
        for call, optimizer in zip(models.values(), optimizers, strict=True):
            loss = nn.functional.cross_entropy(call(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            both.append(loss.item())
        assert both[1] == pytest.approx(both[0], rel=1e-9)
        losses.append(both[0])
    assert losses[-1] < losses[0]
    for (name, tensor), other in zip(timms.state_dict().items(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(other, tensor, rtol=1e-7, atol=1e-9, msg=name)


# --- where timm's code runs -------------------------------------------------------------------------------------------


def test_weights_go_both_ways() -> None:
    timms, ours = pair()
    assert [*timms.state_dict()] == [*ours.state_dict()]
    compiled(ours)(maps())  # moves the statistics
    timms.load_state_dict(ours.state_dict())
    inputs = maps()
    with torch.no_grad():
        expected = timms.eval()(inputs)
        assert torch.equal(ours.eval()(inputs), expected)
        assert torch.equal(compiled(ours)(inputs), expected)


def test_a_model_that_is_there_can_be_changed() -> None:
    torch.manual_seed(0)
    model = timm.create_model("seresnet50")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert use_training_blocks(model) == 16
    assert sum(type(module) is SEBottleneck for module in model.modules()) == 16
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(timm.create_model("seresnet50").layer1[0]) is Bottleneck
    others = ("resnet50", "ecaresnet26t", "seresnet20_cifar_pre", "legacy_seresnet18")
    assert [use_training_blocks(timm.create_model(name)) for name in others] == [0, 0, 0, 0]


def test_not_compiled_it_is_timms_to_the_bit() -> None:
    timms, ours = pair()
    inputs = maps()
    assert torch.equal(ours(inputs), timms(inputs))
    for buffer, other in zip(timms.buffers(), ours.buffers(), strict=True):
        assert torch.equal(buffer, other)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"attn_layer": "eca"},
        {"attn_layer": None},
        {"attn_layer": partial(SEModule, add_maxpool=True)},
        {"norm_layer": partial(GroupNorm, num_groups=8)},
    ],
    ids=["eca", "no attention", "max squeeze", "group norm"],
)
def test_other_attention_and_norms_run_timms_code(kwargs: dict[str, Any]) -> None:
    timms, ours = pair(**kwargs)
    inputs = maps()
    assert torch.equal(compiled(ours)(inputs), timms(inputs))


def test_frozen_norms_run_timms_code() -> None:
    timms, ours = pair()
    for norm in (*norms(timms), *norms(ours)):
        norm.eval()
    inputs = maps()
    assert torch.equal(compiled(ours)(inputs), timms(inputs))


def test_one_value_per_channel_is_refused_as_by_timm() -> None:
    block = SEBasicBlock(8, 8, attn_layer="se").train()
    block.bn1.eval()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        block(torch.randn(1, 8, 1, 1))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Expected more than 1 value per channel"):
        compiled(block)(torch.randn(1, 8, 1, 1))


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rounding_errors_are_no_larger_than_timms() -> None:
    """Ratios of (ours / timm's) of the distances to float64, of outputs and gradients: geometric means over draws."""
    logs: dict[str, list[float]] = {"fp32": [], "autocast": [], "bf16": []}
    torch._dynamo.reset()
    for kind in ("bottleneck", "basic"):
        exact, ours = pair(kind)
        call = torch.compile(ours, backend="eager", fullgraph=True)
        for seed in range(4):
            torch.manual_seed(seed)
            images = maps(8, size=16).bfloat16()
            for precision, types in (("fp32", torch.float32), ("autocast", torch.float32), ("bf16", torch.bfloat16)):
                inputs = images.to(types)
                state = {name: tensor.to(types) for name, tensor in exact.state_dict().items()}
                errors = []
                timms = copy.deepcopy(exact).to(types)
                ours.to(types).load_state_dict(state)
                reference = copy.deepcopy(timms).double()
                expected = results(reference, reference, inputs.double())
                for model, function in ((ours, call), (timms, timms)):
                    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
                        found = results(model, function, inputs)
                    errors.append([(f - e).norm() / e.norm() for f, e in zip(found, expected, strict=True)])
                logs[precision] += [math.log(one / other) for one, other in zip(*errors, strict=True)]
    ratios = {precision: round(math.exp(statistics.mean(values)), 3) for precision, values in logs.items()}
    print(ratios)
    assert all(ratio < 1.02 for ratio in ratios.values()), ratios


def results(model: nn.Module, call: Callable[..., torch.Tensor], inputs: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of the input and all parameters, in float64."""
    model.zero_grad()
    inputs = inputs.clone().requires_grad_()
    output = call(inputs)
    generator = torch.Generator().manual_seed(0)
    output.backward(torch.randn(output.shape, generator=generator).to(output.dtype))
    return [tensor.detach().double() for tensor in (output, inputs.grad, *(p.grad for p in model.parameters()))]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_shortcut_stays_narrow(backend: str) -> None:
    """The sum is rounded once to the maps' type, and the shortcut's gradient is that of the sum, to the last bit."""
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    means = x.detach().mean((2, 3), keepdim=True)
    mean, scale, offset = means.mean(0, keepdim=True), torch.rand(4, 8, 1, 1), torch.randn(4, 8, 1, 1)
    shortcut = torch.randn(4, 8, 6, 6).bfloat16().requires_grad_()
    torch._dynamo.reset()
    call = torch.compile(lambda *maps: ScaleAdd.apply(*maps, means), backend=backend, fullgraph=True, dynamic=False)
    total = call(x, mean, scale, offset, shortcut)
    assert torch.equal(total, ((x - mean) * scale + offset + shortcut.float()).bfloat16())
    direction = torch.randn(4, 8, 6, 6).bfloat16()
    total.backward(direction)
    assert torch.equal(shortcut.grad, direction)
    assert torch.equal(x.grad, direction.float() * scale)


def test_autocast_keeps_types() -> None:
    _, ours = pair()
    ours = ours.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(ours[0])(maps().float()).dtype == torch.bfloat16
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in ours.buffers())


# --- several processes ------------------------------------------------------------------------------------------------

SYNC = """
import json, os, sys
import torch, timm
from torch import distributed, nn
from seresnet_hub.models.training_blocks import SEBottleneck, use_compiled_sync_norms

distributed.init_process_group("gloo")
rank, world_size = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
kwargs = {"layers": (1, 1, 1, 1), "zero_init_last": False}
whole = timm.create_model("seresnet50", **kwargs).layer1[0].double().train()
ours = timm.create_model("seresnet50", block=SEBottleneck, **kwargs).layer1[0].double().train()
ours.load_state_dict(whole.state_dict())
ours = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
assert use_compiled_sync_norms(ours) == 4  # torch's own exchange nothing but on GPUs
sizes = [5, 2, 3][:world_size]
images = torch.randn(sum(sizes), 64, 8, 8, dtype=torch.float64) * 2 + 1
direction = torch.randn(sum(sizes), 256, 8, 8, dtype=torch.float64)
part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
inputs = [images.clone().requires_grad_(), images[part].clone().requires_grad_()]
expected, found = whole(inputs[0]), torch.compile(ours, backend="aot_eager", fullgraph=True)(inputs[1])
(expected * direction).sum().backward()
(found * direction[part]).sum().backward()
differences = {"output": found - expected[part], "images": inputs[1].grad - inputs[0].grad[part]}
for (name, parameter), other in zip(whole.named_parameters(), ours.parameters(), strict=True):
    distributed.all_reduce(other.grad)
    differences[name] = (other.grad - parameter.grad) / parameter.grad.abs().max()
for (name, buffer), other in zip(whole.named_buffers(), ours.buffers(), strict=True):
    differences[name] = (other - buffer).double()
worst = {name: difference.abs().max().item() for name, difference in differences.items()}
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(worst, file)
"""


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_synchronised_norms_see_all_processes(processes: int, tmp_path: Path) -> None:
    """Parts of unequal size on several processes against timm's block with the whole batch."""
    script = tmp_path / "sync.py"
    script.write_text(SYNC)
    for rank, done in enumerate(run_ranks([sys.executable, script, tmp_path], processes)):
        assert done.returncode == 0, done.stderr[-3000:]
        differences = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {"output", "images", "bn1.weight", "bn3.weight", "bn3.running_var", "se.fc1.weight"} <= set(differences)
        assert max(differences.values()) < 1e-10, differences


def test_all_placements_of_the_paper_are_still_there() -> None:
    assert {name for name in vars(blocks) if name.startswith("SE") and name.endswith(("Block", "Bottleneck"))} == {
        f"SE{place}{kind}" for place in ("", "Pre", "Post", "Identity", "3x3") for kind in ("BasicBlock", "Bottleneck")
    }
