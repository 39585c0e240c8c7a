"""The code bases whose checkpoints can be converted, and how each names its tensors: one row of `SOURCES` each.

`renaming` says what stands in braces. Sources of the names: the code that writes the files (mmpretrain 1.2 and mmcls
0.x, timm, Cadene's pretrained-models, moskomule/senet.pytorch, pytorchcv, torchvision, PaddleClas).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from seresnet_hub.checkpoints.file_settings import Settings
from seresnet_hub.checkpoints.mmpretrain_config import mmpretrain_settings
from seresnet_hub.checkpoints.renaming import Source, Target, Tensors, pattern_of
from seresnet_hub.errors import InputError


def _kept(*names: str) -> dict[str, Target]:
    return {name: name for name in names}


# torchvision's names, which timm and others took over.
STEM = ("conv1.weight", "bn1.{part}")
BLOCKS = ("layer{s}.{b}.conv{k}.weight", "layer{s}.{b}.bn{k}.{part}", "layer{s}.{b}.downsample.{k}.{part}")
CLASSIFIER = "fc.{part}"


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t().contiguous()


def _as_convolution(tensor: torch.Tensor) -> torch.Tensor:
    """Return the weight of a linear layer as that of a 1 x 1 convolution."""
    return tensor[:, :, None, None]


def _transposed_as_convolution(tensor: torch.Tensor) -> torch.Tensor:
    return _as_convolution(_transposed(tensor))


def _paddles_norm(name: str, timms: str) -> dict[str, Target]:
    return {
        f"{name}._batch_norm._mean": f"{timms}.running_mean",
        f"{name}._batch_norm._variance": f"{timms}.running_var",
        f"{name}._batch_norm.{{part}}": f"{timms}.{{part}}",
    }


# --- what single names cannot say -------------------------------------------------------------------------------------


def _count_pool(tensors: Tensors, blocks: str) -> Tensors:
    """Number the layers of the shortcuts of `blocks` as timm does where the first layer is a pool."""
    return {
        re.sub(rf"^({blocks}\.downsample)\.([01])(?=\.)", lambda found: f"{found[1]}.{int(found[2]) + 1}", name): tensor
        for name, tensor in tensors.items()
    }


def _finish_mmpretrain(tensors: Tensors) -> Tensors:
    """With `avg_down`, mmpretrain's first stage has no pool, and timm's has an identity in its place."""
    has_pools = "layer2.0.downsample.2.weight" in tensors
    if not has_pools or any(name.startswith("layer1.0.downsample.2.") for name in tensors):
        return tensors
    return _count_pool(tensors, r"layer1\.0")


def _finish_paddle(tensors: Tensors) -> Tensors:
    """The `_vd` networks, which have a deep stem, have pools in their shortcuts."""
    return _count_pool(tensors, r"layer\d\.\d+") if "conv1.0.weight" in tensors else tensors


def _finish_moskomule(tensors: Tensors) -> Tensors:
    """Give the SE layers the biases that timm's have: zeros."""
    completed = dict(tensors)
    for name, tensor in tensors.items():
        if re.fullmatch(r"layer\d\.\d+\.se\.fc[12]\.weight", name):
            completed.setdefault(name.removesuffix("weight") + "bias", tensor.new_zeros(tensor.shape[0]))
    return completed


def _pytorchcv_settings(entries: Mapping[str, Any], file_name: str) -> Settings:
    """Tell pytorchcv's networks apart by their file's name: those that stride in the first convolution look the same.

    Errors: `InputError` where the name says that the network strides there.
    """
    strided = re.match(r"(se_?resnet(?:50|101|152|200)|seresnetbc\d+)(b?)(?=[-_.]|$)", file_name)
    if strided and not strided.group(2) and "cifar" not in file_name:
        raise InputError(
            f"pytorchcv's {strided.group(1)} strides in the first convolution of a block, and no architecture of timm "
            f"does so with this stem: only {strided.group(1)}b can be converted"
        )
    assumed = "" if strided else "that a bottleneck strides in its second convolution (pytorchcv's names with a b)"
    return Settings(assumed=assumed)


# --- the code bases ---------------------------------------------------------------------------------------------------

SOURCES: tuple[Source, ...] = (
    Source(
        name="mmpretrain",
        title="mmpretrain or mmcls",
        mark="{backbone}layer{s}.{b}.se_layer.conv{k}.conv.weight",
        names={
            **{f"{{backbone}}{name}": name for name in (*STEM, *BLOCKS)},
            "{backbone}layer{s}.{b}.se_layer.conv{k}.conv.{part}": "layer{s}.{b}.se.fc{k}.{part}",
            "{backbone}stem.0.conv.weight": "conv1.0.weight",
            "{backbone}stem.0.bn.{part}": "conv1.1.{part}",
            "{backbone}stem.1.conv.weight": "conv1.3.weight",
            "{backbone}stem.1.bn.{part}": "conv1.4.{part}",
            "{backbone}stem.2.conv.weight": "conv1.6.weight",
            "{backbone}stem.2.bn.{part}": "bn1.{part}",
            "head.fc.{part}": "fc.{part}",
            "ema_{word}": None,  # mmcls 0.x kept the weights beside their average under such names
            **dict.fromkeys(("data_preprocessor.mean", "data_preprocessor.std")),
            **dict.fromkeys(("img_normalizer.mean", "img_normalizer.std")),
        },
        finish=_finish_mmpretrain,
        read_settings=mmpretrain_settings,
        license="apache-2.0",
        published_at=("https://download.openmmlab.com/mmclassification/", "https://download.openmmlab.com/mmpretrain/"),
        url="https://github.com/open-mmlab/mmpretrain",
    ),
    Source(
        name="timm",
        title="timm",
        mark="layer{s}.{b}.se.fc{k}.weight",
        names=_kept("{name}"),
        preprocessing=None,
        license="apache-2.0",
        url="https://github.com/huggingface/pytorch-image-models",
    ),
    Source(
        name="cadene",
        title="Cadene's pretrained-models or timm's legacy networks",
        mark="layer{s}.{b}.se_module.fc{k}.weight",
        names=_kept(
            "layer0.conv{k}.weight",
            "layer0.bn{k}.{part}",
            *BLOCKS,
            "layer{s}.{b}.se_module.fc{k}.{part}",
            "last_linear.{part}",
        ),
        legacy=True,
        license="bsd-3-clause",
        published_at=("http://data.lip6.fr/cadene/pretrainedmodels/",),
        url="https://github.com/Cadene/pretrained-models.pytorch",
    ),
    Source(
        name="moskomule",
        title="moskomule/senet.pytorch",
        mark="layer{s}.{b}.se.fc.{k}.weight",
        names={
            **_kept(*STEM, *BLOCKS, CLASSIFIER),
            "layer{s}.{b}.se.fc.0.weight": ("layer{s}.{b}.se.fc1.weight", _as_convolution),
            "layer{s}.{b}.se.fc.2.weight": ("layer{s}.{b}.se.fc2.weight", _as_convolution),
        },
        finish=_finish_moskomule,
        license="mit",
        published_at=("https://github.com/moskomule/senet.pytorch/releases/",),
        url="https://github.com/moskomule/senet.pytorch",
    ),
    Source(
        name="pytorchcv",
        title="pytorchcv's SE-ResNet or SE-ResNeXt",
        mark="features.stage{s}.unit{b}.se.conv{k}.weight",
        names={
            "features.init_block.conv.conv.weight": "conv1.weight",
            "features.init_block.conv.bn.{part}": "bn1.{part}",
            "features.init_block.conv.weight": "conv1.weight",  # of the networks for CIFAR
            "features.init_block.bn.{part}": "bn1.{part}",
            "features.stage{s}.unit{b}.body.conv{k}.conv.weight": "layer{s}.{b-1}.conv{k}.weight",
            "features.stage{s}.unit{b}.body.conv{k}.bn.{part}": "layer{s}.{b-1}.bn{k}.{part}",
            "features.stage{s}.unit{b}.se.conv{k}.{part}": "layer{s}.{b-1}.se.fc{k}.{part}",
            "features.stage{s}.unit{b}.identity_conv.conv.weight": "layer{s}.{b-1}.downsample.0.weight",
            "features.stage{s}.unit{b}.identity_conv.bn.{part}": "layer{s}.{b-1}.downsample.1.{part}",
            "output.{part}": "fc.{part}",
        },
        read_settings=_pytorchcv_settings,
        license="mit",
        published_at=("https://github.com/osmr/imgclsmob/releases/",),
        url="https://github.com/osmr/imgclsmob",
    ),
    Source(
        name="paddle",
        title="PaddleClas's SE_ResNet_vd or SE_ResNeXt",
        mark="bb_{s}_{b}.scale.squeeze.weight",
        names={
            "conv._conv.weight": "conv1.weight",
            **_paddles_norm("conv", "bn1"),
            "conv1_1._conv.weight": "conv1.0.weight",
            **_paddles_norm("conv1_1", "conv1.1"),
            "conv1_2._conv.weight": "conv1.3.weight",
            **_paddles_norm("conv1_2", "conv1.4"),
            "conv1_3._conv.weight": "conv1.6.weight",
            **_paddles_norm("conv1_3", "bn1"),
            "bb_{s}_{b}.conv{k}._conv.weight": "layer{s+1}.{b}.conv{k+1}.weight",
            **_paddles_norm("bb_{s}_{b}.conv{k}", "layer{s+1}.{b}.bn{k+1}"),
            "bb_{s}_{b}.scale.squeeze.weight": ("layer{s+1}.{b}.se.fc1.weight", _transposed_as_convolution),
            "bb_{s}_{b}.scale.squeeze.bias": "layer{s+1}.{b}.se.fc1.bias",
            "bb_{s}_{b}.scale.excitation.weight": ("layer{s+1}.{b}.se.fc2.weight", _transposed_as_convolution),
            "bb_{s}_{b}.scale.excitation.bias": "layer{s+1}.{b}.se.fc2.bias",
            "bb_{s}_{b}.short._conv.weight": "layer{s+1}.{b}.downsample.0.weight",
            **_paddles_norm("bb_{s}_{b}.short", "layer{s+1}.{b}.downsample.1"),
            **{f"{name}.weight": ("fc.weight", _transposed) for name in ("out", "fc")},
            **{f"{name}.bias": "fc.bias" for name in ("out", "fc")},
        },
        finish=_finish_paddle,
        license="apache-2.0",
        published_at=("https://paddle-imagenet-models-name.bj.bcebos.com/",),
        url="https://github.com/PaddlePaddle/PaddleClas",
    ),
    Source(
        name="torchvision",
        title="torchvision's ResNet or ResNeXt",
        mark="",  # the names are timm's; what tells it is that there is no SE unit
        names=_kept(*STEM, *BLOCKS, CLASSIFIER),
        lacks_se=True,
        license="bsd-3-clause",
        published_at=("https://download.pytorch.org/models/",),
        url="https://github.com/pytorch/vision",
    ),
)


def find_source(tensors: Mapping[str, torch.Tensor], name: str | None = None) -> Source:
    """Return the source of that name, or the one whose mark is among the tensors' names.

    Errors: `InputError` lists the sources that there are.
    """
    by_name = {source.name: source for source in SOURCES}
    names = ", ".join(by_name)
    if name is not None:
        if name not in by_name:
            raise InputError(f"there is no source {name!r}; the sources are {names}")
        return by_name[name]
    marked = [source for source in SOURCES if source.mark and any(map(pattern_of(source.mark).fullmatch, tensors))]
    if not marked and "layer1.0.conv1.weight" in tensors:
        marked = [by_name["torchvision"]]
    if len(marked) != 1:
        reason = f"looks like {' and '.join(source.title for source in marked)}" if marked else "is of no known source"
        example = next(iter(tensors), "")
        raise InputError(f"a file with tensors such as {example[:80]!r} {reason}; name one with --source: {names}")
    return marked[0]
