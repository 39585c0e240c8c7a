"""Convert a checkpoint of another code base into a folder that timm loads, and show that it computes the same."""

from __future__ import annotations

import json
import os
import re
import reprlib
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import nn

from seresnet_hub.cards.card import card_of, published_result, render
from seresnet_hub.cards.texts import IMAGENET
from seresnet_hub.checkpoints.architecture_from_shapes import (
    ARCHITECTURES,
    CIFAR_ARCHITECTURES,
    LEGACY_ARCHITECTURES,
    MAX_CHANNELS,
    RATIO_ARCHITECTURES,
    Shape,
    default_se_width,
    find_architecture,
    find_legacy_architecture,
    pad_se_units,
)
from seresnet_hub.checkpoints.key_maps import (
    Preprocessing,
    Renamed,
    Settings,
    Source,
    differences,
    find_source,
    rename,
    unwrapped,
)
from seresnet_hub.checkpoints.reader import Checkpoint, read_checkpoint
from seresnet_hub.checkpoints.reading_budget import BUDGET
from seresnet_hub.conversion.provenance import (
    ASSUMED_PLAIN,
    assumed_preprocessing,
    describes,
    licence_of,
    published_file,
    stated_preprocessing,
    untrained,
)
from seresnet_hub.conversion.references import LAYOUTS, Outputs, Reference
from seresnet_hub.conversion.sidecar_files import FOLDER_SUFFIXES, config_beside, read_labels
from seresnet_hub.environment import package_version
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import (
    CARD_NAME,
    CONFIG_NAME,
    FACTS_KEY,
    OTHER_WEIGHTS_FACTS,
    WEIGHTS_NAME,
    timm_config,
    write_weights,
)
from seresnet_hub.files.writing import sha256_of, staging, write_json, write_text
from seresnet_hub.hub.client import licence_on_the_hub, require_licence_id, say
from seresnet_hub.hub.snapshots import sound, take_snapshot
from seresnet_hub.models.build_limits import BUILD_SECONDS, at_most
from seresnet_hub.models.config_checks import FACTORY_ARGUMENTS, is_arguments
from seresnet_hub.models.cost import Sizes, sizes_of
from seresnet_hub.models.create import list_models
from seresnet_hub.models.names import architecture_of
from seresnet_hub.models.strict_loading import LARGEST_NETWORK, MOST_TENSORS
from seresnet_hub.models.weights import WEIGHTS, Weights

# Two networks that do the same additions in another order differ by rounding; anything structural differs by far more.
TOLERANCE = 1e-10
MAX_CLASSES = 10**6
UNLISTED = ("initialised", "padded_with_zeros")  # provenance that is too long for a card
HEAD_NAMES = ("fc", "last_linear")
FRESH_SEED = 0
DOWNLOAD_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a checkpoint is: `path` on this machine, and its address as the reader of a card can use it.

    `repo_id` is its repository on the Hub, empty where it is elsewhere.
    """

    path: Path
    address: str
    repo_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a checkpoint becomes: an architecture with arguments, and its tensors under timm's names.

    `network` is the architecture without memory for its tensors. `dropped` names the source's tensors that were left
    out, `fresh` the tensors that it does not have, and `padded` those that were widened with zeros, to no effect.
    """

    network: nn.Module
    architecture: str
    model_args: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    num_classes: int
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]
    padded: tuple[str, ...]


def convert(
    src: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    source: str | None = None,
    num_classes: int | None = None,
    labels: str | Path | None = None,
    license: str | None = None,
    force: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """Convert the checkpoint `src` into the model folder `output`, and return what was made of it.

    `src` is a file, an `http(s)` address or a Hub file `NS/NAME:path`. `model` and `source` override what the file's
    tensors say, and are checked. `num_classes` other than the file's gives the model a new classifier (0: none).
    `labels` is a text file with one class name a line. `license` is the weights' licence, as the Hub's identifier;
    without it, they have the one that is known of this very file, or none. With `verify`, the model's stage features
    and logits are compared with the source's own network in float64. Errors: `InputError` says what cannot be converted
    exactly, and why.
    """
    target = Path(output)
    if os.path.lexists(target) and not force:
        raise InputError(f"{target} exists; choose another folder, or replace its model with --force")
    if os.path.exists(target) and not os.path.isdir(target):
        raise InputError(f"{target} is a file, not a folder")
    for name in (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME):
        if os.path.isdir(target / name):
            raise InputError(f"{target / name} is a folder, where a file is to be written")
    require_licence_id(license)
    names = read_labels(Path(labels)) if labels is not None else ()
    with _located(str(src)) as origin:
        checkpoint = read_checkpoint(origin.path)
        _check_name_against_hash(origin, checkpoint)
        sibling = config_beside(origin.path)
    raw = unwrapped(checkpoint.tensors)
    is_timms = sibling is not None and not sibling["architecture"].startswith("legacy_")
    kind = find_source(raw, source or ("timm" if is_timms else None))
    known = next((w for w in WEIGHTS if checkpoint.sha256.startswith(w.sha256_prefix)), None)
    published = published_file(checkpoint.sha256) if known is None else None
    said = _said_architecture(checkpoint, sibling)
    if said is None and published is not None and kind.name == "timm":
        said = published.architecture, {}
    settings = kind.settings(checkpoint.entries, origin.path.name) if kind.settings else Settings()
    if kind.settings is None and model is None and said is None and published is None:
        settings = replace(settings, assumed=ASSUMED_PLAIN)
    plan = _planned(kind, raw, checkpoint, said, model=model, num_classes=num_classes)
    _, *sides = plan.network.pretrained_cfg["input_size"]  # type: ignore[index]
    sizes = sizes_of(plan.network, (plan.model_args.get("in_chans", 3), *sides))
    network = _network(plan)
    _check_statistics(plan.tensors)
    of_these = sibling if sibling and describes(sibling, origin.path.name, checkpoint.sha256) else None
    licence = licence_of(license, kind, known, published, of_these, origin.address)
    if not licence and origin.repo_id:
        licence = licence_on_the_hub(origin.repo_id)
    preprocessing = settings.preprocessing or stated_preprocessing(published)
    config = _config(kind, network, plan, settings, preprocessing or kind.preprocessing, sibling, names)
    if preprocessing is None and known is None and (guessed := assumed_preprocessing(config, sibling)):
        settings = replace(settings, assumed="; ".join(filter(None, (settings.assumed, guessed))))
    config["pretrained_cfg"].pop("license", None)  # the config beside it may speak of other weights
    if licence:
        config["pretrained_cfg"]["license"] = licence
    provenance = _provenance(kind, origin, checkpoint, plan, settings, known, licence)
    config[FACTS_KEY] = _facts(kind, plan, provenance, known, of_these)
    with ThreadPoolExecutor(1) as prover:  # the proof computes while the weights are written
        proof = prover.submit(_verified, kind, raw, plan, network) if verify else None
        sha256, difference = _written(target, plan, config, provenance, sizes, proof)
    if plan.fresh:
        say(f"warning: {untrained(plan.fresh)}")
    if not licence:
        say("warning: no licence is known for these weights, so push.py will refuse them: add --license ID")
    return {
        "output": str(target),
        "source": kind.name,
        "architecture": plan.architecture,
        "model_args": plan.model_args,
        "tensors": len(plan.tensors),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "sha256_source": checkpoint.sha256,
        "sha256_weights": sha256,
        "max_abs_diff": difference,
        "dropped": list(plan.dropped),
        "fresh": list(plan.fresh),
        "assumed": settings.assumed,
    }


# --- finding and reading ----------------------------------------------------------------------------------------------


@contextmanager
def _located(src: str) -> Iterator[Origin]:
    """Yield where the checkpoint is, downloading it first if need be; a download is deleted afterwards."""
    if re.match(r"https?://", src):
        with tempfile.TemporaryDirectory() as scratch:
            name = re.sub(r"[^\w.-]", "_", urllib.request.url2pathname(src.split("?")[0]).rsplit("/", 1)[-1]) or "file"
            path = Path(scratch, name)
            _download(src, path)
            yield Origin(path=path, address=src)
        return
    path = Path(src)
    hub_file = re.fullmatch(r"([\w.-]+/[\w.-]+):(.+)", src)
    if hub_file and not os.path.exists(path):
        repo_id, name = hub_file.groups()
        # The network may be one that its tensors alone do not show.
        beside = (str(PurePosixPath(name).with_name(CONFIG_NAME)),) if name.endswith(FOLDER_SUFFIXES) else ()
        try:
            path = sound(take_snapshot(repo_id, None, names=(name,), optional=beside)).paths[name]
        except InputError as error:
            raise InputError(f"cannot get {src} from the Hub: {error}") from error
        yield Origin(path=path, address=f"https://huggingface.co/{repo_id}/blob/main/{name}", repo_id=repo_id)
        return
    if not os.path.isfile(path):
        reason = "is a folder: name the file in it" if os.path.isdir(path) else "no such file"
        reason = "is a pipe or a device: copy what it has into a file" if _is_special(path) else reason
        raise InputError(f"{src}: {reason}")
    yield Origin(path=path, address=_as_unicode(path.name))


def _is_special(path: Path) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _download(url: str, path: Path) -> None:
    """Fetch `url` into `path`, no more than a checkpoint can have."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, path.open("wb") as file:
            announced = answer.headers.get("Content-Length")
            while chunk := answer.read(DOWNLOAD_CHUNK):
                file.write(chunk)
                if file.tell() > BUDGET.file_bytes:
                    raise InputError(f"{url} has more than {BUDGET.file_bytes} bytes")
            if announced is not None and file.tell() != int(announced):
                raise InputError(f"{url} ended after {file.tell()} of {announced} bytes: try again")
    except (OSError, ValueError, HTTPException) as error:
        raise InputError(f"cannot download {url}: {error}") from error


def _check_name_against_hash(origin: Origin, checkpoint: Checkpoint) -> None:
    """OpenMMLab's file names end with a date and the first digits of the sha256: errors where they are other digits."""
    promised = re.search(r"_\d{8}-([0-9a-f]{8})\.pth$", origin.path.name)
    if promised and not checkpoint.sha256.startswith(promised.group(1)):
        raise InputError(
            f"{origin.path.name} has sha256 {checkpoint.sha256[:16]}…, but its name promises {promised.group(1)}…: "
            f"it is damaged or not the published file; get it again, or rename it"
        )


# --- planning ---------------------------------------------------------------------------------------------------------


def _planned(
    kind: Source,
    raw: Mapping[str, torch.Tensor],
    checkpoint: Checkpoint,
    said: tuple[str, dict[str, Any]] | None,
    *,
    model: str | None,
    num_classes: int | None,
) -> Plan:
    renamed = rename(kind, raw)
    if kind.name == "torchvision" and any(".se." in name for name in renamed.tensors):
        raise InputError("this file has SE units already: it is no source of an initialisation")
    fresh = _fresh_se_units(renamed) if kind.name == "torchvision" else []
    padded: list[str] = []
    if not kind.legacy and model is None and not said:
        renamed.tensors, padded = pad_se_units(renamed.tensors)
    head = HEAD_NAMES[1] if kind.legacy else HEAD_NAMES[0]
    classes = _classes(renamed, head, num_classes, fresh)
    if model is not None:
        architecture = architecture_of(model)
        model_args = _arguments_for(architecture, renamed)
    elif kind.name == "timm" and said:
        architecture, model_args = said
    elif kind.legacy:
        architecture, model_args = find_legacy_architecture(renamed.tensors), {}
    else:
        architecture, model_args = find_architecture(renamed.tensors)
    channels = _input_channels(renamed)
    if channels != 3:
        model_args = {**model_args, "in_chans": channels}
    # The order of the model's own state dict, so that equal tensors make equal bytes; step counts that old files lack
    # are zero in timm too when it loads them.
    network = _empty(architecture, model_args, classes)
    wanted = network.state_dict()
    for name in wanted:
        if name.endswith("num_batches_tracked"):
            renamed.tensors.setdefault(name, torch.zeros((), dtype=torch.int64))
    if problem := differences(renamed.tensors, wanted):
        raise InputError(f"the tensors do not fit {architecture} {model_args or ''}: {problem}")
    for name, tensor in renamed.tensors.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise InputError(f"tensor {name!r} is of type {tensor.dtype}; {wanted[name].dtype} is needed")
    elsewhere = (f"{name}/*" for name in checkpoint.passed_over)
    return Plan(
        network=network,
        architecture=architecture,
        model_args=model_args,
        tensors={name: renamed.tensors[name] for name in wanted},
        num_classes=classes,
        dropped=(*sorted(renamed.dropped), *elsewhere),
        fresh=tuple(fresh),
        padded=tuple(padded),
    )


def _said_architecture(checkpoint: Checkpoint, sibling: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """Return the architecture that timm's or this project's files name beside the weights."""
    if sibling is not None:
        arguments = sibling.get("model_args") or {}
        return str(sibling["architecture"]), {k: v for k, v in dict(arguments).items() if k != "num_classes"}
    said = checkpoint.entries.get("arch")
    if not isinstance(said, str) or not timm.is_model(said):
        return None
    return said.partition(".")[0], _training_arguments(checkpoint)  # without the tag of what training began with


def _training_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments that timm's `train.py` gave the architecture, from the options it keeps in its files."""
    options = checkpoint.entries.get("args")
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


def _arguments_for(model: str, renamed: Renamed) -> dict[str, Any]:
    """Return the arguments that the tensors ask of the architecture a person named: those found for it, or none."""
    try:
        found, arguments = find_architecture(renamed.tensors)
    except InputError:
        return {}
    return arguments if found == model else {}


def _input_channels(renamed: Renamed) -> int:
    for name in ("conv1.weight", "conv1.0.weight", "layer0.conv1.weight"):
        if name in renamed.tensors and renamed.tensors[name].ndim == 4 and 0 not in renamed.tensors[name].shape:
            return renamed.tensors[name].shape[1]
    raise InputError("there is no first convolution ('conv1.weight' or 'conv1.0.weight')")


def _classes(renamed: Renamed, head: str, wanted: int | None, fresh: list[str]) -> int:
    """Return the number of classes, after putting a new classifier in if `wanted` is not the file's number."""
    weight, bias = f"{head}.weight", f"{head}.bias"
    if (weight in renamed.tensors) != (bias in renamed.tensors):
        raise InputError(f"the classifier has only one of {weight!r} and {bias!r}")
    found = renamed.tensors[weight].shape[0] if weight in renamed.tensors and renamed.tensors[weight].ndim == 2 else 0
    if wanted is None or wanted == found:
        return found
    if not 0 <= wanted <= MAX_CLASSES:
        raise InputError(f"--num-classes {wanted}: a number from 0 to {MAX_CLASSES} is needed")
    if found:
        del renamed.tensors[weight], renamed.tensors[bias]
        renamed.dropped += [weight, bias]
    if wanted:
        # The features are as wide as the last norm of the last block.
        last = [name for name in renamed.tensors if re.fullmatch(r"layer\d+\.\d+\.bn\d\.weight", name)]
        features = renamed.tensors[max(last, key=_numbers)].numel() if last else 0
        if not 0 < features <= MAX_CHANNELS:
            raise InputError(f"a classifier cannot be made for {features} features")
        generator = torch.Generator().manual_seed(FRESH_SEED)
        renamed.tensors[weight] = torch.randn(wanted, features, generator=generator) * 0.01
        renamed.tensors[bias] = torch.zeros(wanted)
        fresh += [weight, bias]
    return wanted


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def _fresh_se_units(renamed: Renamed) -> list[str]:
    """Add an SE unit to every block, initialised as timm does but from a fixed seed; return the new names."""
    generator = torch.Generator().manual_seed(FRESH_SEED)
    fresh = []
    for block in sorted({match.group(0) for name in renamed.tensors if (match := re.match(r"layer\d\.\d+\.", name))}):
        last = "bn3" if f"{block}bn3.weight" in renamed.tensors else "bn2"
        if f"{block}{last}.weight" not in renamed.tensors:
            raise InputError(f"tensor '{block}{last}.weight' is missing")
        channels = renamed.tensors[f"{block}{last}.weight"].numel()
        if not 0 < channels <= MAX_CHANNELS:
            raise InputError(f"tensor '{block}{last}.weight' has {channels} values: no network is that wide")
        width = default_se_width(channels)
        for layer, shape in (("fc1", (width, channels, 1, 1)), ("fc2", (channels, width, 1, 1))):
            spread = (2 / shape[0]) ** 0.5  # Kaiming, fan out
            renamed.tensors[f"{block}se.{layer}.weight"] = torch.randn(shape, generator=generator) * spread
            renamed.tensors[f"{block}se.{layer}.bias"] = torch.zeros(shape[0])
            fresh += [f"{block}se.{layer}.weight", f"{block}se.{layer}.bias"]
    return fresh


def _empty(architecture: str, model_args: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Return the architecture without memory for its tensors; errors where timm has none of that name."""
    if "." in architecture or not timm.is_model(architecture):
        raise InputError(f"timm has no architecture {architecture!r}; see timm.list_models('*se*')")
    what = f"{architecture} with {reprlib.repr(dict(model_args))}"
    limits = at_most(parameters=MOST_TENSORS, values=LARGEST_NETWORK, seconds=BUILD_SECONDS, what=what)
    try:
        with limits, torch.device("meta"):
            return timm.create_model(architecture, pretrained=False, num_classes=num_classes, **model_args).eval()
    except InputError:
        raise
    except Exception as error:  # timm's builders assert and raise as they please
        raise InputError(f"cannot make {what}: {error}") from error


# --- proving ----------------------------------------------------------------------------------------------------------


def _network(plan: Plan) -> nn.Module:
    """Return the architecture over the plan's own tensors, which are not copied."""
    network = plan.network
    if any(buffer.is_meta for name, buffer in network.named_buffers() if name not in plan.tensors):
        # Constants that no file has, such as a blur kernel, exist only where the network is made for real.
        network = timm.create_model(
            plan.architecture, pretrained=False, num_classes=plan.num_classes, **plan.model_args
        )
    network.load_state_dict(plan.tensors, strict=True, assign=True)
    return network.eval()


def _check_statistics(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise InputError(f"{name!r} has negative variances: the file is damaged")


def _has_new_head(plan: Plan) -> bool:
    return any(name.startswith(HEAD_NAMES) for name in plan.fresh)


def _has_new_se_units(plan: Plan) -> bool:
    return any(".se." in name for name in plan.fresh)


def _verified(kind: Source, raw: Mapping[str, torch.Tensor], plan: Plan, network: nn.Module) -> float | None:
    """Return the largest difference from the source's own network, over stage features and logits, in float64.

    None where the source has no network to compare with. Errors: `InputError` where they differ or are not finite.
    """
    for_cifar = architecture_is_for_cifar(plan.architecture)
    # Odd, unequal sides: pools and strides that agree on even squares part here, and a small picture shows it as well.
    compared = kind.name in LAYOUTS and _has_reference(plan)
    size = (32, 32) if for_cifar else (33, 41) if compared else (64, 64)  # some of timm's networks need even sides
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, _input_channels(Renamed(tensors=plan.tensors)), *size, generator=generator) * 4 - 2
    initialised = kind.name == "torchvision"
    stem: list[torch.Tensor] = []
    first = network.layer1[0].register_forward_pre_hook(  # type: ignore[index, union-attr]
        lambda _layer, inputs: stem.append(inputs[0].clone())
    )
    features, logits = float64_outputs(network, images, without_se=initialised)
    first.remove()
    for values in (*features, logits):
        if not bool(torch.isfinite(values).all()):
            raise InputError("the converted network computes values that are not finite: its weights are damaged")
    if not compared:
        return None
    try:
        expected = Reference(kind.name, raw)(images)
    except KeyError as error:
        raise InputError(f"{kind.title}'s own network does not find {error.args[0]!r} in the file") from error
    pairs = [(stem[0], expected.stem), *zip(features, expected.features, strict=True)]
    if expected.logits is not None and _has_new_head(plan):
        expected = replace(expected, logits=None)  # the classifier is another one
    if expected.logits is not None:
        pairs.append((logits, expected.logits))
    # Weights far from any training can amplify rounding from block to block; then the blocks are compared one by one.
    if not all(_equal(*pair) for pair in pairs) and not (
        _equal(*pairs[0]) and _blocks_equal(network, expected, without_se=initialised)
    ):
        raise InputError(
            f"{plan.architecture} loads these tensors and computes something else (by {_distance(*pairs[-1]):.3g}): "
            f"the network of this file is not one that timm has"
        )
    return max(_distance(*pair) for pair in pairs)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return _distance(found, expected) <= TOLERANCE * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def _blocks_equal(network: nn.Module, expected: Outputs, *, without_se: bool) -> bool:
    """Return whether every block of `network` computes what the reference's does from the same input."""
    x = expected.stem
    stages = [getattr(network, f"layer{stage}", ()) for stage in range(1, 5)]
    blocks = [block for stage in stages for block in stage]
    with _in_float64(network, without_se=without_se):
        for block, wanted in zip(blocks, expected.blocks, strict=True):
            if not _equal(block(x.clone()), wanted):
                return False
            x = wanted
        return expected.logits is None or _equal(network.forward_head(x), expected.logits)  # type: ignore[operator]


def architecture_is_for_cifar(architecture: str) -> bool:
    """Return whether the architecture takes 32 x 32 images."""
    return architecture in list_models() and "_cifar" in architecture


def _has_reference(plan: Plan) -> bool:
    """Return whether the references know the network: a usual SE-ResNet, and no option that its shapes do not show."""
    known = {*ARCHITECTURES, *RATIO_ARCHITECTURES.values(), *LEGACY_ARCHITECTURES.values(), *CIFAR_ARCHITECTURES}
    shown = {*Shape.__dataclass_fields__, "in_chans"}
    return plan.architecture in known and set(plan.model_args) <= shown


@torch.no_grad()
def float64_outputs(
    network: nn.Module, images: torch.Tensor, *, without_se: bool = False
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return a timm network's stage features and logits for `images`, computed in float64.

    `without_se` opens every SE gate.
    """
    features: list[torch.Tensor] = []
    stages = [layer for name, layer in network.named_children() if re.fullmatch(r"layer[1-4]", name) and len(layer)]  # type: ignore[arg-type]
    hooks = [
        stage.register_forward_hook(lambda _layer, _inputs, result: features.append(result.clone())) for stage in stages
    ]
    try:
        with _in_float64(network, without_se=without_se):
            logits: torch.Tensor = network(images.double())
    finally:
        for hook in hooks:
            hook.remove()
    return features, logits


@contextmanager
def _in_float64(network: nn.Module, *, without_se: bool) -> Iterator[None]:
    """Let `network` compute in float64, widening one layer at a time: no second copy of the weights is needed."""
    narrow: dict[nn.Module, tuple[dict[str, Any], dict[str, Any]]] = {}

    def widen(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        narrow[layer] = dict(layer._parameters), dict(layer._buffers)
        tables: Any = (layer._parameters, layer._buffers)
        for values in tables:
            for name, value in values.items():
                if value is not None and value.is_floating_point():
                    values[name] = nn.Parameter(value.double()) if isinstance(value, nn.Parameter) else value.double()

    def restore(layer: nn.Module, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        parameters, buffers = narrow.pop(layer)
        layer._parameters.update(parameters)
        layer._buffers.update(buffers)

    def open_gate(layer: nn.Module, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> torch.Tensor:
        return inputs[0]

    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            hooks += [layer.register_forward_pre_hook(widen), layer.register_forward_hook(restore)]
        elif without_se and name.endswith(".se"):
            hooks.append(layer.register_forward_hook(open_gate))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- writing ----------------------------------------------------------------------------------------------------------


def _provenance(
    kind: Source,
    origin: Origin,
    checkpoint: Checkpoint,
    plan: Plan,
    settings: Settings,
    known: Weights | None,
    licence: str,
) -> dict[str, str]:
    """Return where the weights come from, as text; nothing in it depends on the time or the machine."""
    facts = {
        "source": kind.name,
        "source_project": kind.url,
        "source_url": known.url if known else origin.address,
        "source_sha256": checkpoint.sha256,
        "converter": package_version(),
        "license": licence,
        "architecture": plan.architecture,
        "model_args": json.dumps(plan.model_args, sort_keys=True) if plan.model_args else "",
        "recipe": known.source_name if known else settings.recipe,
        "published_top1": str(known.top1) if known else "",
        "published_top5": str(known.top5) if known else "",
        "assumed": settings.assumed,
        "initialised": ", ".join(plan.fresh),
        "padded_with_zeros": ", ".join(plan.padded),
    }
    return {name: value for name, value in facts.items() if value}


def _config(
    kind: Source,
    network: nn.Module,
    plan: Plan,
    settings: Settings,
    preprocessing: Preprocessing | None,
    sibling: Mapping[str, Any] | None,
    names: Sequence[str],
) -> dict[str, Any]:
    label_names = list(names or settings.label_names or (sibling or {}).get("label_names") or ())
    if names and len(names) != plan.num_classes:
        raise InputError(f"there are {len(names)} labels for {plan.num_classes} classes")
    if len(label_names) != plan.num_classes:
        label_names = []  # what the file calls its classes does not describe a new classifier
    cfg: dict[str, Any] = {"tag": kind.name, "num_classes": plan.num_classes}
    if sibling is not None:
        kept = dict(sibling.get("pretrained_cfg") or {})
        cfg = {**{k: v for k, v in kept.items() if k not in ("num_classes", "architecture")}, **cfg}
    elif preprocessing is not None and not architecture_is_for_cifar(plan.architecture):
        cfg |= {
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": "center",
            "input_size": preprocessing.input_size,
        }
    # timm's entry for the architecture is that of other weights.
    cfg = {**dict.fromkeys(OTHER_WEIGHTS_FACTS), **cfg}
    config = timm_config(network, pretrained_cfg=cfg, model_args=plan.model_args, label_names=label_names)
    readable: dict[str, Any] = json.loads(_as_unicode(json.dumps(config, ensure_ascii=False)))
    return readable


def _as_unicode(text: str) -> str:
    """Return `text` with a question mark for what UTF-8 cannot write, such as half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _facts(
    kind: Source,
    plan: Plan,
    provenance: Mapping[str, str],
    known: Weights | None,
    sibling: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what the card says of the weights, besides their proof and their hash."""
    notes = []
    if plan.fresh:
        notes.append(f"{untrained(plan.fresh)}.")
    if "assumed" in provenance:
        notes.append(f"**Assumed:** {provenance['assumed']}.")
    stated = (sibling or {}).get(FACTS_KEY)
    listed = {name: text for name, text in provenance.items() if name not in UNLISTED}
    # The same weights in another wrapping: what was said of them holds.
    if isinstance(stated, dict) and {"title", "summary"} <= stated.keys() and not plan.fresh:
        return {
            **stated, "license": provenance.get("license", ""), "notes": [*stated.get("notes", ()), *notes],
            "provenance": {**stated.get("provenance", {}), **listed},
        }  # fmt: skip
    return {
        "title": known.name if known else f"{plan.architecture}, converted from {kind.name}",
        "summary": f"`{plan.architecture}` with weights converted from {kind.title}.",
        "license": provenance.get("license", ""),
        "datasets": [IMAGENET] if known else [],
        "results": [asdict(published_result(known))] if known and not plan.fresh else [],
        "notes": notes,
        "papers": [known.paper_ids] if known else [],
        "provenance": listed,
    }


def _proof_line(difference: float | None, plan: Plan) -> str:
    if difference is None:
        return "The converted network was not compared with the source's own."
    subject = "Without its new SE units the converted network" if _has_new_se_units(plan) else "The converted network"
    compared = "stage features and logits" if plan.num_classes and not _has_new_head(plan) else "stage features"
    return f"{subject} was compared with the source's own in float64: {compared} differ by at most {difference:.1g}."


def _written(
    target: Path,
    plan: Plan,
    config: Mapping[str, Any],
    provenance: Mapping[str, str],
    sizes: Sizes,
    proof: Future[float | None] | None,
) -> tuple[str, float | None]:
    """Write the folder beside its place, and put it there when it reads back well and the proof is done.

    Return the weights' sha256 and the proof's result.
    """
    created = [folder for folder in Path(os.path.abspath(target)).parents if not os.path.lexists(folder)]
    try:
        with staging(target, (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME)) as staged:
            write_weights(staged, plan.tensors, provenance)
            with ThreadPoolExecutor(1) as hasher:
                digest = hasher.submit(sha256_of, staged / WEIGHTS_NAME)
                _check_round_trip(staged / WEIGHTS_NAME, plan.tensors)
                sha256 = digest.result()
            difference = proof.result() if proof else None
            facts = config[FACTS_KEY]
            summary = f"{facts['summary']} {_proof_line(difference, plan)}"
            described = {**config, FACTS_KEY: {**facts, "summary": summary, "sha256": {WEIGHTS_NAME: sha256}}}
            write_json(staged / CONFIG_NAME, described)
            card = card_of(described, sizes, needs_plugin=plan.architecture in list_models())
            write_text(staged / CARD_NAME, render(card))
    except InputError:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        raise
    return sha256, difference


def _check_round_trip(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        same = set(file.keys()) == set(tensors) and all(
            torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items()
        )
    if not same:
        raise InputError(f"the disk under {path.parent.parent} does not give back what was written to it")
