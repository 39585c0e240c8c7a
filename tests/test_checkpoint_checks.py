"""What a run saved is accepted with any optimiser; what another network, optimiser or hand made of it is named."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers

from seresnet_hub.errors import InputError
from seresnet_hub.models.create import create
from seresnet_hub.recipes.recipe import Recipe, get_recipe
from seresnet_hub.training import checkpoint
from seresnet_hub.training.checkpoint_checks import Run, require_fitting, require_whole
from seresnet_hub.training.optimizer_and_schedule import optimizer_of, schedule_of

RECIPE = replace(get_recipe("digits"), batch_size=10, input_size=8, ema_decay=0.9)
STEPS = 7  # some optimisers do something at every fifth or sixth step only


def trained(recipe: Recipe, steps: int = STEPS) -> tuple[dict[str, Any], Run]:
    """Return the state of a small network after some steps, and what a run that goes on begins with."""
    torch.manual_seed(0)
    network = create("seresnet20_cifar", pretrained=False, num_classes=4).train()
    beginning = copy.deepcopy(network)
    optimizer = optimizer_of(network, recipe, device_type="cpu")
    schedule = schedule_of(optimizer, recipe, 10, 100)
    for step in range(steps):
        schedule.step_update(step)
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    history = [
        {"step": k, "epoch": float(k), "learning_rate": 0.1, "train_loss": 1.0, "top1": 50.0, "eval_loss": float("inf")}
        for k in range(1, steps)
    ]
    state = {
        "settings": "{}", "step": steps, "seen": 4 * steps, "shards": -5, "history": history,
        "losses": torch.zeros(steps, dtype=torch.float64), "model": network.state_dict(),
        "optimizer": optimizer.state_dict(), "scaler": {}, "average": copy.deepcopy(network).state_dict(),
        "statistics": {"model": torch.zeros(3, sum(b.numel() for n, b in network.named_buffers() if "running_" in n))},
    }  # fmt: skip
    fresh = optimizer_of(beginning, recipe, device_type="cpu")
    schedule_of(fresh, recipe, 10, 100)
    return state, Run(beginning, copy.deepcopy(beginning), fresh, recipe)


def check(state: dict[str, Any], run: Run) -> None:
    require_whole(state)
    require_fitting(state, run)


@pytest.fixture(scope="module")
def good() -> tuple[dict[str, Any], Run]:
    return trained(RECIPE)


def saved_and_read(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    return checkpoint.load_checkpoint(checkpoint.save_checkpoint(folder, state))


def accepted(name: str, folder: Path) -> bool:
    """Return whether a state of this optimiser is accepted; None of it where the optimiser does not work here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            state, run = trained(replace(RECIPE, optimizer=name, backbone_lr_factor=0.5))
        except Exception:  # needs a GPU, second derivatives or a package that is not here
            return False
        check(saved_and_read(state, folder), run)
    return True


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "adafactorbv", "lookahead_sgd", "sgdp"])
def test_what_an_optimiser_saved_is_accepted(tmp_path: Path, name: str) -> None:
    assert accepted(name, tmp_path)


@pytest.mark.slow
def test_what_any_optimiser_saved_is_accepted(tmp_path: Path) -> None:
    # Kron's step is compiled, which takes several minutes.
    names = [name for name in list_optimizers() if "kron" not in name] + ["lookahead_adam", "lookahead_lamb"]
    worked = [name for name in names if accepted(name, tmp_path / name)]
    print(f"{len(worked)} of {len(names)}, without {sorted({*names} - {*worked})}")
    assert len(worked) > 60


def change(*way: Any) -> Callable[[dict[str, Any]], None]:
    """Return what puts the last of `way` where the others lead."""

    def put(state: dict[str, Any]) -> None:
        for key in way[:-2]:
            state = state[key]
        state[way[-2]] = way[-1]

    return put


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("scaler"), "something is missing in it: scaler"),
        (change("later", 1), "it has 'later', which this version does not know"),
        (change("step", True), "its step is True"),
        (change("step", 6), r"losses is \(7,\) torch.float64, not \(6,\)"),
        (change("seen", -1), "its seen is -1"),
        (change("seen", 10**30), "its seen is 1000000000"),
        (change("settings", None), "its settings are no text"),
        (change("losses", [0.0] * 7), "losses is no tensor"),
        (change("losses", torch.full((7,), torch.nan, dtype=torch.float64)), "losses are not finite"),
        (change("history", 0, "step", 9), "its history has step 9 after 0"),
        (change("history", 0, "top1", 101.0), "its history has top1 101"),
        (change("history", 0, "train_loss", float("nan")), "its history has train_loss nan"),
        (lambda state: state["history"][0].pop("epoch"), "its history has a row"),
        (change("model", "conv1.weight", torch.zeros(1)), r"model conv1.weight is \(1,\)"),
        (change("model", "conv1.weight", "x" * 10**6), "model conv1.weight is no tensor"),
        (lambda state: state["model"].pop("conv1.weight"), "model: it lacks 'conv1.weight'"),
        (lambda state: state["average"]["fc.bias"].fill_(torch.inf), "average fc.bias is not finite"),
        (change("statistics", "other", torch.zeros(1, 1)), "it has statistics of 'other'"),
        (change("statistics", "model", torch.zeros(3, 1)), r"statistics of model is \(3, 1\)"),
        (change("scaler", {"scale": "1"}), "its scaler's scale is '1'"),
        (change("optimizer", "param_groups", 0, "params", [0]), "optimizer group 0: params is"),
        (change("optimizer", "param_groups", 0, "weight_decay", 9.0), "optimizer group 0: weight_decay is 9.0"),
        (change("optimizer", "param_groups", 0, "lr", float("nan")), "optimizer group 0: lr is nan"),
        (change("optimizer", "param_groups", 0, "lr", torch.zeros(2)), "optimizer group 0: lr is tensor"),
        (lambda state: state["optimizer"]["param_groups"].append({}), "optimizer: it has 2 groups of parameters"),
        (change("optimizer", "state", 10**6, {}), "it has state of parameter 1000000"),
        (lambda state: state["optimizer"]["state"].pop(3), "optimizer: it lacks 3"),
        (change("optimizer", "state", 3, "momentum_buffer", torch.zeros(1)), "parameter 3, momentum_buffer is"),
        (change("optimizer", "state", 3, {}), "parameter 3: it lacks 'momentum_buffer'"),
    ],
)  # fmt: skip
def test_an_edited_state_is_named(
    good: tuple[dict[str, Any], Run], edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    state, run = good
    check(state, run)
    state = copy.deepcopy(state)
    edit(state)
    with pytest.raises(InputError, match=message) as refused:
        check(state, run)
    assert str(refused.value).startswith("cannot resume: the state ")
    assert len(str(refused.value)) < 300


def test_states_of_runs_that_go_on_elsewhere_or_are_older(good: tuple[dict[str, Any], Run]) -> None:
    """With a fused optimiser, before `statistics` were kept, with all steps left out by the scaler."""
    state, run = copy.deepcopy(good[0]), good[1]
    del state["statistics"]
    state["optimizer"]["param_groups"][0] |= {"fused": True, "a key of a later torch": 1}
    check(state, run)
    without = {**state["optimizer"], "state": {}}
    check({**state, "scaler": {"scale": 2.0, "_growth_tracker": 3}, "optimizer": without}, run)
    with pytest.raises(InputError, match="optimizer: it lacks 0"):
        check({**state, "optimizer": without}, run)
