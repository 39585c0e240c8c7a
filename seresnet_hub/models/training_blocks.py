"""SE blocks that are faster to train: timm's blocks, in as many passes over memory as a block without SE.

A batch norm needs mean and variance of each channel; taken per image and channel they are the squeeze as well, since
the norm is affine per channel: the mean of a (x - mean) + b over an image is a (mean of the image - mean) + b. What is
left is one elementwise pass, act(gate (a (x - mean) + b) + shortcut). Backward likewise: two sums per image and channel
give every gradient but those of the maps, which one elementwise pass writes.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import SEModule
from timm.models.resnet import BasicBlock, Bottleneck
from torch import distributed, nn

from seresnet_hub.models.branches import BasicBranch, BottleneckBranch


class _SEInLastPass:
    """Same arguments, tensors and results as timm's block, to rounding; comes before a class of `branches`.

    It needs `torch.compile` to make passes of its operations; where not compiled, in eval mode, or with a norm or SE
    unit other than timm's usual ones it runs timm's own code.
    """

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output `(batch, channels, height, width)`."""
        convolution, norm = (getattr(self, name) for name in self.last_layers)
        if not _takes_sums(self, norm):
            return super().forward(x)  # type: ignore[misc]
        shortcut = x if self.downsample is None else self.downsample(x)
        x = convolution(self.features(x))
        return self.activate(_norm_scale_add(x, shortcut, norm, self.se, self.drop_path))


class SEBasicBlock(_SEInLastPass, BasicBranch):
    """timm's `BasicBlock`, whose SE unit costs no pass over memory of its own where training is compiled."""

    last_layers = ("conv2", "bn2")


class SEBottleneck(_SEInLastPass, BottleneckBranch):
    """timm's `Bottleneck`, whose SE unit costs no pass over memory of its own where training is compiled."""

    last_layers = ("conv3", "bn3")


def use_training_blocks(model: nn.Module) -> int:
    """Make timm's blocks with an SE unit those above, in place, weights and all; return their number."""
    count = 0
    for module in model.modules():
        for timms, ours in ((BasicBlock, SEBasicBlock), (Bottleneck, SEBottleneck)):
            if type(module) is timms and type(module.se) is SEModule:
                module.__class__ = ours  # they differ in nothing but their forward pass
                count += 1
    return count


class CompiledSyncBatchNorm(nn.SyncBatchNorm):
    """torch's `SyncBatchNorm`, whose exchange with the other processes is part of the graph where it is compiled.

    torch's own ends a graph before and after each norm. Where not compiled, this is torch's, which needs CUDA devices.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised `(batch, channels, height, width)`."""
        if not (torch.compiler.is_compiling() and self.training and self.affine):
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variances, means = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
        mean, variance = _batch_statistics(means, variances, x.shape[2] * x.shape[3], self)
        scale = (variance + self.eps).rsqrt() * self.weight[:, None, None]
        return ((wide - mean) * scale + self.bias[:, None, None]).to(x.dtype)


def use_compiled_sync_norms(model: nn.Module) -> int:
    """Make torch's `SyncBatchNorm`s the ones above, in place, weights and all; return their number."""
    norms = [module for module in model.modules() if type(module) is nn.SyncBatchNorm]
    for norm in norms:
        norm.__class__ = CompiledSyncBatchNorm  # they differ in nothing but their forward pass
    return len(norms)


def _takes_sums(block: Any, norm: Any) -> bool:
    """Say whether a block is compiled, in training, and made of what `_norm_scale_add` knows."""
    return (
        torch.compiler.is_compiling()
        and type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm, CompiledSyncBatchNorm)
        and norm.training
        and norm.affine
        and type(block.se) is SEModule
        and not block.se.add_maxpool
    )


class Moments(torch.autograd.Function):
    """Mean and variance `(batch, channels, 1, 1)` of each image and channel, of two sums taken in one pass.

    The values are taken from that of one pixel, so that the squares of a large mean cost no digits. Gradients are
    written out because what autograd derives needs more passes, here and below.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and variances."""
        origin = x[:1, :, x.shape[2] // 2, x.shape[3] // 2, None, None]
        moved = x - origin
        first, second = moved.mean((2, 3), keepdim=True), moved.square().mean((2, 3), keepdim=True)
        means = first + origin
        ctx.save_for_backward(x, means)
        return means, (second - first.square()).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        """Return the gradient by the map."""
        x, means = ctx.saved_tensors
        for_mean, for_variance = (grad / (x.shape[2] * x.shape[3]) for grad in grads)
        return for_mean + 2 * for_variance * (x - means)


class ScaleAdd(torch.autograd.Function):
    """(x - mean) scale + offset + shortcut, with the means of the images at hand for the gradients.

    All but `shortcut` have the type that is computed in. `shortcut`, the sum and their gradients have that of the
    network's maps, so that no wide copy of them is written or read between two blocks.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor,
        shortcut: torch.Tensor, means: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Return the sum; `scale` and `offset` are `(batch, channels, 1, 1)`, `mean` is `(1, channels, 1, 1)`."""
        ctx.save_for_backward(x, mean, scale, means)
        return _as_type((x - mean) * scale + offset + _as_type(shortcut, x.dtype), shortcut.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients, all but those of the maps from two sums for each image and channel."""
        (grad,) = grads
        x, mean, scale, means = ctx.saved_tensors
        wide = _as_type(grad, x.dtype)
        total = wide.sum((2, 3), keepdim=True)
        # Centred at the image: centred at the batch, as above, the map would be kept a second time for this alone.
        weighted = (wide * (x - means)).sum((2, 3), keepdim=True) + (means - mean) * total
        return wide * scale, -(total * scale).sum(0, keepdim=True), weighted, total, grad, None


def _as_type(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor in another type, itself where it has it.

    Within an autograd function that torch 2.11 compiles, `to` must not be the last operation where it changes
    nothing: all gradients are zero then, without a word.
    """
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _norm_scale_add(x: torch.Tensor, shortcut: torch.Tensor, norm: Any, se: Any, drop_path: Any) -> torch.Tensor:
    """Return drop_path(se(norm(x))) + shortcut, computed in float32 at least and rounded once to the type of `x`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    means, variances = Moments.apply(wide)
    mean, variance = _batch_statistics(means, variances, x.shape[2] * x.shape[3], norm)
    scale = (variance + norm.eps).rsqrt() * norm.weight[:, None, None]
    bias = norm.bias[:, None, None]
    squeezed = (means - mean) * scale + bias
    gate = se.gate(se.fc2(se.act(se.bn(se.fc1(squeezed.to(x.dtype)))))).to(wide.dtype)
    if drop_path is not None:
        gate = gate * drop_path(x.new_ones(len(x), 1, 1, 1))
    total: torch.Tensor = ScaleAdd.apply(wide, mean, gate * scale, gate * bias, shortcut.to(x.dtype), means.detach())
    return total


def _batch_statistics(
    means: torch.Tensor, variances: torch.Tensor, pixels: int, norm: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance `(1, channels, 1, 1)` of the batch from those of its images; move the running ones.

    `SyncBatchNorm` takes them of the batches of all processes.
    """
    count: Any = len(means) * pixels
    if count == 1 and type(norm) is nn.BatchNorm2d:
        raise ValueError("Expected more than 1 value per channel when training")  # torch's words
    mean = means.mean(0, keepdim=True)
    variance = (variances + (means - mean).square()).mean(0, keepdim=True)
    group = norm.process_group or distributed.group.WORLD if isinstance(norm, nn.SyncBatchNorm) else None
    if group is not None and distributed.get_world_size(group) > 1:
        # Its import takes longer than that of this package.
        from torch.distributed._functional_collectives import all_gather_tensor_autograd

        own = torch.cat((mean.flatten(), variance.flatten(), mean.new_full((1,), count)))
        parts = all_gather_tensor_autograd(own[None], 0, group)  # a row of each process
        counts = parts[:, -1:, None, None]
        shares = counts / counts.sum()
        own_means, own_variances = parts[:, :-1, None, None].chunk(2, dim=1)
        mean = (shares * own_means).sum(0, keepdim=True)
        variance = (shares * (own_variances + (own_means - mean).square())).sum(0, keepdim=True)
        count = counts.sum()
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            factor = 1 / norm.num_batches_tracked.to(mean.dtype) if norm.momentum is None else norm.momentum
            unbiased = variance * (count / (count - 1))
            for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                running.copy_((1 - factor) * running + factor * new.flatten())
    return mean, variance
