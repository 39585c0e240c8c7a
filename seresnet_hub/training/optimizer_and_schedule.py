"""What changes weights at each step: the optimiser, and the schedule of its rate."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import Recipe


def optimizer_of(model: nn.Module, recipe: Recipe, *, device_type: str) -> torch.optim.Optimizer:
    """Return the recipe's optimiser of a model on this type of device; `InputError` where timm cannot make it."""
    options: dict[str, Any] = {"lr": recipe.peak_learning_rate, "momentum": recipe.momentum}
    if recipe.optimizer_eps is not None:
        options["eps"] = recipe.optimizer_eps
    options |= fused_option(recipe.optimizer, device_type=device_type, mixed_precision=recipe.mixed_precision)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            parameter_groups(model, recipe), recipe.optimizer, weight_decay=recipe.weight_decay, **options
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer={recipe.optimizer}: {error}") from error
    if recipe.optimizer_eps is not None and "eps" not in optimizer.defaults:  # timm drops what its optimiser lacks
        raise InputError(f"optimizer_eps={recipe.optimizer_eps}: optimizer={recipe.optimizer} has none")
    return optimizer


def fused_option(optimizer: str, *, device_type: str, mixed_precision: str) -> dict[str, Any]:
    """Return `{"fused": True}` where timm's name `optimizer` is one of torch's own that has a fused form, else nothing.

    On a CPU the fused form rounds otherwise. With fp16, a fused optimiser would divide by the loss's scale itself and
    skip steps unseen by Accelerate.
    """
    if device_type != "cuda" or mixed_precision == "fp16":
        return {}
    try:
        kind: Any = get_optimizer_class(optimizer, bind_defaults=False)
    except ValueError:  # unknown, or a wrapper around another: making it says what is wrong
        return {}
    torchs = kind.__module__.startswith("torch.optim")
    return {"fused": True} if torchs and "fused" in inspect.signature(kind).parameters else {}


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return timm's groups of parameters by weight decay, each divided where the backbone has a rate of its own.

    timm's schedulers multiply a group's rate by its `lr_scale`. The classifier's groups come first.
    """
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, recipe.weight_decay)
    if recipe.decay_all:
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [{"params": learning, "weight_decay": recipe.weight_decay}]
    if recipe.backbone_lr_factor == 1:
        return groups
    head = {id(parameter) for parameter in model.get_submodule(classifier_of(model)).parameters()}

    def part(group: dict[str, Any], *, of_head: bool) -> dict[str, Any]:
        parameters = [parameter for parameter in group["params"] if (id(parameter) in head) == of_head]
        return {**group, "params": parameters, **({} if of_head else {"lr_scale": recipe.backbone_lr_factor})}

    divided = [part(group, of_head=of_head) for of_head in (True, False) for group in groups]
    return [group for group in divided if group["params"]]


def classifier_of(model: nn.Module) -> str:
    """Return the name of the child of the model that is its classifier, or holds it."""
    name: str = model.pretrained_cfg["classifier"]  # type: ignore[index, assignment]
    return name.split(".")[0]


def schedule_of(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int, total_steps: int) -> Scheduler:
    """Return timm's schedule of the recipe's learning rate, step by step."""
    options: dict[str, Any] = {
        "warmup_t": recipe.warmup_epochs * steps_per_epoch, "warmup_lr_init": recipe.warmup_learning_rate,
        "warmup_prefix": False, "t_in_epochs": False,
    }  # fmt: skip
    if recipe.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=total_steps, **options)
    if recipe.decay_every is not None:
        every = recipe.decay_every * steps_per_epoch
        return StepLRScheduler(optimizer, decay_t=every, decay_rate=recipe.decay_rate, **options)
    # timm's decays at the step before the one it is told.
    decays = [epoch * steps_per_epoch + 1 for epoch in recipe.decay_epochs]
    return MultiStepLRScheduler(optimizer, decay_t=decays, decay_rate=recipe.decay_rate, **options)
