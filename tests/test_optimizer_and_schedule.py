"""Fused optimisers must be there where they can be borne, and the moving average must be timm's to the bit."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from seresnet_hub.training.checkpoint import load_optimizer
from seresnet_hub.training.moving_average import MovingAverage
from seresnet_hub.training.optimizer_and_schedule import fused_option


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_torchs_own_optimisers_are_fused_on_cuda(name: str) -> None:
    assert fused_option(name, device_type="cuda", mixed_precision="bf16") == {"fused": True}
    assert fused_option(name, device_type="cpu", mixed_precision="no") == {}
    assert fused_option(name, device_type="cuda", mixed_precision="fp16") == {}
    options = fused_option(name, device_type="cuda", mixed_precision="no")
    optimizer = create_optimizer_v2(nn.Linear(2, 2), name, lr=0.1, **options)
    assert [group["fused"] for group in optimizer.param_groups] == [True] * len(optimizer.param_groups)


@pytest.mark.parametrize("name", ["lamb", "rmsproptf", "rmsprop", "nope", "lookahead_sgd"])
def test_others_are_left_as_they_are(name: str) -> None:
    assert fused_option(name, device_type="cuda", mixed_precision="no") == {}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(("saved", "here"), [(False, True), (True, False)])
def test_a_state_goes_on_fused_or_not_as_the_machine_is(name: str, saved: bool, here: bool) -> None:
    def started(fused: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        return model, create_optimizer_v2(model, name, lr=0.1, weight_decay=0.1, fused=fused)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    (whole, of_whole), (before, of_before), (after, of_after) = started(here), started(saved), started(here)
    train(whole, of_whole, 4)
    train(before, of_before, 3)
    after.load_state_dict(before.state_dict())
    load_optimizer(of_after, of_before.state_dict())
    assert [group["fused"] for group in of_after.param_groups] == [here] * len(of_after.param_groups)
    train(after, of_after, 1)
    for key, tensor in whole.state_dict().items():
        torch.testing.assert_close(after.state_dict()[key], tensor)


def test_the_average_is_timms_to_the_bit() -> None:
    torch.manual_seed(0)
    model = timm.create_model("seresnet18", num_classes=3)
    model.conv1.weight.requires_grad_(False)
    ours, timms = MovingAverage(model, decay=0.9), ModelEmaV3(model, decay=0.9)
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else step)
        for average in (ours, timms):
            average.update(model, step)
        if step == 3:  # as where a run is resumed
            for average in (ours, timms):
                average.module.load_state_dict({k: v.clone() for k, v in average.module.state_dict().items()})
            model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()})
    for name, tensor in timms.module.state_dict().items():
        assert torch.equal(ours.module.state_dict()[name], tensor), name
        assert name == "conv1.weight" or not torch.equal(tensor, model.state_dict()[name]) or "tracked" in name


def test_no_state_dict_is_made_after_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(model, decay=0.9)
    average.update(model, 1)
    monkeypatch.setattr(nn.Module, "state_dict", None)
    average.update(model, 2)
