"""Show that a converted network computes what the source's own network does, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from seresnet_hub.checkpoints.architecture_from_shapes import (
    ARCHITECTURES,
    CIFAR_ARCHITECTURES,
    LEGACY_ARCHITECTURES,
    RATIO_ARCHITECTURES,
    Shape,
)
from seresnet_hub.checkpoints.renaming import Source
from seresnet_hub.conversion.planning import ConversionPlan
from seresnet_hub.conversion.reference_networks import LAYOUTS, Outputs, Reference
from seresnet_hub.conversion.run_in_float64 import float64_outputs, in_float64
from seresnet_hub.errors import InputError

# Two networks that do the same additions in another order differ by rounding; anything structural differs by far more.
TOLERANCE = 1e-10


def prove(source: Source, tensors: Mapping[str, torch.Tensor], plan: ConversionPlan) -> float | None:
    """Return the largest difference between the plan's network and the source's own, whose `tensors` are given.

    Stage features and logits are compared, in float64; new SE units are left out. None where the source has no network
    to compare with. Errors: `InputError` where they differ or are not finite.
    """
    compared = source.name in LAYOUTS and _has_reference(plan)
    # Odd, unequal sides: pools and strides that agree on even squares part here, and a small image shows it as well.
    size = (32, 32) if plan.is_for_cifar else (33, 41) if compared else (64, 64)  # some networks need even sides
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, plan.model_args.get("in_chans", 3), *size, generator=generator) * 4 - 2
    stem: list[torch.Tensor] = []
    first = plan.network.layer1[0].register_forward_pre_hook(  # type: ignore[index, union-attr]
        lambda _layer, inputs: stem.append(inputs[0].clone())
    )
    features, logits = float64_outputs(plan.network, images, without_se=source.lacks_se)
    first.remove()
    for values in (*features, logits):
        if not bool(torch.isfinite(values).all()):
            raise InputError("the converted network computes values that are not finite: its weights are damaged")
    if not compared:
        return None
    try:
        expected = Reference(source.name, tensors)(images)
    except KeyError as error:
        raise InputError(f"{source.title}'s own network does not find {error.args[0]!r} in the file") from error
    if plan.has_new_classifier:
        expected = replace(expected, logits=None)
    pairs = [(stem[0], expected.stem), *zip(features, expected.features, strict=True)]
    if expected.logits is not None:
        pairs.append((logits, expected.logits))
    # Weights far from any training can amplify rounding from block to block; then the blocks are compared one by one.
    if not all(is_equal(*pair) for pair in pairs) and not (
        is_equal(*pairs[0]) and _blocks_equal(plan.network, expected, without_se=source.lacks_se)
    ):
        raise InputError(
            f"{plan.architecture} loads these tensors and computes something else (by {_distance(*pairs[-1]):.3g}): "
            f"the network of this file is not one that timm has"
        )
    return max(_distance(*pair) for pair in pairs)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")


def is_equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether two tensors differ by no more than rounding."""
    return _distance(found, expected) <= TOLERANCE * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def _blocks_equal(network: nn.Module, expected: Outputs, *, without_se: bool) -> bool:
    """Return whether every block of `network` computes what the reference's does from the same input."""
    x = expected.stem
    stages = [getattr(network, f"layer{stage}", ()) for stage in range(1, 5)]
    blocks = [block for stage in stages for block in stage]
    with in_float64(network, without_se=without_se):
        for block, wanted in zip(blocks, expected.blocks, strict=True):
            if not is_equal(block(x.clone()), wanted):
                return False
            x = wanted
        return expected.logits is None or is_equal(network.forward_head(x), expected.logits)  # type: ignore[operator]


def _has_reference(plan: ConversionPlan) -> bool:
    """Return whether the references know the network: a usual SE-ResNet, and no option that its shapes do not show."""
    tables = (RATIO_ARCHITECTURES, LEGACY_ARCHITECTURES, CIFAR_ARCHITECTURES)
    known = {*ARCHITECTURES, *(name for table in tables for name in table.values())}
    shown = {*Shape.__dataclass_fields__, "in_chans"}
    return plan.architecture in known and set(plan.model_args) <= shown
