"""The pretrained weights this package adds to timm's own architectures, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One set of ImageNet-1k weights as its authors published it, and the preprocessing that belongs to it.

    `top1` and `top5` are the accuracies its authors publish, in percent, single centre crop of 224 from a short edge of
    256; `params_millions` and `gflops` (multiply-adds) likewise. `sha256_prefix` is the hash in the file's own name.
    """

    architecture: str
    tag: str
    source_name: str
    url: str
    sha256_prefix: str
    top1: float
    top5: float
    params_millions: float
    gflops: float
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # 123.675, 116.28, 103.53 over 255
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # 58.395, 57.12, 57.375 over 255
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    license: str = "apache-2.0"
    paper_ids: str = "arXiv:1709.01507"
    origin_url: str = "https://github.com/open-mmlab/mmpretrain"

    @property
    def name(self) -> str:
        """The name timm knows the weights by: `architecture.tag`."""
        return f"{self.architecture}.{self.tag}"


_OPENMMLAB = "https://download.openmmlab.com/mmclassification/v0/se-resnet"

# Source: mmpretrain, configs/seresnet (metafile.yml and README).
WEIGHTS: tuple[Weights, ...] = (
    Weights(
        architecture="seresnet50",
        tag="mm_in1k",
        source_name="seresnet50_8xb32_in1k",
        url=f"{_OPENMMLAB}/se-resnet50_batch256_imagenet_20200804-ae206104.pth",
        sha256_prefix="ae206104",
        top1=77.74,
        top5=93.84,
        params_millions=28.09,
        gflops=4.13,
    ),
    Weights(
        architecture="seresnet101",
        tag="mm_in1k",
        source_name="seresnet101_8xb32_in1k",
        url=f"{_OPENMMLAB}/se-resnet101_batch256_imagenet_20200804-ba5b51d4.pth",
        sha256_prefix="ba5b51d4",
        top1=78.26,
        top5=94.07,
        params_millions=49.33,
        gflops=7.86,
    ),
)


@dataclass(frozen=True, kw_only=True)
class OwnWeights:
    """Small weights trained here, which come with the package as the model folder that training wrote.

    Its `config.json` holds all other facts: preprocessing, class names, sha256, recipe, measured accuracy. `notes` are
    what a reader must know before using them.
    """

    architecture: str
    tag: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name timm knows the weights by: `architecture.tag`."""
        return f"{self.architecture}.{self.tag}"

    @property
    def folder(self) -> Path:
        """The model folder within the installed package."""
        return Path(__file__).parents[1] / "own_weights" / self.name


OWN_WEIGHTS: tuple[OwnWeights, ...] = (
    OwnWeights(
        architecture="seresnet20_cifar",
        tag="c10",
        notes=(
            "It was trained and measured on a copy of CIFAR-10 whose images had been stored as JPEG of quality 75: "
            "compare its accuracy with none that was measured on the lossless images.",
            "It is small, was trained for 15 epochs, and knows ten kinds of things at 32 x 32 pixels. It is here so "
            "that everything can be tried without a network, not to be relied on.",
            "Its accuracy is that of the recipe's own seed, 0, the luckiest of three: seeds 1 and 2 gave 84.29 "
            "and 84.13. The same network without SE gave 85.15, 84.79 and 85.01, so SE is no gain here.",
        ),
    ),
)
