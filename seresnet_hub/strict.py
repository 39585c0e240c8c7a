"""Load a model's file as its config describes the network: every tensor, or nothing at all.

timm loads without strictness where the number of classes, the stem or only features are asked for; so a config that
contradicts its file, or switches the strictness off, leaves random layers without a word. Here the file's header is
compared with the network before that is built, and the loaded tensors with the file's afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.folder import CONFIG_NAME, WEIGHTS_NAME, read_json
from seresnet_hub.names import FOLDER, require_model_folder

# Arguments of timm's factory and its builder, which say nothing about a network: they name other files, or switch off
# what this module is for.
FACTORY_ARGUMENTS = frozenset(
    {"cache_dir", "checkpoint_path", "exportable", "model_name", "no_jit", "pretrained", "pretrained_cfg"}
    | {"pretrained_cfg_overlay", "scriptable", "kwargs_filter", "pretrained_strict", "pretrained_filter_fn"}
    | {"pretrained_model_args", "feature_cfg", "features_only", "model_cfg", "variant", "model_cls"}
)
FEATURE_ARGUMENTS = frozenset({"features_only", "out_indices", "feature_cls"})
Build = Callable[..., nn.Module]  # takes `pretrained` and timm's arguments
Header = dict[str, tuple[tuple[int, ...], bool]]  # of each tensor its shape, and whether its values are fractions


def load_folder(directory: Path, origin: object, **kwargs: Any) -> nn.Module:
    """Return the folder's model with timm's keyword arguments, its tensors being exactly those of its file.

    A new classifier (`num_classes`), none (0, `features_only`) and an adapted stem (`in_chans`) are timm's, where
    `kwargs` ask for them. `origin` is how errors call it. Errors: `InputError`.
    """
    require_model_folder(directory)
    check_folder(directory)

    def build(**given: Any) -> nn.Module:
        model: nn.Module = timm.create_model(f"{FOLDER}:{directory}", **given)
        return model

    return _load(build, directory / WEIGHTS_NAME, origin, kwargs)


def load_weights(name: str, weights: Path, **kwargs: Any) -> nn.Module:
    """Return timm's model `name` with a file of its weights, as strictly as `load_folder` does."""
    overlay = {**(kwargs.pop("pretrained_cfg_overlay", None) or {}), "file": str(weights)}
    return _load(
        lambda **given: timm.create_model(name, pretrained_cfg_overlay=overlay, **given), weights, name, kwargs
    )


def load_exactly(directory: Path) -> nn.Module:
    """Return the folder's model over the file's own bytes, tensor for tensor and without a copy; errors are one line.

    Stricter than `load_folder`: names are timm's own, and all values finite.
    """
    name = f"{FOLDER}:{directory}"
    try:
        check_folder(directory)
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False)
        wanted = model.state_dict()
        if any(buffer.is_meta for buffer_name, buffer in model.named_buffers() if buffer_name not in wanted):
            model = timm.create_model(name, pretrained=False)  # constants that no file has
        _check_classes(model)
        tensors = load_file(directory / WEIGHTS_NAME)
        model.load_state_dict(tensors, strict=True, assign=True)
    except Exception as error:  # timm, json and safetensors each raise their own
        raise InputError(f"{directory} does not load: {_line(error)}") from error
    for tensor_name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{directory / WEIGHTS_NAME}: tensor {tensor_name!r} has NaN or infinite values")
    return model.eval()


# --- the config -------------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_count(side) and side > 0 for side in value)


def _is_statistics(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_names(value: Any) -> bool:
    names = value.values() if isinstance(value, dict) else value
    return isinstance(value, (list, dict)) and all(map(_is_text, names))


# What each value of a config must be where it is there, and in words.
Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
TOP: Rules = {
    "architecture": (_is_text, "a name"),
    "num_classes": (_is_count, "a whole number"),
    "label_names": (_is_names, "a list of names"),
    "label_descriptions": (_is_table, "a table"),
    "model_args": (_is_table, "a table"),
    "pretrained_cfg": (_is_table, "a table"),
}
PRETRAINED_CFG: Rules = {
    "num_classes": (_is_count, "a whole number"),
    "input_size": (_is_size, "three positive whole numbers"),
    "test_input_size": (_is_size, "three positive whole numbers"),
    "mean": (_is_statistics, "a list of numbers"),
    "std": (_is_statistics, "a list of numbers"),
    "crop_pct": (_is_number, "a number"),
    "test_crop_pct": (_is_number, "a number"),
    "interpolation": (_is_text, "a name"),
    "crop_mode": (_is_text, "a name"),
    "label_names": (_is_names, "a list of names"),
    "label_descriptions": (_is_table, "a table"),
}


def check_folder(directory: Path) -> None:
    """Raise `InputError` unless the config names an architecture that timm has, and arguments of a network."""
    path = directory / CONFIG_NAME
    config = read_json(path)
    for rules, values in ((TOP, config), (PRETRAINED_CFG, config.get("pretrained_cfg", config))):
        for key in rules.keys() & values.keys() if isinstance(values, dict) else ():
            fits, words = rules[key]
            if not fits(values[key]) and (values[key] is not None or fits is _is_table):
                raise InputError(f"{path}: {key!r} is {str(values[key])[:60]!r}, expected {words}")
    architecture, arguments = config.get("architecture"), config.get("model_args", {})
    if not architecture:
        raise InputError(f"{path} names no architecture: it is no config of timm's")
    if not timm.is_model(architecture):
        raise InputError(
            f"{path}: timm {timm.__version__} has no architecture {architecture!r}: a newer timm may, or a package "
            "that has to be imported first"
        )
    if forbidden := sorted(FACTORY_ARGUMENTS & set(arguments)):
        raise InputError(f"{path}: 'model_args' has {forbidden[0]!r}, which says nothing about a network")
    layers = arguments.get("layers", [])
    # Each block has a tensor: a network of more blocks is not this file's, and millions of them are not even made.
    if (
        isinstance(layers, list)
        and all(map(_is_count, layers))
        and sum(layers) > len(_header(directory / WEIGHTS_NAME))
    ):
        raise InputError(f"{path}: 'layers' is {layers}, more blocks than {WEIGHTS_NAME} has tensors")


def _check_classes(network: nn.Module) -> None:
    """Raise `InputError` where config and network differ in the number of classes: timm drops the classifier then."""
    said, has = network.pretrained_cfg.get("num_classes"), getattr(network, "num_classes", None)  # type: ignore[union-attr, operator]
    if None not in (said, has) and said != has:
        raise InputError(f"{CONFIG_NAME} says {said} classes, and the network that it describes has {has}")


# --- the file ---------------------------------------------------------------------------------------------------------


def _load(build: Build, weights: Path, origin: object, kwargs: dict[str, Any]) -> nn.Module:
    header = _header(weights)
    plain = _without_memory(build, origin, {})
    try:
        _check_classes(plain)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    problem = next(_differences(header, _header_of(plain)), None)
    if problem is not None:
        # Of some architectures timm renames the tensors of published files. What it takes without exception, as the
        # file is, is whole; then it may also adapt it.
        try:
            model = build(pretrained=True)
        except Exception as error:  # timm and torch each raise their own
            raise InputError(f"{origin} has not the tensors of the network that it names: {problem}") from error
        return (build(pretrained=True, **kwargs) if kwargs else model).eval()
    if kwargs:
        _check_asked(build, plain, origin, header, kwargs)
    try:
        model = build(pretrained=True, **kwargs)
    except Exception as error:  # timm, safetensors and torch each raise their own
        raise InputError(f"cannot create model {str(origin)!r}: {_line(error)}") from error
    _check_loaded(model, weights, origin)
    return model.eval()


def _header(weights: Path) -> Header:
    try:
        with safe_open(weights, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (tuple(part.get_shape()), str(part.get_dtype()).startswith(("F", "BF")))
                for name, part in slices.items()
            }
    except Exception as error:  # safetensors raises its own
        raise InputError(f"{weights} is no whole safetensors file: {_line(error)}") from error


def _header_of(network: nn.Module) -> Header:
    state = network.state_dict()
    return {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in state.items()}


def _without_memory(build: Build, origin: object, kwargs: dict[str, Any]) -> nn.Module:
    """Return the network on the meta device, or for real where timm cannot make it there."""
    try:
        with torch.device("meta"):
            return build(pretrained=False, **kwargs)
    except Exception:  # timm's builders assert and raise as they please
        try:
            return build(pretrained=False, **kwargs)
        except Exception as error:
            raise InputError(f"cannot create model {str(origin)!r}: {_line(error)}") from error


def _differences(header: Header, wanted: Header, *, but: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield in words how a file differs from a network; timm too does without the step counts of old files' norms."""
    for name in {**wanted, **header}:
        if name in but or header.get(name) == wanted.get(name):
            continue
        if name not in header:
            if not name.endswith("num_batches_tracked"):
                yield f"tensor {name!r} is missing"
        elif name not in wanted:
            yield f"tensor {name!r} belongs to none of its layers"
        elif header[name][0] != wanted[name][0]:
            yield f"tensor {name!r} has the shape {header[name][0]}, expected {wanted[name][0]}"
        else:
            yield f"tensor {name!r} is of another type"


def _check_asked(build: Build, plain: nn.Module, origin: object, header: Header, kwargs: dict[str, Any]) -> None:
    """Raise `InputError` where the caller's arguments change other layers than classifier and stem."""
    _check_stem(plain, origin, header, kwargs.get("in_chans"))
    asked = _asked(plain, kwargs)
    network = _without_memory(build, origin, {k: v for k, v in kwargs.items() if k not in FEATURE_ARGUMENTS})
    for difference in _differences(header, _header_of(network), but=asked):
        raise InputError(f"{origin} has not the tensors of the network that {_text(kwargs)} asks for: {difference}")


def _asked(plain: nn.Module, kwargs: Mapping[str, Any]) -> frozenset[str]:
    """Return the tensors that may differ, since the caller's arguments change classifier or stem."""
    cfg: Mapping[str, Any] = plain.pretrained_cfg  # type: ignore[assignment]
    layers: list[str] = []
    if "num_classes" in kwargs or kwargs.get("features_only"):
        layers += _layers(cfg.get("classifier"))
    if "in_chans" in kwargs:
        layers += _layers(cfg.get("first_conv"))
    return frozenset(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


def _layers(named: Any) -> list[str]:
    return [named] if isinstance(named, str) else list(named or ())


def _check_stem(plain: nn.Module, origin: object, header: Header, in_chans: int | None) -> None:
    """Raise `InputError` where timm cannot adapt a stem, and would leave it random."""
    cfg: Mapping[str, Any] = plain.pretrained_cfg  # type: ignore[assignment]
    channels = cfg["input_size"][0]
    if in_chans in (None, channels):
        return
    known = {"base_chans": channels} if "base_chans" in inspect.signature(adapt_input_conv).parameters else {}
    for layer in _layers(cfg.get("first_conv")):
        try:
            adapt_input_conv(in_chans, torch.empty(header[f"{layer}.weight"][0], device="meta"), **known)
        except Exception as error:  # it asserts as well
            raise InputError(f"in_chans={in_chans}: the stem of {origin}, of {channels}, cannot be adapted") from error


def _check_loaded(model: nn.Module, weights: Path, origin: object) -> None:
    """Raise `InputError` where a tensor of the model has the shape of the file's and other values."""
    state = model.state_dict()
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            loaded = state.get(name)
            if loaded is None or loaded.is_meta or loaded.shape != tuple(file.get_slice(name).get_shape()):
                continue
            if not torch.equal(loaded.cpu(), file.get_tensor(name).to(loaded.dtype)):
                raise InputError(f"{origin}: timm {timm.__version__} did not take tensor {name!r} from the file")


def _text(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in kwargs.items())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
