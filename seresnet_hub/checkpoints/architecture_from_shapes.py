"""Which architecture a set of tensors belongs to, read from the tensors' names and shapes.

Shapes do not show everything: strides, dilation, pools and the eps of a norm leave no trace in them. What is returned
here is the usual network of those shapes; equal outputs are shown elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.layers import make_divisible

from seresnet_hub.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The options of timm's ResNet that its tensors show, under the names of its arguments."""

    layers: tuple[int, ...]
    bottleneck: bool = True
    cardinality: int = 1
    base_width: int = 64
    stem_type: str = ""
    stem_width: int = 64
    avg_down: bool = False
    down_kernel_size: int = 1
    block_reduce_first: int = 1


_D: dict[str, Any] = {"stem_type": "deep", "stem_width": 32, "avg_down": True}
_T: dict[str, Any] = {"stem_type": "deep_tiered", "stem_width": 32, "avg_down": True}
_X4: dict[str, Any] = {"cardinality": 32, "base_width": 4}
_X8: dict[str, Any] = {"cardinality": 32, "base_width": 8}

# timm's SE-ResNets; source: timm/models/resnet.py.
ARCHITECTURES: dict[str, Shape] = {
    "seresnet18": Shape(layers=(2, 2, 2, 2), bottleneck=False),
    "seresnet34": Shape(layers=(3, 4, 6, 3), bottleneck=False),
    "seresnet50": Shape(layers=(3, 4, 6, 3)),
    "seresnet50t": Shape(layers=(3, 4, 6, 3), **_T),
    "seresnet101": Shape(layers=(3, 4, 23, 3)),
    "seresnet152": Shape(layers=(3, 8, 36, 3)),
    "seresnet152d": Shape(layers=(3, 8, 36, 3), **_D),
    "seresnet200d": Shape(layers=(3, 24, 36, 3), **_D),
    "seresnet269d": Shape(layers=(3, 30, 48, 8), **_D),
    "seresnext26d_32x4d": Shape(layers=(2, 2, 2, 2), **_X4, **_D),
    "seresnext26t_32x4d": Shape(layers=(2, 2, 2, 2), **_X4, **_T),
    "seresnext50_32x4d": Shape(layers=(3, 4, 6, 3), **_X4),
    "seresnext101_32x4d": Shape(layers=(3, 4, 23, 3), **_X4),
    "seresnext101_32x8d": Shape(layers=(3, 4, 23, 3), **_X8),
    "seresnext101d_32x8d": Shape(layers=(3, 4, 23, 3), **_X8, **_D),
    "seresnext101_64x4d": Shape(layers=(3, 4, 23, 3), cardinality=64, base_width=4),
    "senet154": Shape(
        layers=(3, 8, 36, 3), cardinality=64, base_width=4, stem_type="deep", stem_width=64,
        down_kernel_size=3, block_reduce_first=2,
    ),
}  # fmt: skip
# This package's SE-ResNet-50s with another reduction ratio; they take timm's arguments for the rest.
RATIO_ARCHITECTURES: dict[int, str] = {ratio: f"seresnet50_r{ratio}" for ratio in (2, 4, 8, 32)}

# timm's networks with the strides and the pool of the original Caffe models, by (layers, bottleneck, groups, deep
# stem); source: timm/models/senet.py.
LEGACY_ARCHITECTURES: dict[tuple[tuple[int, ...], bool, int, bool], str] = {
    ((2, 2, 2, 2), False, 1, False): "legacy_seresnet18",
    ((3, 4, 6, 3), False, 1, False): "legacy_seresnet34",
    ((3, 4, 6, 3), True, 1, False): "legacy_seresnet50",
    ((3, 4, 23, 3), True, 1, False): "legacy_seresnet101",
    ((3, 8, 36, 3), True, 1, False): "legacy_seresnet152",
    ((2, 2, 2, 2), True, 32, False): "legacy_seresnext26_32x4d",
    ((3, 4, 6, 3), True, 32, False): "legacy_seresnext50_32x4d",
    ((3, 4, 23, 3), True, 32, False): "legacy_seresnext101_32x4d",
    ((3, 8, 36, 3), True, 64, True): "legacy_senet154",
}
# This package's CIFAR networks, by (layers, bottleneck).
CIFAR_ARCHITECTURES: dict[tuple[tuple[int, ...], bool], str] = {
    ((3, 3, 3), False): "seresnet20_cifar",
    ((9, 9, 9), False): "seresnet56_cifar",
    ((18, 18, 18), False): "seresnet110_cifar",
    ((18, 18, 18), True): "seresnet164_cifar",
}
MAX_BLOCKS = 512
MAX_CHANNELS = 2**14  # more are no network's, and new or padded SE units would take their square in memory

Tensors = Mapping[str, torch.Tensor]


def _dimensions(tensors: Tensors, name: str, count: int) -> tuple[int, ...]:
    if name not in tensors:
        raise InputError(f"tensor {name!r} is missing, so the architecture cannot be told")
    shape = tuple(tensors[name].shape)
    if len(shape) != count or 0 in shape:
        raise InputError(f"tensor {name!r} has shape {shape}; {count} dimensions are needed")
    return shape


def _layers(tensors: Tensors) -> tuple[int, ...]:
    """Return the number of blocks in each stage; errors where the numbering has holes."""
    found: dict[int, set[int]] = {}
    for name in tensors:
        if match := re.match(r"layer([1-9])\.(\d{1,4})\.", name):
            found.setdefault(int(match.group(1)), set()).add(int(match.group(2)))
    counts = []
    for stage in range(1, max(found, default=0) + 1):
        blocks = found.get(stage, set())
        hole = next((block for block in range(MAX_BLOCKS) if block not in blocks), MAX_BLOCKS)
        if hole < len(blocks) or not blocks:
            raise InputError(f"the tensors of block 'layer{stage}.{hole}' are missing")
        counts.append(len(blocks))
    if not counts:
        raise InputError("there is no tensor of a block such as 'layer1.0.conv1.weight'")
    return tuple(counts)


def shape_of(tensors: Tensors) -> Shape:
    """Return what timm's names and these shapes say about a ResNet; errors name the tensor that does not fit."""
    layers = _layers(tensors)
    bottleneck = "layer1.0.conv3.weight" in tensors
    first_width, *_ = _dimensions(tensors, "layer1.0.conv1.weight", 4)
    width, group_width, *_ = _dimensions(tensors, "layer1.0.conv2.weight", 4)
    cardinality, rest = divmod(first_width, group_width)
    reduce_first, uneven = 1, width % first_width
    if bottleneck and not uneven and width != first_width:
        reduce_first = width // first_width
    if rest or (not bottleneck and cardinality != 1):
        raise InputError(f"'layer1.0.conv2.weight' has shape {tuple(tensors['layer1.0.conv2.weight'].shape)}")
    deep = "conv1.0.weight" in tensors
    stem_type, stem_width = "", 64
    if deep:
        first, *_ = _dimensions(tensors, "conv1.0.weight", 4)
        stem_width, *_ = _dimensions(tensors, "conv1.3.weight", 4)
        stem_type = "deep" if first == stem_width else "deep_tiered"
    second = "layer2.0.downsample."
    avg_down = f"{second}2.weight" in tensors
    convolution = f"{second}{1 if avg_down else 0}.weight"
    down_kernel = _dimensions(tensors, convolution, 4)[2] if convolution in tensors else 1
    return Shape(
        layers=layers,
        bottleneck=bottleneck,
        cardinality=cardinality,
        base_width=width // cardinality if bottleneck else 64,
        stem_type=stem_type,
        stem_width=stem_width,
        avg_down=avg_down,
        down_kernel_size=down_kernel,
        block_reduce_first=reduce_first,
    )


def _se_widths(tensors: Tensors) -> set[tuple[int, int]]:
    """Return the (channels, squeezed channels) of the SE units."""
    return {
        (tensor.shape[1], tensor.shape[0])
        for name, tensor in tensors.items()
        if re.fullmatch(r"layer\d\.\d+\.se\.fc1\.weight", name) and tensor.ndim == 4
    }


def default_se_width(channels: int, ratio: int = 16) -> int:
    """Return the squeezed width of timm's SE unit for `channels`: a multiple of 8."""
    return make_divisible(channels / ratio, 8, round_limit=0.0)


def pad_se_units(tensors: Tensors) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors with SE units as wide as timm's, and the names of those that were padded.

    A squeezed channel whose weights and bias are zero is zero after its ReLU, and adds exactly nothing. Only units that
    no architecture has at their own width are padded, and only where all of them are narrower than timm's.
    """
    completed = dict(tensors)
    widths = _se_widths(tensors)
    usual = all(channels <= MAX_CHANNELS and width <= default_se_width(channels) for channels, width in widths)
    if len(_layers(tensors)) != 4 or _ratios(widths) or not usual:
        return completed, []
    padded = []
    for name, tensor in tensors.items():
        if not (match := re.fullmatch(r"(layer\d\.\d+\.se\.)fc1\.weight", name)) or tensor.ndim != 4:
            continue
        unit = match.group(1)
        missing = default_se_width(tensor.shape[1]) - tensor.shape[0]
        bias, back = completed.get(f"{unit}fc1.bias"), completed.get(f"{unit}fc2.weight")
        if missing == 0 or bias is None or back is None or bias.ndim != 1 or back.ndim != 4:
            continue
        completed[name] = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
        completed[f"{unit}fc1.bias"] = torch.cat([bias, bias.new_zeros(missing)])
        completed[f"{unit}fc2.weight"] = torch.cat([back, back.new_zeros(back.shape[0], missing, *back.shape[2:])], 1)
        padded += [name, f"{unit}fc1.bias", f"{unit}fc2.weight"]
    return completed, padded


def _ratios(widths: set[tuple[int, int]]) -> list[int]:
    return [ratio for ratio in (16, *RATIO_ARCHITECTURES) if all(w == default_se_width(c, ratio) for c, w in widths)]


def find_architecture(tensors: Tensors) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of the architecture whose usual network has these tensors.

    The tensors are under timm's names, without the classifier's if there is none. Errors: `InputError` says what no
    architecture has.
    """
    shape = shape_of(tensors)
    if len(shape.layers) == 3:
        if (shape.layers, shape.bottleneck) not in CIFAR_ARCHITECTURES:
            known = ", ".join(CIFAR_ARCHITECTURES.values())
            raise InputError(f"a network for CIFAR with {shape.layers} blocks is none of {known}")
        return CIFAR_ARCHITECTURES[shape.layers, shape.bottleneck], {}
    if len(shape.layers) != 4:
        raise InputError(f"the network has {len(shape.layers)} stages; SE-ResNets have 4, those for CIFAR 3")
    widths = _se_widths(tensors)
    ratios = _ratios(widths)
    if not widths or not ratios or (ratios[0] != 16 and not shape.bottleneck):
        listed = ", ".join(f"{channels} to {width}" for channels, width in sorted(widths)) or "nothing"
        raise InputError(
            f"its SE units squeeze {listed} channels; the ratios that can be had are 16, and for bottlenecks "
            f"{', '.join(map(str, RATIO_ARCHITECTURES))}"
        )
    rows = ARCHITECTURES if ratios[0] == 16 else {RATIO_ARCHITECTURES[ratios[0]]: ARCHITECTURES["seresnet50"]}
    differing = {name: _difference(shape, row) for name, row in rows.items() if row.bottleneck == shape.bottleneck}
    # The right depth wins, then the fewest arguments, then the first row: those without a deep stem come first.
    best = min(differing, key=lambda name: ("layers" in differing[name], len(differing[name])))
    arguments = differing[best]
    if "layers" in arguments:
        arguments["layers"] = list(arguments["layers"])
    return best, arguments


def _difference(shape: Shape, row: Shape) -> dict[str, Any]:
    usual = asdict(row)
    return {option: value for option, value in asdict(shape).items() if value != usual[option]}


def find_legacy_architecture(tensors: Tensors) -> str:
    """Return timm's `legacy_*` architecture that has tensors of these names and shapes; errors say what none has."""
    layers = _layers({name: tensor for name, tensor in tensors.items() if not name.startswith("layer0.")})
    bottleneck = "layer1.0.conv3.weight" in tensors
    width, *_ = _dimensions(tensors, "layer1.0.conv1.weight", 4)
    _, group_width, *_ = _dimensions(tensors, "layer1.0.conv2.weight", 4)
    deep = "layer0.conv3.weight" in tensors
    key = (layers, bottleneck, width // group_width, deep)
    if key not in LEGACY_ARCHITECTURES:
        raise InputError(f"timm has no legacy SE-ResNet with {layers} blocks and {width // group_width} groups")
    return LEGACY_ARCHITECTURES[key]
