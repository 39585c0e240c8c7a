"""Squeeze-and-excitation blocks that timm does not have: other places for the SE unit, other squeezes.

Every block takes the arguments of timm's `BasicBlock` or `Bottleneck` and has their tensor names, plus `se.fc1` and
`se.fc2`. Places and squeezes: arXiv 1709.01507v4, figure 5 and section 6 (ablation study).

This module is the public `seresnet_hub.blocks`, so it also holds the blocks of `training_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import SEModule, create_attn
from torch import nn

from seresnet_hub.models.branches import BasicBranch, BottleneckBranch
from seresnet_hub.models.training_blocks import SEBasicBlock, SEBottleneck, use_training_blocks

__all__ = [
    "MaxSqueezeSE", "SE3x3BasicBlock", "SE3x3Bottleneck", "SEBasicBlock", "SEBottleneck", "SEIdentityBasicBlock",
    "SEIdentityBottleneck", "SEInOneStage", "SEPostBasicBlock", "SEPostBottleneck", "SEPreBasicBlock",
    "SEPreBottleneck", "use_training_blocks",
]  # fmt: skip

AttentionLayer = Callable[..., nn.Module] | str | None


class MaxSqueezeSE(SEModule):  # type: ignore[misc]
    """timm's SE module with global max pooling as its squeeze (arXiv 1709.01507v4, section 6)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` `(batch, channels, height, width)`, each channel scaled by its gate."""
        squeezed = x.amax((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(squeezed)))))


class SEInOneStage:
    """An `attn_layer` for timm's blocks that builds SE where a block has `channels` outputs, and nothing elsewhere.

    In a ResNet the number of output channels tells the stage.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, channels: int, **kwargs: Any) -> nn.Module | None:
        return SEModule(channels, **kwargs) if channels == self.channels else None


# SE units outside timm's usual place can be narrower than timm's divisor of 8 allows for.
_se = partial(SEModule, rd_ratio=1 / 16, rd_divisor=1)


class _MovedSE:
    """What the blocks below share: timm's block without its SE unit, which each placement puts elsewhere.

    Comes before timm's block among the bases. (No annotations of attributes here: TorchScript would read them.)
    """

    def __init__(
        self: Any, inplanes: int, planes: int, *args: Any, attn_layer: AttentionLayer = None, **kwargs: Any
    ) -> None:
        super().__init__(inplanes, planes, *args, attn_layer=None, **kwargs)  # type: ignore[call-arg]
        factory = {key: kwargs[key] for key in ("device", "dtype") if key in kwargs}
        self.se = create_attn(attn_layer or _se, self.se_channels(inplanes, planes), **factory)

    def se_channels(self: Any, inplanes: int, planes: int) -> int:
        """Return the number of channels where the SE unit sits: the block's outputs, unless a placement says else."""
        return planes * self.expansion

    def shortcut(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the identity branch, projected where the block changes shape."""
        if self.downsample is not None:
            x = self.downsample(x)
        return x

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return act(branch(x) + shortcut(x))."""
        return self.activate(self.branch(x) + self.shortcut(x))


class _Pre(_MovedSE):
    def se_channels(self: Any, inplanes: int, planes: int) -> int:
        """Return the number of input channels."""
        return inplanes

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return act(branch(se(x)) + shortcut(x))."""
        return self.activate(self.branch(self.se(x)) + self.shortcut(x))


class _Post(_MovedSE):
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return se(act(branch(x) + shortcut(x)))."""
        return self.se(self.activate(self.branch(x) + self.shortcut(x)))


class _Identity(_MovedSE):
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return act(branch(x) + se(shortcut(x)))."""
        return self.activate(self.branch(x) + self.se(self.shortcut(x)))


class _Inside(_MovedSE):
    def inner(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, each channel scaled by its gate."""
        return self.se(x)


class SEPreBasicBlock(_Pre, BasicBranch):
    """SE on the input of the residual branch; the identity branch keeps the input as it is (SE-PRE)."""


class SEPostBasicBlock(_Post, BasicBranch):
    """SE on the block's output, after the sum and its activation (SE-POST)."""


class SEIdentityBasicBlock(_Identity, BasicBranch):
    """SE on the identity branch, after its projection where there is one (SE-Identity)."""


class SE3x3BasicBlock(_Inside, BasicBranch):
    """SE directly after the first 3 x 3 convolution and its norm, before the activation.

    The paper defines SE_3x3 for bottlenecks; a basic block has two 3 x 3 convolutions and its standard SE follows the
    second, so this one follows the first.
    """

    def se_channels(self, inplanes: int, planes: int) -> int:
        """Return the number of channels of the first convolution."""
        return self.conv1.out_channels


class SEPreBottleneck(_Pre, BottleneckBranch):
    """SE on the input of the residual branch; the identity branch keeps the input as it is (SE-PRE)."""


class SEPostBottleneck(_Post, BottleneckBranch):
    """SE on the block's output, after the sum and its activation (SE-POST)."""


class SEIdentityBottleneck(_Identity, BottleneckBranch):
    """SE on the identity branch, after its projection where there is one (SE-Identity)."""


class SE3x3Bottleneck(_Inside, BottleneckBranch):
    """SE directly after the 3 x 3 convolution and its norm, before the activation (SE_3x3).

    As in the standard block, the squeeze reads the norm's output; the narrower map makes a smaller SE unit.
    """

    def se_channels(self, inplanes: int, planes: int) -> int:
        """Return the width of the bottleneck."""
        return self.conv2.out_channels
