"""Reference networks: what a source's own code computes, from its own tensors under its own names.

A converted model is held against these in float64. They share nothing with the converter: no rule, no table, no model
class. A network is written as one loop over blocks; a `Layout` says where each code base keeps the parts.
Sources: the forward passes of the code bases named in `LAYOUTS`; arXiv 1709.01507.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a code base keeps the parts of its network: torchvision's names, unless it says otherwise.

    `{s}` is the stage, `{b}` the block, `{k}` the convolution; `first` is the number of the first of each.
    `shortcut_after_pool` and `shortcut` are the names of a projection with and without average pooling before it.
    `stride_in` is the convolution of a bottleneck that strides.
    """

    stem: str = "conv1"
    stem_norm: str = "bn1"
    deep_stem: tuple[tuple[str, str], ...] = ()
    block: str = "layer{s}.{b}."
    first: tuple[int, int, int] = (1, 0, 1)
    convolution: str = "conv{k}"
    norm: str = "bn{k}"
    squeeze: tuple[str, str] | None = None
    shortcut: tuple[str, str] = ("downsample.0", "downsample.1")
    shortcut_after_pool: tuple[str, str] | None = None
    classifier: str = "fc"
    pool_where_strided: bool = False  # PaddleClas's _vd networks: same names, and a pool where the deep stem is
    stride_in: int = 1
    caffe_pool: bool = False
    weights_of_linear: Literal["out,in", "in,out"] = "out,in"
    statistics: tuple[str, str] = ("running_mean", "running_var")


LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout(),
    "moskomule": Layout(squeeze=("se.fc.0", "se.fc.2")),
    "timm": Layout(
        deep_stem=(("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")),
        squeeze=("se.fc1", "se.fc2"),
        shortcut_after_pool=("downsample.1", "downsample.2"),
    ),
    "mmpretrain": Layout(
        deep_stem=tuple((f"stem.{k}.conv", f"stem.{k}.bn") for k in (0, 1, 2)),
        squeeze=("se_layer.conv1.conv", "se_layer.conv2.conv"),
        shortcut_after_pool=("downsample.1", "downsample.2"),
        classifier="head.fc",
    ),
    "cadene": Layout(
        stem="layer0.conv1",
        stem_norm="layer0.bn1",
        deep_stem=tuple((f"layer0.conv{k}", f"layer0.bn{k}") for k in (1, 2, 3)),
        squeeze=("se_module.fc1", "se_module.fc2"),
        classifier="last_linear",
        stride_in=0,
        caffe_pool=True,
    ),
    "pytorchcv": Layout(
        stem="features.init_block.conv.conv",
        stem_norm="features.init_block.conv.bn",
        block="features.stage{s}.unit{b}.",
        first=(1, 1, 1),
        convolution="body.conv{k}.conv",
        norm="body.conv{k}.bn",
        squeeze=("se.conv1", "se.conv2"),
        shortcut=("identity_conv.conv", "identity_conv.bn"),
        classifier="output",
    ),
    "paddle": Layout(
        stem="conv._conv",
        stem_norm="conv._batch_norm",
        deep_stem=tuple((f"conv1_{k}._conv", f"conv1_{k}._batch_norm") for k in (1, 2, 3)),
        block="bb_{s}_{b}.",
        first=(0, 0, 0),
        convolution="conv{k}._conv",
        norm="conv{k}._batch_norm",
        squeeze=("scale.squeeze", "scale.excitation"),
        shortcut=("short._conv", "short._batch_norm"),
        classifier="out",
        pool_where_strided=True,
        weights_of_linear="in,out",
        statistics=("_mean", "_variance"),
    ),
}
# Two code bases put everything but the classifier below one name, or name the stem of their CIFAR networks differently.
BACKBONE = "backbone."
PYTORCHCV_CIFAR_STEM = ("features.init_block.conv", "features.init_block.bn")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Features after the stem, each block and each stage, `(batch, channels, height, width)`, and the logits if any."""

    stem: torch.Tensor
    blocks: list[torch.Tensor]
    features: list[torch.Tensor]
    logits: torch.Tensor | None


class Reference:
    """One source's network over its own tensors; every operation is done in float64."""

    def __init__(self, source: str, tensors: Tensors) -> None:
        self.layout = LAYOUTS[source]
        self.tensors = tensors
        self.prefix = BACKBONE if any(name.startswith(BACKBONE) for name in tensors) else ""

    def __call__(self, images: torch.Tensor) -> Outputs:
        """Return what the network computes for `images`, `(batch, channels, height, width)`."""
        x, layout = self._stem(images.double()), self.layout
        stem, features, blocks = x, [], []
        for stage in range(layout.first[0], layout.first[0] + 4):
            block = layout.first[1]
            while self._has(prefix := layout.block.format(s=stage, b=block), layout.convolution, layout.first[2]):
                stride = 2 if block == layout.first[1] and stage > layout.first[0] else 1
                x = self._block(prefix, x, stride)
                blocks.append(x)
                block += 1
            if block > layout.first[1]:
                features.append(x)
        if f"{layout.classifier}.weight" not in self.tensors:
            return Outputs(stem=stem, blocks=blocks, features=features, logits=None)
        weight = self._as_out_in(self.tensors[f"{layout.classifier}.weight"].double())
        logits = F.linear(x.mean((2, 3)), weight, self.tensors[f"{layout.classifier}.bias"].double())
        return Outputs(stem=stem, blocks=blocks, features=features, logits=logits)

    def _get(self, name: str) -> torch.Tensor:
        return self.tensors[self.prefix + name].double()

    def _as_out_in(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.t() if self.layout.weights_of_linear == "in,out" else weight

    def _has(self, block: str, part: str, k: int = 0) -> bool:
        return f"{self.prefix}{block}{part.format(k=k)}.weight" in self.tensors

    def _conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = self._get(f"{name}.weight")
        # "Same" padding for odd kernels; as many groups as the input has channels for.
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, x.shape[1] // weight.shape[1])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance = (self._get(f"{name}.{part}")[:, None, None] for part in self.layout.statistics)
        weight, bias = (self._get(f"{name}.{part}")[:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        if self._has_deep_stem():
            for k, (convolution, norm) in enumerate(self.layout.deep_stem):
                x = self._norm(norm, self._conv(convolution, x, 2 if k == 0 else 1)).relu()
            return self._pool(x)
        is_cifars = self._has("", PYTORCHCV_CIFAR_STEM[0])
        stem, norm = PYTORCHCV_CIFAR_STEM if is_cifars else (self.layout.stem, self.layout.stem_norm)
        for_cifar = self._get(f"{stem}.weight").shape[2] == 3
        x = self._norm(norm, self._conv(stem, x, 1 if for_cifar else 2)).relu()
        return x if for_cifar else self._pool(x)

    def _has_deep_stem(self) -> bool:
        return len(self.layout.deep_stem) == 3 and self._has("", self.layout.deep_stem[2][0])

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        if self.layout.caffe_pool:
            return F.max_pool2d(x, 3, 2, padding=0, ceil_mode=True)
        return F.max_pool2d(x, 3, 2, padding=1)

    def _block(self, prefix: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        layout, first = self.layout, self.layout.first[2]
        count = 3 if self._has(prefix, layout.convolution, first + 2) else 2
        strided = layout.stride_in if count == 3 else 0
        if count == 3 and layout.caffe_pool and self._is_grouped(prefix):
            strided = 1  # of the Caffe networks only those without groups stride in the first convolution
        y = x
        for k in range(count):
            y = self._conv(prefix + layout.convolution.format(k=first + k), y, stride if k == strided else 1)
            y = self._norm(prefix + layout.norm.format(k=first + k), y)
            # timm's legacy basic blocks rectify after the last norm too; bottlenecks never do.
            y = y.relu() if k < count - 1 or (count == 2 and layout.caffe_pool) else y
        return (self._squeeze(prefix, y) + self._shortcut(prefix, x, stride)).relu()

    def _is_grouped(self, prefix: str) -> bool:
        names = (self.layout.convolution.format(k=self.layout.first[2] + k) for k in (0, 1))
        first, second = (self.tensors[f"{self.prefix}{prefix}{name}.weight"] for name in names)
        return first.shape[0] != second.shape[1]

    def _squeeze(self, prefix: str, y: torch.Tensor) -> torch.Tensor:
        if self.layout.squeeze is None or not self._has(prefix, self.layout.squeeze[0]):
            return y
        z = y.mean((2, 3))
        for k, name in enumerate(self.layout.squeeze):
            weight = self._as_out_in(self._get(f"{prefix}{name}.weight").flatten(1))
            bias = f"{prefix}{name}.bias"
            z = z @ weight.t() + (self._get(bias) if self.prefix + bias in self.tensors else 0.0)
            z = z.relu() if k == 0 else z.sigmoid()
        return y * z[:, :, None, None]

    def _shortcut(self, prefix: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        layout = self.layout
        pooled = layout.shortcut_after_pool
        if pooled and self._has(prefix, pooled[1]):
            x = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else x
            return self._norm(prefix + pooled[1], self._conv(prefix + pooled[0], x))
        if not self._has(prefix, layout.shortcut[0]):
            return x
        if layout.pool_where_strided and stride > 1 and self._has("", layout.deep_stem[0][0]):
            x, stride = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False), 1
        return self._norm(prefix + layout.shortcut[1], self._conv(prefix + layout.shortcut[0], x, stride))
