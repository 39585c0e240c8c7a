"""Give the fields of a recipe that follow the weights and the data their values; `recipes/finetune.toml` says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import timm

from seresnet_hub.errors import InputError
from seresnet_hub.hub.failures import is_transient, no_network
from seresnet_hub.models.load import load
from seresnet_hub.models.names import architecture_of, parse_name
from seresnet_hub.models.published_weights import OWN_WEIGHTS
from seresnet_hub.recipes.field_types import written
from seresnet_hub.recipes.recipe import AUTO, Recipe

# Where neither the recipe nor weights name an architecture.
USUAL_MODEL = "seresnet50"
# Weights made for smaller pictures know little of what a photograph shows: the whole network learns anew.
SMALL_PICTURES = 128
ANEW = {"learning_rate": 0.2, "backbone_lr_factor": 1.0, "scale": (0.5, 1.0)}
GENTLY = {"learning_rate": 0.01, "backbone_lr_factor": 0.1, "scale": (0.25, 1.0)}
# The steps that a small data set gets, as in the BiT-HyperRule (arXiv 1912.11370, section 3.3), by more epochs.
STEPS = 500
FEWEST_EPOCHS, MOST_EPOCHS = 20, 100
# From so many images on, epochs of the larger batch have steps enough.
MANY_IMAGES, LARGE_BATCH, SMALL_BATCH = 1600, 64, 16


class Start(NamedTuple):
    """The weights a run begins with, by the name the recipe gives them, and timm's config of them."""

    weights: str | None
    config: Mapping[str, Any]


def start_of(recipe: Recipe) -> Start:
    """Return what a run of the recipe starts from; loads the weights once, so that they are known to be there.

    Errors: `InputError` as for `load`, with the ways out where it is for want of a network.
    """
    if recipe.weights is None:
        config = timm.get_pretrained_cfg(architecture_of(recipe.model or USUAL_MODEL))
        return Start(None, config.to_dict() if config else {})
    try:
        parse_name(recipe.weights)  # an exported file is refused
        return Start(recipe.weights, load(recipe.weights).pretrained_cfg)  # type: ignore[arg-type]
    except InputError as error:
        if not (no_network(error) or is_transient(error)):
            raise
        raise InputError(
            f"the weights {recipe.weights} are not here, and cannot be fetched ({error}). Without a network: --set "
            f"weights=DIR (a model folder on this machine), weights={OWN_WEIGHTS[0].name} (small, comes with the "
            "package), or weights=none (a random start, which needs many images)"
        ) from error


def resolved(recipe: Recipe, start: Start, *, images: int) -> tuple[Recipe, str]:
    """Return the recipe without any `AUTO`, and in one line what was chosen and why (empty where nothing was).

    `images` is the number of training images.
    """
    size = start.config.get("input_size", (3, 224, 224))[-1]
    interpolation = start.config.get("interpolation")
    of_weights = {
        "model": start.config.get("architecture") or USUAL_MODEL,
        "input_size": size,
        "interpolation": interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        "crop_pct": start.config.get("crop_pct") or 1.0,
    }
    anew = start.weights is None or size < SMALL_PICTURES

    repeats = recipe.repeated_augmentation
    usual_batch = LARGE_BATCH if images >= MANY_IMAGES else SMALL_BATCH
    batch_size = -(-usual_batch // repeats) * repeats if recipe.batch_size is AUTO else recipe.batch_size
    steps = max(1, images // batch_size if recipe.drop_last else -(-images // batch_size))
    epochs = min(max(-(-STEPS // steps), FEWEST_EPOCHS), MOST_EPOCHS) if recipe.epochs is AUTO else recipe.epochs
    of_images = {"batch_size": batch_size, "epochs": epochs, "warmup_epochs": min(1, epochs - 1)}

    learns = "the whole network learns" if anew else "the backbone learns more slowly than the classifier"
    chosen: dict[str, Any] = {}
    reasons = []
    for values, reason in (
        (of_weights, f" as for {start.weights or 'a random start'}"),
        (ANEW if anew else GENTLY, f": {learns}"),
        (of_images, f" for {images:,} images: {epochs * steps:,} steps"),
    ):
        missing = {name: value for name, value in values.items() if getattr(recipe, name) is AUTO}
        chosen |= missing
        if missing:
            reasons.append(", ".join(f"{name}={written(value)}" for name, value in missing.items()) + reason)
    if not chosen:
        return recipe, ""
    return replace(recipe, **chosen), f"chosen by recipe {recipe.name!r} (--set changes them): {'; '.join(reasons)}"
