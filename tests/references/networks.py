"""Small networks that write checkpoints in the layouts of code bases that cannot be installed beside this one.

They are PyTorch modules whose children carry the names that those code bases use, and their own forward passes are what
a conversion is compared with. Facts from: PaddleClas (model_zoo/se_resnet_vd.py, se_resnext.py, se_resnext_vd.py),
moskomule/senet.pytorch (senet/se_resnet.py), mmpretrain (backbones/resnet.py, seresnet.py), timm (models/senet.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network seeded weights and norm statistics, such that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                fan_in = layer.weight[0].numel()
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
                if layer.bias is not None:
                    layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) * 0.5 + 0.5)
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
                layer.running_mean.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
                layer.running_var.copy_(torch.rand(layer.bias.shape, generator=generator) + 1)
                layer.num_batches_tracked.fill_(7)
    return network.eval()


class Gate(nn.Module):
    """A squeeze-and-excitation unit whose two layers are found under any names and of either kind."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.layers = (first, second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.layers
        z = x.mean((2, 3))
        if isinstance(first, nn.Conv2d):
            return x * torch.sigmoid(second(torch.relu(first(z[:, :, None, None]))))
        return x * torch.sigmoid(second(torch.relu(first(z))))[:, :, None, None]


def linear_gate(channels: int, width: int) -> nn.Module:
    """As moskomule's: `fc.0` and `fc.2`, linear and without bias."""
    first, second = nn.Linear(channels, width, bias=False), nn.Linear(width, channels, bias=False)
    gate = Gate(first, second)
    gate.fc = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())
    return gate


def wrapped_gate(channels: int, width: int) -> nn.Module:
    """As mmpretrain's: `conv1.conv` and `conv2.conv`."""
    first, second = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
    gate = Gate(first, second)
    gate.conv1, gate.conv2 = nn.Module(), nn.Module()
    gate.conv1.conv, gate.conv2.conv = first, second
    return gate


def paddle_gate(channels: int, width: int) -> nn.Module:
    """As PaddleClas's: `squeeze` and `excitation`, linear."""
    gate = Gate(nn.Linear(channels, width), nn.Linear(width, channels))
    gate.squeeze, gate.excitation = gate.layers
    return gate


class Block(nn.Module):
    """A residual block; `branch` is a list of (convolution, norm), `gate` and `shortcut` are modules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for k, (convolution, norm) in enumerate(self.branch):
            y = norm(convolution(y))
            y = torch.relu(y) if k < len(self.branch) - 1 else y
        return torch.relu(self.gate(y) + (self.projection(x) if self.projection else x))


def convolutions(inputs: int, planes: int, stride: int, groups: int, width: int, bottleneck: bool, caffe: bool):
    """Return the convolutions of one branch."""
    if not bottleneck:
        sizes = [(inputs, planes, 3, stride, 1), (planes, planes, 3, 1, 1)]
    else:
        first, second = (stride, 1) if caffe else (1, stride)
        sizes = [(inputs, width, 1, first, 1), (width, width, 3, second, groups), (width, planes * 4, 1, 1, 1)]
    return [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False) for i, o, k, s, g in sizes]


class Network(nn.Module):
    """Stem, four stages and a classifier; subclasses name their children."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.first(x))
        self.features = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            self.features.append(x)
        return self.last(x.mean((2, 3)))


def stages(
    make: Callable[[int, int, int, int, int], Block], layers: Sequence[int], inputs: int, bottleneck: bool
) -> list[list[Block]]:
    """Return the blocks of four stages; `make` takes (stage, block, input channels, planes, stride)."""
    made = []
    for stage, count in enumerate(layers):
        planes = 64 * 2**stage
        made.append([])
        for block in range(count):
            stride = 2 if block == 0 and stage > 0 else 1
            made[-1].append(make(stage, block, inputs, planes, stride))
            inputs = planes * (4 if bottleneck else 1)
    return made


class TorchStyle(Network):
    """The layout shared by moskomule and mmpretrain: `conv1`, `bn1`, `layer1.0.conv1`, `downsample.0`."""

    def __init__(
        self,
        layers: Sequence[int],
        *,
        gate: Callable[[int, int], nn.Module],
        gate_name: str,
        head: str,
        bottleneck: bool = True,
        groups: int = 1,
        group_width: int = 64,
        classes: int = 10,
        ratio: int = 16,
        caffe: bool = False,
        dilated: bool = False,
        deep: int = 0,
        avg_down: bool = False,
        eps: float = 1e-5,
        rounded: bool = True,
    ) -> None:
        super().__init__()
        if deep:
            sizes = [(3, deep), (deep, deep), (deep, 2 * deep)]
            self.stem = nn.Sequential()
            for k, (inputs, outputs) in enumerate(sizes):
                part = nn.Sequential()
                part.conv = nn.Conv2d(inputs, outputs, 3, 2 if k == 0 else 1, 1, bias=False)
                part.bn = nn.BatchNorm2d(outputs, eps)
                part.activate = nn.ReLU()
                self.stem.append(part)
            self.first, channels = self.stem, 2 * deep
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64, eps)
            self.first, channels = (lambda x: torch.relu(self.bn1(self.conv1(x)))), 64
        self.pool = nn.MaxPool2d(3, 2, 1)
        expansion = 4 if bottleneck else 1

        def make(stage: int, index: int, inputs: int, planes: int, stride: int) -> Block:
            block = Block()
            width = planes * group_width // 64 * groups
            branch = convolutions(inputs, planes, stride, groups, width, bottleneck, caffe)
            if dilated and stage == 3 and bottleneck:
                branch[1].dilation, branch[1].padding = (2, 2), (2, 2)
            block.branch = []
            for k, convolution in enumerate(branch, start=1):
                norm = nn.BatchNorm2d(convolution.out_channels, eps)
                setattr(block, f"conv{k}", convolution)
                setattr(block, f"bn{k}", norm)
                block.branch.append((convolution, norm))
            outputs = planes * expansion
            width = outputs // ratio
            block.gate = gate(outputs, max(8, (width + 4) // 8 * 8) if rounded else width)
            setattr(block, gate_name, block.gate)
            block.projection = None
            if stride != 1 or inputs != outputs:
                projection = nn.Sequential()
                if avg_down and stride != 1:
                    projection.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
                projection.append(nn.Conv2d(inputs, outputs, 1, 1 if avg_down else stride, bias=False))
                projection.append(nn.BatchNorm2d(outputs, eps))
                block.downsample = block.projection = projection
            return block

        self.stages = stages(make, layers, channels, bottleneck)
        for k, stage in enumerate(self.stages, start=1):
            setattr(self, f"layer{k}", nn.Sequential(*stage))
        self.last = nn.Linear(512 * expansion, classes)
        self.head_name = head

    def checkpoint(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the state dict as that code base writes it."""
        renamed = {}
        for name, tensor in self.state_dict().items():
            if ".gate." in name or ".projection." in name or name.startswith(("first.", "pool.")):
                continue
            is_head = name.startswith("last.")
            renamed[name.replace("last.", self.head_name + ".", 1) if is_head else prefix + name] = tensor.clone()
        return renamed

    def load(self, checkpoint: dict[str, torch.Tensor], prefix: str = "") -> None:
        """Take over the tensors of a checkpoint that this code base wrote; those it lacks stay as they are."""
        names = {
            (self.head_name + name[4:] if name.startswith("last.") else prefix + name): tensor
            for name, tensor in self.state_dict(keep_vars=True).items()
        }
        with torch.no_grad():
            for name, tensor in checkpoint.items():
                names[name].copy_(tensor)


def moskomule(layers: Sequence[int], **options: object) -> TorchStyle:
    """Return a network as moskomule/senet.pytorch makes them."""
    return TorchStyle(layers, gate=linear_gate, gate_name="se", head="fc", rounded=False, **options)


def mmpretrain(layers: Sequence[int], **options: object) -> TorchStyle:
    """Return a network as mmpretrain's SEResNet and SEResNeXt."""
    return TorchStyle(layers, gate=wrapped_gate, gate_name="se_layer", head="head.fc", **options)


class Paddle(Network):
    """PaddleClas's SE_ResNet_vd (`deep`=32), SE_ResNeXt_vd (`deep`=64, groups) and SE_ResNeXt (`deep`=0, groups)."""

    def __init__(
        self, layers: Sequence[int], *, deep: int = 32, groups: int = 1, classes: int = 10, bottleneck: bool = True
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.parts: dict[str, nn.Module] = {}
        if deep:
            sizes = [(3, deep), (deep, deep), (deep, 2 * deep)]
            stem = [
                (self._part(f"conv1_{k + 1}", nn.Conv2d(i, o, 3, 2 if k == 0 else 1, 1, bias=False)), nn.ReLU())
                for k, (i, o) in enumerate(sizes)
            ]
            self.first, channels = nn.Sequential(*(layer for pair in stem for layer in pair)), 2 * deep
        else:
            self.first = nn.Sequential(self._part("conv", nn.Conv2d(3, 64, 7, 2, 3, bias=False)), nn.ReLU())
            channels = 64

        def make(stage: int, index: int, inputs: int, planes: int, stride: int) -> Block:
            block, name = Block(), f"bb_{stage}_{index}"
            width = planes * 2 if groups > 1 else planes
            branch = convolutions(inputs, planes, stride, groups, width, bottleneck, caffe=False)
            block.branch = [
                (self._part(f"{name}.conv{k}", convolution), nn.Identity()) for k, convolution in enumerate(branch)
            ]
            outputs = planes * (4 if bottleneck else 1)
            block.gate = self.parts[f"{name}.scale"] = paddle_gate(outputs, outputs // 16)
            block.projection = None
            if index == 0:
                pooled = deep > 0 and not stage == index == 0
                projection = nn.Conv2d(inputs, outputs, 1, 1 if deep else stride, bias=False)
                block.projection = nn.Sequential(
                    nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if pooled else nn.Identity(),
                    self._part(f"{name}.short", projection),
                )
            return block

        self.stages = stages(make, layers, channels, bottleneck)
        self.all_blocks = nn.ModuleList(block for stage in self.stages for block in stage)
        self.all_branches = nn.ModuleList(part for block in self.all_blocks for pair in block.branch for part in pair)
        self.last = self.parts["out"] = nn.Linear(512 * (4 if bottleneck else 1), classes)

    def _part(self, name: str, convolution: nn.Conv2d) -> nn.Sequential:
        self.parts[name] = nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))
        return self.parts[name]

    def checkpoint(self) -> dict[str, np.ndarray]:
        """Return the arrays as `paddle.save(model.state_dict())` writes them: linear weights are (inputs, outputs)."""
        arrays: dict[str, np.ndarray] = {}
        for name, part in self.parts.items():
            if isinstance(part, nn.Sequential):
                convolution, norm = part
                tensors = {
                    "_conv.weight": convolution.weight, "_batch_norm.weight": norm.weight,
                    "_batch_norm.bias": norm.bias, "_batch_norm._mean": norm.running_mean,
                    "_batch_norm._variance": norm.running_var,
                }  # fmt: skip
            elif isinstance(part, Gate):
                tensors = {
                    "squeeze.weight": part.squeeze.weight.t(), "squeeze.bias": part.squeeze.bias,
                    "excitation.weight": part.excitation.weight.t(), "excitation.bias": part.excitation.bias,
                }  # fmt: skip
            else:
                tensors = {"weight": part.weight.t(), "bias": part.bias}
            arrays |= {f"{name}.{key}": value.detach().contiguous().numpy().copy() for key, value in tensors.items()}
        return arrays


class PytorchcvCifar(nn.Module):
    """pytorchcv's SE-ResNet-20 for CIFAR: no pool, three stages, SE widths of channels // 16."""

    def __init__(self, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.init_block = nn.Module()
        self.features.init_block.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.features.init_block.bn = nn.BatchNorm2d(16)
        inputs = 16
        for stage in range(3):
            planes = 16 * 2**stage
            units = nn.Sequential()
            for index in range(blocks):
                stride = 2 if index == 0 and stage > 0 else 1
                unit = Block()
                unit.body = nn.Module()
                unit.branch = []
                for k, (i, s) in enumerate(((inputs, stride), (planes, 1)), start=1):
                    part = nn.Module()
                    part.conv, part.bn = nn.Conv2d(i, planes, 3, s, 1, bias=False), nn.BatchNorm2d(planes)
                    setattr(unit.body, f"conv{k}", part)
                    unit.branch.append((part.conv, part.bn))
                first, second = nn.Conv2d(planes, planes // 16, 1), nn.Conv2d(planes // 16, planes, 1)
                unit.se = nn.Module()
                unit.se.conv1, unit.se.conv2 = first, second
                unit.gate = Gate(first, second)
                unit.projection = None
                if stride != 1 or inputs != planes:
                    conv, bn = nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
                    unit.identity_conv = nn.Module()
                    unit.identity_conv.conv, unit.identity_conv.bn = conv, bn
                    unit.projection = nn.Sequential(conv, bn)
                units.add_module(f"unit{index + 1}", unit)
                inputs = planes
            self.features.add_module(f"stage{stage + 1}", units)
        self.output = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.features.init_block.bn(self.features.init_block.conv(x)))
        for stage in (self.features.stage1, self.features.stage2, self.features.stage3):
            x = stage(x)
        return self.output(x.mean((2, 3)))

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """Return the state dict as pytorchcv writes it."""
        return {n: t.clone() for n, t in self.state_dict().items() if ".gate." not in n and ".projection." not in n}
