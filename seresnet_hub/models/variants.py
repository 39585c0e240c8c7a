"""The architectures this package adds to timm, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Placement = Literal["standard", "pre", "post", "identity", "3x3"]

WHERE: dict[Placement | None, str] = {
    None: "no SE",
    "standard": "after the last norm of the residual branch",
    "pre": "on the input of the residual branch",
    "post": "after the sum and its activation",
    "identity": "on the identity branch",
    "3x3": "after the 3×3 convolution",
}


@dataclass(frozen=True, kw_only=True)
class CifarVariant:
    """One CIFAR residual network of He et al. (arXiv 1512.03385, section 4.2), plain or with SE.

    Three stages of 16, 32 and 64 planes on 32 x 32 images; depth = 6n + 2 with basic blocks, 9n + 2 with bottlenecks.
    `placement` is where the SE unit sits (`None`: nowhere); its squeeze width is channels // 16.
    """

    name: str
    block: Literal["basic", "bottleneck"]
    blocks_per_stage: int
    placement: Placement | None
    num_classes: int = 10


def _cifar(depth: int, block: Literal["basic", "bottleneck"]) -> tuple[CifarVariant, ...]:
    blocks = (depth - 2) // (6 if block == "basic" else 9)
    placements: dict[str, Placement | None] = {
        f"resnet{depth}_cifar": None,
        f"seresnet{depth}_cifar": "standard",
        f"seresnet{depth}_cifar_pre": "pre",
        f"seresnet{depth}_cifar_post": "post",
        f"seresnet{depth}_cifar_identity": "identity",
        f"seresnet{depth}_cifar_3x3": "3x3",
    }
    return tuple(
        CifarVariant(name=name, block=block, blocks_per_stage=blocks, placement=placement)
        for name, placement in placements.items()
    )


CIFAR_VARIANTS: tuple[CifarVariant, ...] = (
    *_cifar(20, "basic"),
    *_cifar(56, "basic"),
    *_cifar(110, "basic"),
    *_cifar(164, "bottleneck"),
)


@dataclass(frozen=True, kw_only=True)
class PaperVariant:
    """One SE-ResNet-50 of the paper's ablation study (arXiv 1709.01507v4, section 6), for 224 x 224 images.

    `ratio` is the reduction ratio r, `stage` the only stage with SE, counted as in the paper: stage 2 is conv2_x,
    timm's `layer1`. `from_timm` is true where timm's own blocks, with arguments that Python can pass, make the network.
    `top1_error` and `top5_error` are the paper's, in percent (tables 10 to 15), for networks of its own: they say what
    the design did there, not what this package measured.
    """

    name: str
    top1_error: float
    top5_error: float
    placement: Placement = "standard"
    ratio: int = 16
    squeeze: Literal["avg", "max"] = "avg"
    gate: Literal["sigmoid", "relu", "tanh"] = "sigmoid"
    stage: Literal[2, 3, 4] | None = None

    @property
    def from_timm(self) -> bool:
        """Whether the network consists of timm's own blocks and SE module."""
        return self.placement == "standard" and self.squeeze == "avg"


PAPER_VARIANTS: tuple[PaperVariant, ...] = (
    PaperVariant(name="seresnet50_pre", placement="pre", top1_error=22.23, top5_error=6.00),
    PaperVariant(name="seresnet50_post", placement="post", top1_error=22.78, top5_error=6.35),
    PaperVariant(name="seresnet50_identity", placement="identity", top1_error=22.20, top5_error=6.15),
    PaperVariant(name="seresnet50_3x3", placement="3x3", top1_error=22.48, top5_error=6.02),
    PaperVariant(name="seresnet50_r2", ratio=2, top1_error=22.29, top5_error=6.00),
    PaperVariant(name="seresnet50_r4", ratio=4, top1_error=22.25, top5_error=6.09),
    PaperVariant(name="seresnet50_r8", ratio=8, top1_error=22.26, top5_error=5.99),
    PaperVariant(name="seresnet50_r32", ratio=32, top1_error=22.72, top5_error=6.20),
    PaperVariant(name="seresnet50_max", squeeze="max", top1_error=22.57, top5_error=6.09),
    PaperVariant(name="seresnet50_relu", gate="relu", top1_error=23.47, top5_error=6.98),
    PaperVariant(name="seresnet50_tanh", gate="tanh", top1_error=23.00, top5_error=6.38),
    PaperVariant(name="seresnet50_stage2", stage=2, top1_error=23.03, top5_error=6.48),
    PaperVariant(name="seresnet50_stage3", stage=3, top1_error=23.04, top5_error=6.32),
    PaperVariant(name="seresnet50_stage4", stage=4, top1_error=22.68, top5_error=6.22),
)
