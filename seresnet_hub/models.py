"""Register this package's architectures with timm, and create any model by the name a person types."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import SEModule
from timm.models import build_model_with_cfg, generate_default_cfgs, model_entrypoint, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.variants import CIFAR_VARIANTS, CifarVariant

# Channel statistics of the CIFAR-10 training images in [0, 1], as commonly published.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

BLOCKS: dict[str, type[nn.Module]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class CifarResNet(ResNet):  # type: ignore[misc]
    """timm's ResNet with a 3 x 3 stride-1 stem, no stem pooling and three stages, for 32 x 32 images.

    Shapes: images `(batch, in_chans, 32, 32)`, features `(batch, 64 * expansion, 8, 8)`. State-dict names are timm's;
    there is no `layer4` tensor. `output_stride` may be 2, or 4 and above (the network's own).
    Source: arXiv 1512.03385, section 4.2, with projection shortcuts (option B).
    """

    def __init__(self, block: type[nn.Module], layers: tuple[int, ...], *, in_chans: int = 3, output_stride: int = 32,
                 zero_init_last: bool = True, **kwargs: Any) -> None:  # fmt: skip
        if output_stride not in (2, 4, 8, 16, 32):
            raise ValueError(f"output_stride={output_stride}: a CIFAR ResNet supports 2, 4, 8, 16 and 32")
        # timm counts strides from a stem of stride 4; here the stem has stride 1, so its 8 is our 2.
        super().__init__(
            block, layers, in_chans=in_chans, channels=(16, 32, 64), output_stride=8 if output_stride == 2 else 32,
            stem_type="deep", stem_width=8, zero_init_last=zero_init_last, **kwargs,
        )  # fmt: skip
        # The deep stem was only asked for because it lets timm size the first stage's input (2 * 8 = 16 channels).
        factory = {key: kwargs[key] for key in ("device", "dtype") if key in kwargs}
        self.conv1 = nn.Conv2d(in_chans, 16, kernel_size=3, padding=1, bias=False, **factory)
        self.maxpool = nn.Identity()
        self.layer4 = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = [
            {**info, "reduction": max(1, info["reduction"] // 4)}
            for info in self.feature_info
        ]  # fmt: skip
        self.init_weights(zero_init_last=zero_init_last)

    def forward_intermediates(self, x: torch.Tensor, indices: int | list[int] | None = None, **kwargs: Any) -> Any:
        """Return timm's intermediates; the valid indices are 0 (stem) to 3 (last stage)."""
        return super().forward_intermediates(x, _stage_indices(indices), **kwargs)

    def prune_intermediate_layers(self, indices: int | list[int] = 1, **kwargs: Any) -> list[int]:
        """Prune what the wanted intermediates do not need; the valid indices are 0 (stem) to 3 (last stage)."""
        pruned: list[int] = super().prune_intermediate_layers(_stage_indices(indices), **kwargs)
        return pruned


def _stage_indices(indices: int | list[int] | tuple[int, ...] | None) -> list[int]:
    """Resolve timm's feature indices against the four taps of a CIFAR network (timm's ResNet has five)."""
    taps = 4
    if indices is None:
        return list(range(taps))
    if isinstance(indices, int):
        if not 0 < indices <= taps:
            raise ValueError(f"last-n ({indices}) is out of range (1 to {taps})")
        return list(range(taps - indices, taps))
    resolved = [index + taps if index < 0 else index for index in indices]
    wrong = [index for index in resolved if not 0 <= index < taps]
    if wrong:
        raise ValueError(f"feature indices {wrong} are out of range (0 to {taps - 1})")
    return resolved


def _build_cifar(variant: CifarVariant, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    block_args = {"attn_layer": partial(SEModule, rd_ratio=1 / 16, rd_divisor=1)} if variant.se else {}
    layers = (variant.blocks_per_stage,) * 3
    arguments = dict(block=BLOCKS[variant.block], layers=layers, block_args=block_args, **kwargs)
    model: nn.Module = build_model_with_cfg(
        CifarResNet, variant.name, pretrained, feature_cfg={"out_indices": (0, 1, 2, 3)}, **arguments
    )
    return model


def _cifar_cfg(variant: CifarVariant) -> dict[str, Any]:
    return {
        "url": "", "num_classes": variant.num_classes, "input_size": (3, 32, 32), "pool_size": (8, 8),
        "crop_pct": 1.0, "interpolation": "bilinear", "mean": CIFAR10_MEAN, "std": CIFAR10_STD,
        "first_conv": "conv1", "classifier": "fc", "license": "apache-2.0",
        "paper_ids": "arXiv:1709.01507" if variant.se else "arXiv:1512.03385",
    }  # fmt: skip


default_cfgs = generate_default_cfgs({variant.name: _cifar_cfg(variant) for variant in CIFAR_VARIANTS})


def _register(name: str, build: Callable[..., nn.Module], doc: str) -> None:
    """Register one entrypoint under `name`, unless an earlier import of this module already did."""
    if timm.is_model(name):
        if getattr(model_entrypoint(name), "__module__", "") != __name__:
            raise ImportError(f"timm now has a model named {name!r}: seresnet_hub must not replace it; please update")
        return

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = doc
    register_model(entrypoint)


for _variant in CIFAR_VARIANTS:
    _register(
        _variant.name,
        partial(_build_cifar, _variant),
        f"{'SE-' if _variant.se else ''}ResNet for 32 x 32 images (He et al.); keyword arguments as for timm's ResNet.",
    )


def list_models() -> list[str]:
    """Return the names of the architectures that this package adds to timm."""
    return [variant.name for variant in CIFAR_VARIANTS]


def create(name: str, *, pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """Create the model that `name` means to timm, in eval mode: a timm name, `hf-hub:NS/NAME[@rev]` or `local-dir:DIR`.

    Raises `InputError` where there is no such model, folder or repository, or where its files cannot be loaded.
    """
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:  # timm, safetensors, torch and huggingface_hub each raise their own
        raise InputError(f"cannot create model {name!r}: {error or type(error).__name__}") from error
    return model.eval()
