"""Rewrite a ResNet for inference: norms folded into convolutions, and gates known before the convolutions they scale.

At inference a batch norm is affine per channel, so the convolution before it takes it in. Average pooling commutes with
a 1 x 1 convolution, mean(W3 h + b3) = W3 mean(h) + b3; so the squeeze of a bottleneck reads `h`, what goes into its
last convolution, with a quarter of the channels, and the excitation's first layer takes W3 in:
W1 (W3 m + b3) + b1 = (W1 W3) m + (W1 b3 + b1). What is left to do on the wide map is
act(shortcut + gate * (W3 h + b3)), one pass, into which a compiler may put the convolution itself.

In a basic block the last convolution is 3 x 3: the mean of its output needs the sums of `h` along its borders as well,
and `h` is as wide as the output, so nothing would be saved; there the norms alone are folded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from timm.layers import DropBlock2d, DropPath, SEModule
from timm.models import senet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from seresnet_hub.engines.exported_model import require_network
from seresnet_hub.errors import InputError
from seresnet_hub.models import blocks, training_blocks
from seresnet_hub.models.compiling import CompiledModel, Settings, model_device, require_compiler


@dataclass(frozen=True, kw_only=True)
class BlockFusion:
    """What became of one residual block.

    `fused`: norms folded, and the squeeze taken before the last convolution. `folded`: norms folded, the rest as it
    was. `left`: as it was, but for its projection. `reason` says why a block is not `fused`.
    """

    block: str
    outcome: Literal["fused", "folded", "left"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Names:
    """Under which names a class of bottlenecks keeps its activations and its SE unit."""

    activations: tuple[str, str, str]
    se: str


_TIMMS = _Names(activations=("act1", "act2", "act3"), se="se")
_LEGACY = _Names(activations=("relu", "relu", "relu"), se="se_module")
# Bottlenecks that are act(shortcut + se(bn3(conv3(h)))).
_BOTTLENECKS: dict[type[nn.Module], _Names] = {
    Bottleneck: _TIMMS,
    blocks.SEBottleneck: _TIMMS,
    senet.SEBottleneck: _LEGACY,
    senet.SEResNetBottleneck: _LEGACY,
    senet.SEResNeXtBottleneck: _LEGACY,
}
_BASIC_BLOCKS: frozenset[type[nn.Module]] = frozenset({BasicBlock, blocks.SEBasicBlock, senet.SEResNetBlock})
_OTHER_PLACEMENTS: frozenset[type[nn.Module]] = frozenset(
    {
        *(blocks.SEPreBasicBlock, blocks.SEPostBasicBlock, blocks.SEIdentityBasicBlock, blocks.SE3x3BasicBlock),
        *(blocks.SEPreBottleneck, blocks.SEPostBottleneck, blocks.SEIdentityBottleneck, blocks.SE3x3Bottleneck),
    }
)
_BLOCKS = (BasicBlock, Bottleneck, senet.Bottleneck, senet.SEResNetBlock)  # these and what derives from them
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, training_blocks.CompiledSyncBatchNorm, FrozenBatchNorm2d)
PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

Affine = tuple[torch.Tensor, torch.Tensor]  # weight and bias, float64 on the CPU


class Gate(nn.Module):
    """The excitation of a map: its mean, two layers, and the gate's function."""

    def __init__(self, fc1: nn.Module, act: nn.Module, fc2: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2, self.gate = fc1, act, fc2, gate

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Return the gate `(batch, channels, 1, 1)` for the convolution of `h` `(batch, width, height, width)`."""
        gate: torch.Tensor = self.gate(self.fc2(self.act(self.fc1(h.mean((2, 3), keepdim=True)))))
        return gate


class FusedBottleneck(nn.Module):
    """An SE bottleneck for inference: act(shortcut + gate(h) * conv3(h)), without norms."""

    def __init__(self, block: Any, activations: tuple[str, str, str], gate: Gate) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = block.conv1, block.conv2, block.conv3
        self.act1, self.act2, self.act3 = (getattr(block, name) for name in activations)
        self.aa = getattr(block, "aa", nn.Identity())
        self.gate = gate
        self.downsample = block.downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output `(batch, channels, height, width)`."""
        h = self.aa(self.act2(self.conv2(self.act1(self.conv1(x)))))
        gate = self.gate(h)
        branch = self.conv3(h)
        if self.downsample is not None and torch.compiler.is_compiling():
            # In this order a compiler for CPUs puts sum and activation into the projection's convolution.
            y: torch.Tensor = self.act3(branch * gate + self.downsample(x))
        else:
            shortcut = x if self.downsample is None else self.downsample(x)
            y = self.act3(torch.addcmul(shortcut, gate, branch))
        return y


def fuse(model: nn.Module, compile: bool | Settings = False) -> nn.Module:
    """Return a model for inference that computes what `model` does in eval mode, with fewer passes over memory.

    Takes timm's ResNets, its `legacy_*` and this package's; `model` is not changed. What became of each block is in the
    result's `fusion`, a tuple of `BlockFusion`. Sums are folded in float64 and rounded once to the model's precision.
    The result is in channels_last, where the last convolution is a matrix product; it takes images of either layout.
    The result keeps `forward_features`, `forward_head`, `num_classes` and `pretrained_cfg`; its weights are frozen and
    have names of their own. It is for inference: nothing in it makes gradients unless the images do, so call
    `images.requires_grad_()` first for class activation maps (Grad-CAM). Errors: `InputError` where the model has no
    block of a ResNet, has no weights, or is fused or compiled already.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"fuse takes a model, not {model!r}: create it first")
    require_network(model, "fuse")
    if hasattr(model, "_orig_mod"):
        raise InputError("the model is compiled already: fuse it first, then compile the result")
    if any(isinstance(module, FusedBottleneck) for module in model.modules()) or hasattr(model, "fusion"):
        raise InputError("the model is fused already")
    if not any(name and isinstance(module, _BLOCKS) for name, module in model.named_modules()):
        raise InputError(f"{type(model).__name__} has no blocks of a ResNet, so there is nothing to fuse")
    if any(tensor.is_meta for tensor in model.parameters()):
        raise InputError("the model is on the meta device and has no weights to fuse")
    settings: Any = "default" if compile is True else compile
    if settings:
        require_compiler(model_device(model), settings)
    fused: Any = copy.deepcopy(model).requires_grad_(False)
    for module in list(fused.modules()):
        if type(module) is nn.Sequential:
            names = list(module._modules)
            for first, second in pairwise(names):
                fold(module, first, second)
        elif isinstance(module, ResNet):
            fold(module, "conv1", "bn1")
            module.grad_checkpointing = False
    outcomes = []
    for name, module in list(fused.named_modules()):
        if isinstance(module, _BLOCKS):
            new, outcome = _fuse_block(name, module)
            outcomes.append(outcome)
            fused.set_submodule(name, new)
    fused.fusion = tuple(outcomes)
    fused = fused.eval().to(memory_format=torch.channels_last)
    return CompiledModel(fused, settings) if settings else fused


def _fuse_block(name: str, block: Any) -> tuple[nn.Module, BlockFusion]:
    names = _BOTTLENECKS.get(type(block))
    if names is None and type(block) not in _BASIC_BLOCKS | _OTHER_PLACEMENTS:
        reason = f"{type(block).__name__} is a block this package does not know"
        return block, BlockFusion(block=name, outcome="left", reason=reason)
    if any(_is_hooked(module) for module in block.modules()):
        return block, BlockFusion(block=name, outcome="left", reason="it has hooks, which would not be called")
    pairs = [pair for pair in PAIRS if hasattr(block, pair[0])]
    reason = _why_not(block, names)
    if not all(_folds(getattr(block, conv), getattr(block, norm)) for conv, norm in pairs):
        reason = "not all its norms are batch norms with statistics of their own"
    gate = _early_gate(block, names) if names and not reason else None
    folded = [fold(block, *pair) for pair in pairs]
    if names and gate:
        return FusedBottleneck(block, names.activations, gate), BlockFusion(block=name, outcome="fused")
    return block, BlockFusion(block=name, outcome="folded" if any(folded) else "left", reason=reason)


def _why_not(block: Any, names: _Names | None) -> str:
    """Return why the gate of a known block cannot be known before its last convolution runs, or nothing."""
    if type(block) in _BASIC_BLOCKS:
        return "a basic block: its last convolution is 3 x 3, with an input as wide as its output"
    if names is None:
        return "its SE unit is elsewhere than after the last norm"
    se, conv = getattr(block, names.se), block.conv3
    if se is None:
        return "it has no SE unit"
    if type(se) not in (SEModule, senet.SEModule):
        return f"its attention is {type(se).__name__}, not timm's SE module"
    if type(se) is SEModule and (se.add_maxpool or not (type(se.bn) is nn.Identity or _folds(se.fc1, se.bn))):
        return "its SE unit has a max squeeze, or a norm that cannot be folded"
    if (conv.kernel_size, conv.stride, conv.padding, conv.groups) != ((1, 1), (1, 1), (0, 0), 1):
        return "its last convolution is no 1 x 1 convolution of all channels"
    # In eval mode these are identities; anything else may not be.
    drops = (getattr(block, "drop_block", None), getattr(block, "drop_path", None))
    if any(type(drop) not in (type(None), nn.Identity, DropBlock2d, DropPath) for drop in drops):
        return "it has a stochastic layer that is not timm's"
    return ""


def _early_gate(block: Any, names: _Names) -> Gate:
    """Return the gate that reads the input of `conv3`; `conv3` is not folded yet."""
    se = getattr(block, names.se)
    weight, bias = _with_norm(block.conv3, block.bn3)
    if type(se) is senet.SEModule:
        (first, first_bias), act, function = _affine(se.fc1), se.relu, se.sigmoid
    else:
        (first, first_bias), act, function = _with_norm(se.fc1, se.bn), se.act, se.gate
    matrix = first.flatten(1) @ weight.flatten(1)  # (squeezed, width)
    _set(se.fc1, (matrix[:, :, None, None], first.flatten(1) @ bias + first_bias))
    se.fc1.in_channels = block.conv3.in_channels
    return Gate(se.fc1, act, se.fc2, function)


def fold(owner: nn.Module, convolution: str, norm: str) -> bool:
    """Fold a norm into the convolution before it, or into the last of a sequence; say whether that was possible."""
    conv: Any = getattr(owner, convolution)
    conv = conv[-1] if type(conv) is nn.Sequential else conv
    if not _folds(conv, getattr(owner, norm)):
        return False
    _set(conv, _with_norm(conv, getattr(owner, norm)))
    setattr(owner, norm, nn.Identity())
    return True


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _folds(conv: Any, norm: Any) -> bool:
    if _is_hooked(conv) or _is_hooked(norm):
        return False
    return type(conv) is nn.Conv2d and type(norm) in _NORMS and norm.running_mean is not None


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _affine(conv: Any) -> Affine:
    weight = _exact(conv.weight)
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else _exact(conv.bias)


def _with_norm(conv: Any, norm: Any) -> Affine:
    """Return weight and bias of a convolution with the norm after it."""
    weight, bias = _affine(conv)
    if type(norm) is nn.Identity:
        return weight, bias
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    bias = (bias - _exact(norm.running_mean)) * scale
    if norm.bias is not None:
        bias = bias + _exact(norm.bias)
    return weight * scale[:, None, None, None], bias


def _set(conv: nn.Conv2d, affine: Affine) -> None:
    device, dtype = conv.weight.device, conv.weight.dtype
    weight, bias = (nn.Parameter(tensor.to(device, dtype), requires_grad=False) for tensor in affine)
    conv.weight, conv.bias = weight, bias
