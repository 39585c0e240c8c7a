"""The architectures this package adds to timm, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CifarVariant:
    """One CIFAR residual network of He et al. (arXiv 1512.03385, section 4.2), plain or with SE.

    Three stages of 16, 32 and 64 planes on 32 x 32 images; depth = 6n + 2 with basic blocks, 9n + 2 with bottlenecks.
    `se` puts a squeeze-and-excitation module after the last BN of each block, squeeze width = channels // 16.
    """

    name: str
    block: Literal["basic", "bottleneck"]
    blocks_per_stage: int
    se: bool
    num_classes: int = 10


CIFAR_VARIANTS: tuple[CifarVariant, ...] = (
    CifarVariant(name="resnet20_cifar", block="basic", blocks_per_stage=3, se=False),
    CifarVariant(name="resnet56_cifar", block="basic", blocks_per_stage=9, se=False),
    CifarVariant(name="resnet110_cifar", block="basic", blocks_per_stage=18, se=False),
    CifarVariant(name="resnet164_cifar", block="bottleneck", blocks_per_stage=18, se=False),
    CifarVariant(name="seresnet20_cifar", block="basic", blocks_per_stage=3, se=True),
    CifarVariant(name="seresnet56_cifar", block="basic", blocks_per_stage=9, se=True),
    CifarVariant(name="seresnet110_cifar", block="basic", blocks_per_stage=18, se=True),
    CifarVariant(name="seresnet164_cifar", block="bottleneck", blocks_per_stage=18, se=True),
)
