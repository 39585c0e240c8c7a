"""timm's residual blocks with names for the pieces of their forward pass, from which other blocks are put together."""

from __future__ import annotations

import torch
from timm.models.resnet import BasicBlock, Bottleneck


class BasicBranch(BasicBlock):  # type: ignore[misc]
    """timm's `BasicBlock`: act(branch(x) + shortcut), where a block built from it says what else happens."""

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """Return what follows the first 3 x 3 convolution and its norm; `x` itself, unless a block says else."""
        return x

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input of the branch's last convolution."""
        return self.aa(self.act1(self.drop_block(self.inner(self.bn1(self.conv1(x))))))

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """Return the residual branch, up to its last norm and stochastic depth."""
        x = self.bn2(self.conv2(self.features(x)))
        if self.drop_path is not None:
            x = self.drop_path(x)
        return x

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's last activation of `x`."""
        return self.act2(x)


class BottleneckBranch(Bottleneck):  # type: ignore[misc]
    """timm's `Bottleneck`: act(branch(x) + shortcut), where a block built from it says what else happens."""

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """Return what follows the 3 x 3 convolution and its norm; `x` itself, unless a block says else."""
        return x

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input of the branch's last convolution."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.aa(self.act2(self.drop_block(self.inner(self.bn2(self.conv2(x))))))

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """Return the residual branch, up to its last norm and stochastic depth."""
        x = self.bn3(self.conv3(self.features(x)))
        if self.drop_path is not None:
            x = self.drop_path(x)
        return x

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's last activation of `x`."""
        return self.act3(x)
