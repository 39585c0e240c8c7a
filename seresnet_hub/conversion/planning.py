"""Decide what a checkpoint becomes: an architecture of timm's with arguments, and its tensors under timm's names."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from seresnet_hub.checkpoints.architecture_from_shapes import (
    MAX_CHANNELS,
    default_se_width,
    find_architecture,
    find_legacy_architecture,
    pad_se_units,
)
from seresnet_hub.checkpoints.renaming import Tensors, rename
from seresnet_hub.conversion.source_file import SourceFile
from seresnet_hub.errors import InputError
from seresnet_hub.models.build_limits import made_within
from seresnet_hub.models.config_checks import FACTORY_ARGUMENTS, is_arguments
from seresnet_hub.models.cost import Sizes, sizes_of
from seresnet_hub.models.create import list_models
from seresnet_hub.models.names import architecture_of
from seresnet_hub.models.network_for_tensors import builder, over_tensors, require_fit

MAX_CLASSES = 10**6
CLASSIFIER, LEGACY_CLASSIFIER = "fc", "last_linear"
FRESH_SEED = 0
ASSUMED_PLAIN = (
    "the file names no architecture: the usual network of its shapes is assumed, without what shapes do not show "
    "(anti-aliasing, dilation, other strides, another BN eps)"
)


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """What a checkpoint becomes.

    `network` is the architecture over `tensors`, which it shares. `dropped` names the source's tensors that were left
    out, `fresh` the tensors that it does not have, and `padded` those that were widened with zeros, to no effect.
    `assumed` says what the choice of the architecture rests on, where the file does not name it.
    """

    network: nn.Module
    sizes: Sizes
    architecture: str
    model_args: dict[str, Any]
    tensors: Tensors
    num_classes: int
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]
    padded: tuple[str, ...]
    assumed: str

    @property
    def is_for_cifar(self) -> bool:
        """Whether the network takes images of 32 x 32."""
        return self.architecture in list_models() and "_cifar" in self.architecture

    @property
    def has_new_classifier(self) -> bool:
        """Whether the classifier is not the source's."""
        return any(name.startswith((CLASSIFIER, LEGACY_CLASSIFIER)) for name in self.fresh)

    @property
    def has_new_se_units(self) -> bool:
        """Whether the source has no SE units."""
        return any(".se." in name for name in self.fresh)


def plan_network(file: SourceFile, *, model: str | None, num_classes: int | None) -> ConversionPlan:
    """Return what the file becomes; `model` and `num_classes` are a person's wishes, as for `convert`.

    Errors: `InputError` says why no network of timm's has these tensors.
    """
    stated = _stated_architecture(file)
    tensors, dropped = rename(file.source, file.tensors)
    fresh = _add_se_units(tensors) if file.source.lacks_se else []
    padded: list[str] = []
    if not file.source.legacy and model is None and stated is None:
        tensors, padded = pad_se_units(tensors)
    classes, left_out, drawn = _set_classes(tensors, file.source.legacy, num_classes)
    architecture, model_args = _choose_architecture(file, tensors, stated, model)
    channels = _input_channels(tensors)
    if channels != 3:
        model_args = {**model_args, "in_chans": channels}
    network, sizes = _network_over(tensors, architecture, model_args, classes)
    names_nothing = model is None and stated is None and file.published is None
    return ConversionPlan(
        network=network,
        sizes=sizes,
        architecture=architecture,
        model_args=model_args,
        tensors={name: tensors[name] for name in network.state_dict()},
        num_classes=classes,
        dropped=(*sorted((*dropped, *left_out)), *(f"{name}/*" for name in file.checkpoint.passed_over)),
        fresh=(*fresh, *drawn),
        padded=tuple(padded),
        assumed=ASSUMED_PLAIN if names_nothing and file.source.read_settings is None else "",
    )


# --- the architecture -------------------------------------------------------------------------------------------------


def _stated_architecture(file: SourceFile) -> tuple[str, dict[str, Any]] | None:
    """Return the architecture and its arguments that somebody names: files of timm's and this project's, and timm."""
    if file.config is not None:
        arguments = file.config.get("model_args", {})
        return file.config["architecture"], {k: v for k, v in arguments.items() if k != "num_classes"}
    name = file.checkpoint.entries.get("arch")
    if isinstance(name, str) and timm.is_model(name):
        return name.partition(".")[0], _training_arguments(file)  # without the tag of what training began with
    if file.published is not None and file.source.name == "timm":
        return file.published.architecture, {}
    return None


def _training_arguments(file: SourceFile) -> dict[str, Any]:
    """Return the arguments that timm's `train.py` gave the architecture, from the options it keeps in its files."""
    options = file.checkpoint.entries.get("args")
    options = options if isinstance(options, dict) else getattr(options, "state", None)
    if not isinstance(options, dict):
        return {}
    arguments = dict(options["model_kwargs"]) if isinstance(options.get("model_kwargs"), dict) else {}
    if options.get("gp"):
        arguments["global_pool"] = options["gp"]
    arguments.pop("num_classes", None)
    if not is_arguments(arguments):
        raise InputError(f"the file's args have absurd numbers for the architecture: {reprlib.repr(arguments)}")
    plain = (str, int, float, type(None))
    for name, value in arguments.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if not isinstance(name, str) or name in FACTORY_ARGUMENTS or not all(isinstance(item, plain) for item in items):
            raise InputError(
                f"the file's args give the architecture {name!r}, which cannot be written in a config.json"
            )
    return arguments


def _choose_architecture(
    file: SourceFile, tensors: Tensors, stated: tuple[str, dict[str, Any]] | None, model: str | None
) -> tuple[str, dict[str, Any]]:
    """Return the architecture that a person named, else the stated one of a file of timm's, else that of the shapes."""
    if model is not None:
        architecture = architecture_of(model)
        try:
            found, arguments = find_architecture(tensors)
        except InputError:
            return architecture, {}
        return architecture, arguments if found == architecture else {}
    if file.source.name == "timm" and stated is not None:
        return stated
    if file.source.legacy:
        return find_legacy_architecture(tensors), {}
    return find_architecture(tensors)


def _input_channels(tensors: Mapping[str, torch.Tensor]) -> int:
    for name in ("conv1.weight", "conv1.0.weight", "layer0.conv1.weight"):
        if name in tensors and tensors[name].ndim == 4 and 0 not in tensors[name].shape:
            return tensors[name].shape[1]
    raise InputError("there is no first convolution ('conv1.weight' or 'conv1.0.weight')")


def _network_over(
    tensors: Tensors, architecture: str, model_args: Mapping[str, Any], num_classes: int
) -> tuple[nn.Module, Sizes]:
    """Return the architecture over the tensors and what it costs, after adding the step counts that old files lack.

    They are zero in timm too when it loads such files. Errors: `InputError` where the tensors are not the network's.
    """
    if "." in architecture or not timm.is_model(architecture):
        raise InputError(f"timm has no architecture {architecture!r}; see timm.list_models('*se*')")
    what = f"{architecture} with {reprlib.repr(dict(model_args))}"
    build = builder(architecture, what, num_classes=num_classes, **model_args)
    with torch.device("meta"):
        empty = made_within(lambda: build(pretrained=False).eval(), what=what)
    wanted = empty.state_dict()
    for name in wanted:
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, torch.zeros((), dtype=torch.int64))
    require_fit(tensors, empty, what if model_args else architecture)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise InputError(f"tensor {name!r} is of type {tensor.dtype}; {wanted[name].dtype} is needed")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise InputError(f"{name!r} has negative variances: the file is damaged")
    _, *sides = empty.pretrained_cfg["input_size"]  # type: ignore[index]
    sizes = sizes_of(empty, (model_args.get("in_chans", 3), *sides))
    return over_tensors(tensors, empty, build), sizes


# --- tensors that the file does not have ------------------------------------------------------------------------------


def _set_classes(tensors: Tensors, legacy: bool, wanted: int | None) -> tuple[int, list[str], list[str]]:
    """Put a new classifier in if `wanted` is not the file's number of classes.

    Returns (classes, tensors removed, tensors added).
    """
    head = LEGACY_CLASSIFIER if legacy else CLASSIFIER
    names = weight, bias = f"{head}.weight", f"{head}.bias"
    if (weight in tensors) != (bias in tensors):
        raise InputError(f"the classifier has only one of {weight!r} and {bias!r}")
    found = tensors[weight].shape[0] if weight in tensors and tensors[weight].ndim == 2 else 0
    if wanted is None or wanted == found:
        return found, [], []
    if not 0 <= wanted <= MAX_CLASSES:
        raise InputError(f"--num-classes {wanted}: a number from 0 to {MAX_CLASSES} is needed")
    left_out = [*names] if found else []
    for name in left_out:
        del tensors[name]
    if not wanted:
        return 0, left_out, []
    # The features are as wide as the last norm of the last block.
    norms = [name for name in tensors if re.fullmatch(r"layer\d+\.\d+\.bn\d\.weight", name)]
    features = tensors[max(norms, key=_numbers)].numel() if norms else 0
    if not 0 < features <= MAX_CHANNELS:
        raise InputError(f"a classifier cannot be made for {features} features")
    generator = torch.Generator().manual_seed(FRESH_SEED)
    tensors[weight] = torch.randn(wanted, features, generator=generator) * 0.01
    tensors[bias] = torch.zeros(wanted)
    return wanted, left_out, [weight, bias]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def _add_se_units(tensors: Tensors) -> list[str]:
    """Add an SE unit to every block, initialised as timm does but from a fixed seed; return the new names."""
    if any(".se." in name for name in tensors):
        raise InputError("this file has SE units already: it is no source of an initialisation")
    generator = torch.Generator().manual_seed(FRESH_SEED)
    fresh = []
    for block in sorted({found.group() for name in tensors if (found := re.match(r"layer\d\.\d+\.", name))}):
        last = f"{block}bn3.weight" if f"{block}bn3.weight" in tensors else f"{block}bn2.weight"
        if last not in tensors:
            raise InputError(f"tensor {last!r} is missing")
        channels = tensors[last].numel()
        if not 0 < channels <= MAX_CHANNELS:
            raise InputError(f"tensor {last!r} has {channels} values: no network is that wide")
        width = default_se_width(channels)
        for layer, shape in (("fc1", (width, channels, 1, 1)), ("fc2", (channels, width, 1, 1))):
            spread = (2 / shape[0]) ** 0.5  # Kaiming, fan out
            tensors[f"{block}se.{layer}.weight"] = torch.randn(shape, generator=generator) * spread
            tensors[f"{block}se.{layer}.bias"] = torch.zeros(shape[0])
            fresh += [f"{block}se.{layer}.weight", f"{block}se.{layer}.bias"]
    return fresh
