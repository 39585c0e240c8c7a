"""Register this package's architectures with timm, and create any model by the name a person types."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SEModule
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import read_json
from seresnet_hub.files.model_folder import CONFIG_NAME, FACTS_KEY
from seresnet_hub.models import blocks
from seresnet_hub.models.names import parse_name
from seresnet_hub.models.pretrained import VerifiedFile
from seresnet_hub.models.published_weights import OWN_WEIGHTS, WEIGHTS, OwnWeights, Weights
from seresnet_hub.models.registry import add_entrypoint, add_tag
from seresnet_hub.models.variants import CIFAR_VARIANTS, PAPER_VARIANTS, WHERE, CifarVariant, PaperVariant

# Channel statistics of the CIFAR-10 training images in [0, 1], as commonly published.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


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
        taps = self.feature_info  # type: ignore[has-type]
        self.feature_info = [{**tap, "reduction": max(1, tap["reduction"] // 4)} for tap in taps]
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


# How an entrypoint gets its SE units: the block class, and timm's `attn_layer` (None: nothing, or the block's own SE).
Design = tuple[type[nn.Module], Callable[..., nn.Module | None] | None]

PLACED_BLOCKS: dict[str, dict[str, type[nn.Module]]] = {
    "basic": {
        "pre": blocks.SEPreBasicBlock,
        "post": blocks.SEPostBasicBlock,
        "identity": blocks.SEIdentityBasicBlock,
        "3x3": blocks.SE3x3BasicBlock,
    },
    "bottleneck": {
        "pre": blocks.SEPreBottleneck,
        "post": blocks.SEPostBottleneck,
        "identity": blocks.SEIdentityBottleneck,
        "3x3": blocks.SE3x3Bottleneck,
    },
}
TIMM_BLOCKS: dict[str, type[nn.Module]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


def _cifar_design(variant: CifarVariant) -> Design:
    if variant.placement is None:
        return TIMM_BLOCKS[variant.block], None
    if variant.placement == "standard":
        return TIMM_BLOCKS[variant.block], partial(SEModule, rd_ratio=1 / 16, rd_divisor=1)
    return PLACED_BLOCKS[variant.block][variant.placement], None


def _paper_design(variant: PaperVariant) -> Design:
    if variant.placement != "standard":
        return PLACED_BLOCKS["bottleneck"][variant.placement], None
    if variant.stage is not None:
        return Bottleneck, blocks.SEInOneStage(64 * 2 ** (variant.stage - 2) * Bottleneck.expansion)
    if variant.squeeze == "max":
        return Bottleneck, blocks.MaxSqueezeSE
    return Bottleneck, partial(SEModule, rd_ratio=1 / variant.ratio, gate_layer=variant.gate)


def _build(variant: CifarVariant | PaperVariant, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    arguments: dict[str, Any] = {}
    layers: tuple[int, ...]
    if isinstance(variant, CifarVariant):
        network, layers, (block, attention) = CifarResNet, (variant.blocks_per_stage,) * 3, _cifar_design(variant)
        arguments["feature_cfg"] = {"out_indices": (0, 1, 2, 3)}
    else:
        network, layers, (block, attention) = ResNet, (3, 4, 6, 3), _paper_design(variant)
    arguments |= {"block": block, "layers": layers, "block_args": {"attn_layer": attention} if attention else {}}
    model: nn.Module = build_model_with_cfg(network, variant.name, pretrained, **{**arguments, **kwargs})
    return model


def _cfg(variant: CifarVariant | PaperVariant) -> dict[str, Any]:
    cfg = {"url": "", "interpolation": "bilinear", "first_conv": "conv1", "classifier": "fc", "license": "apache-2.0"}
    if isinstance(variant, CifarVariant):
        return cfg | {
            "num_classes": variant.num_classes, "input_size": (3, 32, 32), "pool_size": (8, 8), "crop_pct": 1.0,
            "mean": CIFAR10_MEAN, "std": CIFAR10_STD,
            "paper_ids": "arXiv:1709.01507" if variant.placement else "arXiv:1512.03385",
        }  # fmt: skip
    return cfg | {
        "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "paper_ids": "arXiv:1709.01507",
    }  # fmt: skip


def tag_cfg(weights: Weights) -> PretrainedCfg:
    """Return what timm keeps of published weights."""
    return PretrainedCfg(
        file=VerifiedFile(weights), architecture=weights.architecture, tag=weights.tag, num_classes=1000,
        input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=weights.crop_pct, interpolation=weights.interpolation,
        mean=weights.mean, std=weights.std, first_conv="conv1", classifier="fc", license=weights.license,
        origin_url=weights.origin_url, paper_ids=weights.paper_ids,
    )  # fmt: skip


def _own_cfg(weights: OwnWeights) -> PretrainedCfg:
    config = read_json(weights.folder / CONFIG_NAME)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in config["pretrained_cfg"].items()}
    return PretrainedCfg(
        **given, file=VerifiedFile(weights), architecture=weights.architecture, tag=weights.tag,
        label_names=tuple(config["label_names"]), license=config[FACTS_KEY]["license"],
    )  # fmt: skip


VARIANTS: tuple[CifarVariant | PaperVariant, ...] = (*CIFAR_VARIANTS, *PAPER_VARIANTS)
# "untrained" is timm's tag for what has no weights; add_tag puts those that there are before it.
default_cfgs = generate_default_cfgs({f"{variant.name}.untrained": _cfg(variant) for variant in VARIANTS})


def _describe(variant: CifarVariant | PaperVariant) -> str:
    kind = "Residual network for 32 x 32 images" if isinstance(variant, CifarVariant) else "SE-ResNet-50"
    return f"{kind}, {WHERE[variant.placement]}; keyword arguments as for timm's ResNet."


for _variant in VARIANTS:
    add_entrypoint(__name__, _variant.name, _describe(_variant), partial(_build, _variant))
for _weights in WEIGHTS:
    add_tag(_weights.architecture, _weights.tag, tag_cfg(_weights))
for _own_weights in OWN_WEIGHTS:
    add_tag(_own_weights.architecture, _own_weights.tag, _own_cfg(_own_weights))


def list_models(filter: str | Sequence[str] = "") -> list[str]:
    """Return the names of the architectures that this package adds to timm, in the order of its tables.

    `filter` is a wildcard pattern, or several of which one has to match, as in `timm.list_models`; "" is all of them.
    """
    patterns = [filter] if isinstance(filter, str) else list(filter)
    names = [variant.name for variant in VARIANTS]
    return [name for name in names if not any(patterns) or any(fnmatch(name, pattern) for pattern in patterns)]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode for a while; each module gets its own mode back, so that frozen norms stay frozen."""
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):  # setting a mode takes longer than looking at it
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


def create(name: str | Path, *, pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """Create the model of a timm name with timm, in eval mode, its weights as timm takes them: `load` checks them.

    Errors: `InputError` where timm has no such model, its files cannot be loaded, or the name means a folder or a
    repository, whose config and weights only `load` checks.
    """
    meant = parse_name(name)
    if meant.folder is not None or meant.repo_id:
        raise InputError(f"create makes timm's own models: for {meant.name} use load, which checks what others wrote")
    try:
        model: nn.Module = timm.create_model(meant.name, pretrained=pretrained, **kwargs)
    except Exception as error:  # timm, safetensors, torch and huggingface_hub each raise their own
        raise InputError(f"cannot create model {str(name)!r}: {error or type(error).__name__}") from error
    return model.eval()
