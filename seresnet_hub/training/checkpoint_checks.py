"""Check all that a checkpoint says before it is used: its keys, types and ranges, and shapes by the model."""

from __future__ import annotations

import copy
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import Recipe
from seresnet_hub.training.batchnorm_statistics import values_in
from seresnet_hub.training.optimizer_and_schedule import optimizer_of

REQUIRED = ("settings", "step", "seen", "shards", "history", "losses", "model", "optimizer", "scaler", "average")
OPTIONAL = ("statistics",)  # not in checkpoints of an older version
ROW = ("step", "epoch", "learning_rate", "train_loss")
# Of a group of parameters: what the recipe decides and no step changes.
FIXED = frozenset({"momentum", "weight_decay", "dampening", "nesterov", "betas", "eps", "lr_scale", "initial_lr"})
LARGEST = 2**63


class Run(NamedTuple):
    """What a checkpoint of a run must fit: its networks as they begin, its optimiser and its recipe."""

    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    recipe: Recipe


class _Misfit(Exception):
    """What is wrong with a checkpoint; the text names the place."""


def require_whole(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's settings; `InputError` where something in it is missing, of another type or range."""
    try:
        lacking = [key for key in REQUIRED if key not in saved]
        _require(not lacking, f"something is missing in it: {', '.join(lacking)}")
        for key in saved:
            _require(key in (*REQUIRED, *OPTIONAL), f"it has {reprlib.repr(key)}, which this version does not know")
        _require(isinstance(saved["settings"], str), "its settings are no text")
        for key, least in (("step", 0), ("seen", 0), ("shards", -LARGEST)):
            _require(_is_integer(saved[key], least), f"its {key} is {reprlib.repr(saved[key])}")
        for key in ("model", "optimizer", "scaler", "average", "statistics"):
            _require(isinstance(saved.get(key, {}), dict), f"its {key} is no mapping")
        for key, value in saved["scaler"].items():
            _require(_is_number(value) and value >= 0, f"its scaler's {key} is {reprlib.repr(value)}")
        settings: Any = json.loads(saved["settings"])
        _require(isinstance(settings, dict), "its settings are no mapping")
        return settings
    except (_Misfit, ValueError, RecursionError) as error:
        raise InputError(f"cannot resume: the state is not one of this version ({error})") from error


def require_fitting(saved: Mapping[str, Any], run: Run) -> None:
    """Raise `InputError` where a checkpoint says other steps than it has, or its tensors are not those of this run."""
    try:
        _require_like(saved["losses"], torch.empty(saved["step"], dtype=torch.float64, device="meta"), "losses")
        _require(bool(saved["losses"].isfinite().all()), "losses are not finite")
        _require_history(saved["history"], saved["step"])
        _require_tensors(saved["model"], run.model, "model")
        if run.average is None:
            _require(not saved["average"], "it has a moving average, which the run has not")
        else:
            _require_tensors(saved["average"], run.average, "average")
        _require_statistics(saved.get("statistics", {}), run)
        _require_optimizer(saved["optimizer"], run, after_steps=saved["step"] > 0, scaled=bool(saved["scaler"]))
    except _Misfit as error:
        raise InputError(f"cannot resume: the state does not fit {run.recipe.model} ({error})") from error


def _require_history(history: Any, step: int) -> None:
    _require(isinstance(history, list), "its history is no list")
    before = 0
    for row in history:
        _require(isinstance(row, dict) and row.keys() >= {*ROW}, f"its history has a row {reprlib.repr(row)}")
        for key, value in row.items():
            _require(isinstance(key, str) and _is_number(value), f"its history has {reprlib.repr({key: value})}")
            share = key.endswith(("top1", "top5"))
            _require(0 <= value <= 100 if share else key.endswith("eval_loss") or math.isfinite(value),
                     f"its history has {key} {value}")  # fmt: skip
        _require(_is_integer(row["step"], before + 1) and row["step"] <= step,
                 f"its history has step {reprlib.repr(row['step'])} after {before:,}, at step {step:,}")  # fmt: skip
        before = row["step"]


def _require_tensors(given: Mapping[str, Any], network: nn.Module, name: str) -> None:
    wanted = network.state_dict()
    _require(given.keys() == wanted.keys(), f"{name}: {_difference(given, wanted)}")
    for key, tensor in wanted.items():
        _require_like(given[key], tensor, f"{name} {key}")
        _require(bool(given[key].isfinite().all()), f"{name} {key} is not finite")


def _require_statistics(gathered: Mapping[str, Any], run: Run) -> None:
    for name, rows in gathered.items():
        network = {"model": run.model, "average": run.average}.get(name)
        _require(network is not None, f"it has statistics of {reprlib.repr(name)}")
        assert network is not None
        shape = (max(len(rows), 1) if isinstance(rows, torch.Tensor) and rows.ndim else 1, values_in(network))
        _require_like(rows, torch.empty(shape, device="meta"), f"statistics of {name}")
        _require(bool(rows.isfinite().all()), f"statistics of {name} are not finite")


def _require_optimizer(given: Mapping[str, Any], run: Run, *, after_steps: bool, scaled: bool) -> None:
    _require(given.keys() == {"state", "param_groups"}, f"optimizer: {_difference(given, {'state', 'param_groups'})}")
    groups, states = given["param_groups"], given["state"]
    own = run.optimizer.state_dict()["param_groups"]
    _require(isinstance(states, dict), "optimizer: its state is no mapping")
    number = len(groups) if isinstance(groups, list) else "no list of"
    _require(number == len(own), f"optimizer: it has {number} groups of parameters, the run has {len(own)}")
    for number, (group, wanted) in enumerate(zip(groups, own, strict=True)):
        place = f"optimizer group {number}"
        _require(isinstance(group, dict), f"{place} is no mapping")
        needed = ({"lr", "params"} | FIXED) & wanted.keys()  # other keys come and go with torch's versions
        _require(needed <= group.keys(), f"{place}: {_difference(group, needed)}")
        for key in (group.keys() & wanted.keys()) - {"fused"}:  # which is the machine's
            fits = _same_type(group[key], wanted[key])
            if key in FIXED or key == "params":
                fits = fits and _plain(group[key]) == _plain(wanted[key])
            _require(fits, f"{place}: {key} is {reprlib.repr(group[key])}")
        _require(math.isfinite(group["lr"]), f"{place}: lr is {group['lr']}")
    known = {index for group in own for index in group["params"]}
    _require(states.keys() <= known, f"optimizer: it has state of parameter {reprlib.repr(_first(states, known))}")
    for index, values in states.items():
        _require(isinstance(values, dict), f"optimizer: the state of parameter {index} is no mapping")
    if not after_steps or (scaled and not states):  # a scaler leaves out steps until it has found its scale
        return
    expected, all_of_them = _after_a_step(run)
    _require(not all_of_them or states.keys() == expected.keys(), f"optimizer: {_difference(states, expected)}")
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    for index, values in states.items():
        place, wanted = f"optimizer state of parameter {index}", expected.get(index, {})
        _require(values.keys() >= wanted.keys(), f"{place}: {_difference(values, wanted)}")
        for key, value in values.items():
            if isinstance(wanted.get(key), torch.Tensor):
                _require_like(value, wanted[key], f"{place}, {key}")
            elif wanted.get(key) is not None:
                _require(_same_type(value, wanted[key]), f"{place}: {key} is {reprlib.repr(value)}")
            elif isinstance(value, torch.Tensor) and wanted:  # some optimisers add something at later steps
                fits = value.numel() == 1 or value.shape == parameters[index].shape
                _require(fits, f"{place}, {key} is {tuple(value.shape)}")


def _after_a_step(run: Run) -> tuple[dict[int, dict[str, Any]], bool]:
    """Return what the optimiser holds of each parameter after a step on tensors without memory.

    And whether these are the parameters that have gradients in this model. Empty where the optimiser looks at values.
    """
    trial, all_of_them = copy.deepcopy(run.model).to("meta").eval(), True
    try:
        trial(torch.zeros(2, 3, run.recipe.input_size, run.recipe.input_size, device="meta")).sum().backward()
    except Exception:  # whatever the model makes of it
        all_of_them = False
        for parameter in trial.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        optimizer = optimizer_of(trial, run.recipe, device_type="cpu")
        optimizer.step()
        states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    except Exception:  # whatever the optimiser makes of it
        return {}, False
    return states, all_of_them


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise _Misfit(problem)


def _require_like(value: Any, wanted: torch.Tensor, place: str) -> None:
    _require(isinstance(value, torch.Tensor), f"{place} is no tensor")
    shapes = f"{tuple(value.shape)} {value.dtype}, not {tuple(wanted.shape)} {wanted.dtype}"
    _require(value.shape == wanted.shape and value.dtype == wanted.dtype, f"{place} is {shapes}")


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and _is_integer(value, -LARGEST))


def _same_type(value: Any, wanted: Any) -> bool:
    """Return whether a value may stand for another: of the same type, or both numbers, or both lists."""
    if _is_number(wanted):
        return _is_number(value)
    if isinstance(wanted, list | tuple):
        return isinstance(value, list) and len(value) == len(wanted) and all(map(_same_type, value, wanted))
    if isinstance(wanted, torch.Tensor):
        return isinstance(value, torch.Tensor) and value.shape == wanted.shape
    return type(value) is type(wanted) or (wanted is None and isinstance(value, bool))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _first(given: Any, known: Any) -> Any:
    return next((key for key in given if key not in known), None)


def _difference(given: Any, wanted: Any) -> str:
    lacking, more = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    return "; ".join(
        f"{verb} {reprlib.repr(keys[0])}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}"
        for verb, keys in (("it lacks", lacking), ("it has, beside what belongs there,", more))
        if keys
    )
