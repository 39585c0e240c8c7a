"""Load a model's file as its config describes the network: every tensor, or nothing at all.

timm loads without strictness where the number of classes, the stem or only features are asked for, in its older
versions also where a stem cannot be adapted; so a config that contradicts its file leaves random layers without a word.
Here the network gets the file's tensors, which are all of its own. Where the caller's arguments ask for another one,
timm makes it, and each of its tensors is then compared with the file's.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import nn

from seresnet_hub.checkpoints.safetensors_headers import Header, read_header
from seresnet_hub.errors import InputError, message_of
from seresnet_hub.files.model_folder import CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.models.build_limits import made_within
from seresnet_hub.models.config_checks import check_architecture
from seresnet_hub.models.names import require_model_folder, timms_name_of
from seresnet_hub.models.network_for_tensors import Build, Tensors, builder, over_tensors, without_memory

FEATURE_ARGUMENTS = frozenset({"features_only", "out_indices", "feature_cls"})
STEP_COUNT = "num_batches_tracked"  # of norms: old files have none, and nothing is computed with it
# How much more than its file a network may have until the differences are listed: a wrong number of classes, say.
MOST_PARAMETERS, MOST_VALUES, SLACK = 10, 4, 2**20


def load_folder(directory: Path, origin: object, kwargs: Mapping[str, Any], *, copy: bool = True) -> nn.Module:
    """Return the folder's model with timm's keyword arguments, its tensors being exactly those of its file.

    A new classifier (`num_classes`), none (0, `features_only`) and an adapted stem (`in_chans`) are timm's, where
    `kwargs` ask for them. `origin` is how errors call it. With `copy=False` the model lies over the file's own bytes,
    which must not change while it is used. Errors: `InputError`.
    """
    require_model_folder(directory)
    check_architecture(directory / CONFIG_NAME)
    return _load(builder(timms_name_of(directory), origin), directory / WEIGHTS_NAME, origin, kwargs, copy=copy)


def untrained_folder(directory: Path, origin: object, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the network that the folder's config describes, with random weights; its file, if any, is not read."""
    check_architecture(directory / CONFIG_NAME)
    build = builder(timms_name_of(directory), origin)
    made_within(lambda: without_memory(build, kwargs), what=f"{origin}: the network")
    return build(pretrained=False, **kwargs).eval()


def load_weights(name: str, weights: Path, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return timm's model `name` with a file of its weights, as strictly as `load_folder` does."""
    given = dict(kwargs)
    # Beside another file, `custom_load` of timm's own entry would have older versions read it as NumPy's format.
    overlay = {**(given.pop("pretrained_cfg_overlay", None) or {}), "file": str(weights), "custom_load": False}
    return _load(builder(name, name, pretrained_cfg_overlay=overlay), weights, name, given)


def _load(build: Build, weights: Path, origin: object, kwargs: Mapping[str, Any], *, copy: bool = True) -> nn.Module:
    header = read_header(weights)
    values = sum(math.prod(shape) for shape, _ in header.values())
    empty = made_within(
        lambda: without_memory(build, {}), what=f"{origin}: the network that it names",
        parameters=MOST_PARAMETERS * len(header), values=MOST_VALUES * values + SLACK,
    )  # fmt: skip
    _check_classes(empty, origin)
    wanted = _header(empty.state_dict())
    if difference := next(_differences(header, wanted), None):
        problem = f"{origin} has not the tensors of the network that it names: {difference}"
        if not _may_be_renamed(header, wanted):
            raise InputError(problem)
        tensors = _renamed(build, _read_finite(weights), problem)
    else:
        tensors = _read_finite(weights)
    if kwargs:
        return _as_asked(build, origin, tensors, empty, kwargs)
    if not copy:
        own_types = {name: tensor.dtype for name, tensor in empty.state_dict().items()}
        return over_tensors({name: tensor.to(own_types[name]) for name, tensor in tensors.items()}, empty, build)
    model = build(pretrained=False)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def _read_finite(weights: Path) -> Tensors:
    """Return a file's tensors. Errors: `InputError` where it is damaged, or has values that no weights have."""
    try:
        tensors = load_file(weights)
    except Exception as error:  # safetensors raises its own
        raise InputError(f"{weights} is no whole safetensors file: {message_of(error)}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise InputError(f"{weights}: tensor {name!r} has NaN or infinite values")
    return tensors


def _header(tensors: Tensors) -> Header:
    return {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in tensors.items()}


def _check_classes(network: nn.Module, origin: object) -> None:
    """Raise `InputError` where config and network differ in the number of classes: timm drops the classifier then."""
    said, has = network.pretrained_cfg.get("num_classes"), getattr(network, "num_classes", None)  # type: ignore[union-attr, operator]
    if None not in (said, has) and said != has:
        raise InputError(f"{origin}: {CONFIG_NAME} says {said} classes, and the network that it describes has {has}")


def _differences(header: Header, wanted: Header, *, but: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield in words how a file differs from a network, but for the tensors named and the step counts of norms."""
    for name in {**wanted, **header}:
        if name in but or header.get(name) == wanted.get(name):
            continue
        if name not in header:
            if not name.endswith(STEP_COUNT):
                yield f"tensor {name!r} is missing"
        elif name not in wanted:
            yield f"tensor {name!r} belongs to none of its layers"
        elif header[name][0] != wanted[name][0]:
            yield f"tensor {name!r} has the shape {header[name][0]}, expected {wanted[name][0]}"
        else:
            yield f"tensor {name!r} is of another type"


def _may_be_renamed(header: Header, wanted: Header) -> bool:
    """Return whether a file has a tensor of as many values for each of the network's, whatever they are called."""
    left = Counter(math.prod(shape) for shape, _ in header.values())
    left.subtract(math.prod(shape) for name, (shape, _) in wanted.items() if not name.endswith(STEP_COUNT))
    return min(left.values(), default=0) >= 0


def _renamed(build: Build, tensors: Tensors, problem: str) -> Tensors:
    """Return the file's tensors under the names of the network, where renaming is all that timm does to them.

    It knows the names that authors of some architectures gave to their tensors; it also resizes, adapts and leaves out.
    Errors: `InputError` with the text `problem`.
    """
    try:
        state: Tensors = build(pretrained=True).state_dict()
    except InputError as error:
        raise InputError(problem) from error
    left = Counter(map(_digest, tensors.values()))
    left.subtract(_digest(tensor) for name, tensor in state.items() if not name.endswith(STEP_COUNT))
    if min(left.values()) < 0:
        raise InputError(problem)
    return state


def _digest(tensor: torch.Tensor) -> bytes:
    """Return a hash of a tensor's values, in whatever type and shape they are kept."""
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).digest()


# --- what the caller's arguments change -------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """The tensors, by name, that are other ones because of the asked number of classes, or of channels."""

    classifier: frozenset[str]
    stem: frozenset[str]


def _as_asked(build: Build, origin: object, tensors: Tensors, plain: nn.Module, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the network that the caller's arguments ask for, which timm makes of the file.

    `plain` is the network without them. Errors: `InputError` where a tensor is not the file's, and no argument says so.
    """
    asked = _check_asked(build, origin, _header(tensors), kwargs)
    stems = asked.stem & tensors.keys()
    stem = {name: _adapted(tensors[name], kwargs["in_chans"], plain, origin) for name in stems}
    model = build(pretrained=True, **kwargs)
    _check_loaded(model, {**tensors, **stem}, asked, origin)
    return model.eval()


def _check_asked(build: Build, origin: object, header: Header, kwargs: Mapping[str, Any]) -> _Asked:
    """Return what the caller's arguments change; errors where that is more than the classifier and the stem."""
    given = {name: value for name, value in kwargs.items() if name not in FEATURE_ARGUMENTS}
    if kwargs.get("features_only"):
        given["num_classes"] = 0

    def header_without(argument: str) -> Header:
        rest = {name: value for name, value in given.items() if name != argument}
        return _header(without_memory(build, rest).state_dict())

    wanted = header_without("")

    def changed_by(argument: str) -> frozenset[str]:
        other = header_without(argument) if argument in given else wanted
        return frozenset(name for name in {**wanted, **other} if wanted.get(name) != other.get(name))

    asked = _Asked(classifier=changed_by("num_classes"), stem=changed_by("in_chans"))
    for difference in _differences(header, wanted, but=asked.classifier | asked.stem):
        raise InputError(f"{origin} has not the tensors of the network that {_text(kwargs)} asks for: {difference}")
    return asked


def _check_loaded(model: nn.Module, expected: Tensors, asked: _Asked, origin: object) -> None:
    """Raise `InputError` where a tensor of the model is neither what is expected nor a classifier that was asked for.

    In the networks that timm makes for features, dots in names become underscores, or another name comes first.
    """
    by_name = {_flat(name): tensor for name, tensor in expected.items()}
    fresh = {_flat(name) for name in asked.classifier}
    known = by_name.keys() | fresh
    for name, loaded in model.state_dict().items():
        key = _flat(name) if _flat(name) in known else _flat(name.partition(".")[2])
        if loaded.is_meta or name.endswith(STEP_COUNT) or key in fresh:
            continue
        if key not in by_name or not torch.equal(loaded.cpu(), by_name[key].to(loaded.dtype)):
            raise InputError(f"{origin}: timm {timm.__version__} did not take tensor {name!r} from the file")


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _adapted(stem: torch.Tensor, in_chans: int, plain: nn.Module, origin: object) -> torch.Tensor:
    """Return a stem as timm adapts it to other channels; errors where it cannot, and would leave it random."""
    channels = (plain.pretrained_cfg.get("input_size") or (3,))[0]  # type: ignore[union-attr, operator]
    known = {"base_chans": channels} if "base_chans" in inspect.signature(adapt_input_conv).parameters else {}
    try:
        adapted: torch.Tensor = adapt_input_conv(in_chans, stem, **known)
    except Exception as error:  # it asserts as well
        raise InputError(f"in_chans={in_chans}: the stem of {origin}, of {channels}, cannot be adapted") from error
    return adapted


def _text(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
