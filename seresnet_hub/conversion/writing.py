"""Write the folder of a converted model, when it reads back well and the proof is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from seresnet_hub.cards.card import card_of, render
from seresnet_hub.conversion.planning import ConversionPlan
from seresnet_hub.conversion.provenance import proof_line
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import staging
from seresnet_hub.files.model_folder import (
    CARD_NAME,
    CONFIG_NAME,
    FACTS_KEY,
    WEIGHTS_NAME,
    write_config_and_card,
    write_weights,
)
from seresnet_hub.models.create import list_models

FILES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME)


def require_writable(target: Path, *, force: bool) -> None:
    """Raise `InputError` where something is in the way of the folder; with `force`, a folder's files are replaced."""
    if os.path.lexists(target) and not force:
        raise InputError(f"{target} exists; choose another folder, or replace its model with --force")
    if os.path.exists(target) and not os.path.isdir(target):
        raise InputError(f"{target} is a file, not a folder")
    for name in FILES:
        if os.path.isdir(target / name):
            raise InputError(f"{target / name} is a folder, where a file is to be written")


def write_converted(
    target: Path, plan: ConversionPlan, config: Mapping[str, Any], provenance: Mapping[str, str],
    proof: Callable[[], float | None],
) -> tuple[str, float | None]:  # fmt: skip
    """Write the model folder `target`, whole or not at all; return the weights' sha256 and the proof's result.

    `provenance` goes into the weights' header. Errors: `InputError`; folders that were made for `target` are removed.
    """
    created = [folder for folder in Path(os.path.abspath(target)).parents if not os.path.lexists(folder)]
    try:
        with staging(target, FILES) as staged:
            write_weights(staged, plan.tensors, provenance)
            _check_round_trip(staged / WEIGHTS_NAME, plan.tensors)
            difference = proof()
            facts = config[FACTS_KEY]
            described = {
                **config,
                FACTS_KEY: {**facts, "summary": f"{facts['summary']} {proof_line(difference, plan)}"},
            }
            sha256 = write_config_and_card(
                staged,
                described,
                lambda config: render(card_of(config, plan.sizes, needs_plugin=plan.architecture in list_models())),
            )
    except InputError:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        raise
    return sha256, difference


def _check_round_trip(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        same = set(file.keys()) == set(tensors) and all(
            torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items()
        )
    if not same:
        raise InputError(f"the disk under {path.parent.parent} does not give back what was written to it")
