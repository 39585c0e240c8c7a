"""The model as training begins: at random or with a recipe's weights, what of it learns, and what it can train on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.utils.model import freeze
from torch import nn

from seresnet_hub.data.plan import Plan
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import FACTS_OF_ONE_WEIGHT_SET
from seresnet_hub.models.create import create
from seresnet_hub.models.load import load
from seresnet_hub.models.names import architecture_of
from seresnet_hub.recipes.recipe import Recipe
from seresnet_hub.training.optimizer_and_schedule import classifier_of

BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def initial_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """Return the model as training begins, with timm's config of the weights that it is going to have.

    It is random, or has the recipe's weights, with a new classifier for other classes. Errors: `InputError` where it
    has not what the recipe asks for.
    """
    options: dict[str, Any] = {
        "drop_rate": recipe.dropout or None, "drop_path_rate": recipe.drop_path or None,
        "zero_init_last": recipe.zero_init_last,
    }  # fmt: skip
    options = {"num_classes": num_classes} | {name: value for name, value in options.items() if value is not None}
    if recipe.weights is None:
        model = create(recipe.model, pretrained=False, **options)
    else:
        model = load(recipe.weights, **options)
        found, wanted = model.pretrained_cfg["architecture"], architecture_of(recipe.model)  # type: ignore[index]
        if found != wanted:
            raise InputError(
                f"weights={recipe.weights} are of {found}, but the recipe trains {wanted}: set model={found}"
            )
        if recipe.new_head:
            model.reset_classifier(num_classes)  # type: ignore[operator]
        if frozen := _parts_to_freeze(model, recipe):
            freeze(model, frozen, include_bn_running_stats=False)  # else they would become norms of another state dict
    if recipe.bn_momentum is not None:
        norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
        if not norms:
            raise InputError(f"bn_momentum={recipe.bn_momentum}: {recipe.model} has no batch norms")
        for norm in norms:
            norm.momentum = recipe.bn_momentum
    # Evaluation reads its transform from here, as a user of the saved model does.
    model.pretrained_cfg = _config(recipe, model)  # type: ignore[assignment]
    return model


def eval_frozen_parts(model: nn.Module) -> None:
    """Put the frozen parts of a model in eval mode: nothing is dropped there, and no statistics are taken."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return  # parts without parameters may be drop-outs
    for part in model.children():
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()


def require_trainable(model: nn.Module, recipe: Recipe, *, images: int) -> None:
    """Raise `InputError` where the model cannot take a batch of so many images; computes shapes only."""
    try:
        with torch.no_grad():
            size = recipe.input_size
            trial = copy.deepcopy(model).to("meta").train()
            eval_frozen_parts(trial)
            trial(torch.zeros(images, 3, size, size, device="meta"))
    except Exception as error:  # whatever the model makes of it
        raise InputError(
            f"{recipe.model} cannot train on {images} images of {recipe.input_size} pixels: {error}"
        ) from error


def require_mixable(recipe: Recipe, plan: Plan, world_size: int) -> None:
    """Raise `InputError` where a process could not mix its part of a batch: filled up to the others', or odd."""
    rows = plan.batch_rows(0) * recipe.repeated_augmentation
    if (recipe.mixup or recipe.cutmix) and rows % (2 * world_size):
        raise InputError(
            f"batch_size={recipe.batch_size}: mixup and cutmix need an equal, even number of images on each of "
            f"{world_size} processes, and these share {rows:,} in a batch"
        )


def _parts_to_freeze(model: nn.Module, recipe: Recipe) -> list[str]:
    """Return the names of the model's children that the recipe freezes; `InputError` where it has no such part."""
    if recipe.freeze == "nothing":
        return []
    children = [name for name, _ in model.named_children()]
    parts = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    classifier, first_stage = classifier_of(model), "layer1"
    before = {"backbone": classifier, "stem": first_stage}.get(recipe.freeze)
    if (before or recipe.freeze) not in parts:
        raise InputError(f"freeze={recipe.freeze}: {recipe.model} has no such part, it is made of {', '.join(parts)}")
    end = children.index(before) if before else children.index(recipe.freeze) + 1
    return [name for name in children[:end] if name in parts]


def _config(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """Return timm's config of the weights to be trained: the architecture's facts, and the recipe's preprocessing."""
    size = recipe.eval_size or recipe.input_size
    given: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    pool = given.get("pool_size")  # the size of the last map, where the model has one (it scales with the input)
    if pool:
        pool = tuple(max(1, side * size // given["input_size"][-1]) for side in pool)
    return {
        **{key: value for key, value in given.items() if key not in FACTS_OF_ONE_WEIGHT_SET},
        "num_classes": model.num_classes,
        "input_size": (3, size, size),
        "pool_size": pool,
        "interpolation": recipe.interpolation,
        "crop_pct": recipe.crop_pct,
        "mean": recipe.mean or given["mean"],
        "std": recipe.std or given["std"],
    }
