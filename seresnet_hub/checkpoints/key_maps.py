"""The code bases whose checkpoints can be converted: how each names its tensors, and what its files say about them.

One row of `SOURCES` each: adding a code base is adding a row. Sources of the names: the code that writes the files
(mmpretrain 1.2 and mmcls 0.x, timm, Cadene's pretrained-models, moskomule/senet.pytorch, pytorchcv, torchvision,
PaddleClas).
"""

from __future__ import annotations

import ast
import difflib
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from seresnet_hub.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCH_NORM_EPS = 1e-5

Change = Literal["", "transpose", "as_conv", "transpose_as_conv"]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images must be prepared: the fields of timm's pretrained configuration that say so."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    input_size: tuple[int, int, int] = (3, 224, 224)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a file says beside its shapes: preprocessing, class names, the recipe's name, and what had to be assumed."""

    preprocessing: Preprocessing | None = None
    label_names: tuple[str, ...] = ()
    recipe: str = ""
    assumed: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One code base: `rules` rename tensors, `mark` is a name that only it uses, `drops` are known and not needed.

    A rule is (pattern of the whole name, timm's name, what to do with the tensor). `finish` completes what single names
    cannot say; `settings` reads the file's other entries and refuses what timm's network would compute differently.
    """

    name: str
    title: str
    mark: str
    rules: tuple[tuple[str, str, Change], ...]
    preprocessing: Preprocessing | None = Preprocessing()
    drops: tuple[str, ...] = ()
    finish: Callable[[Tensors], Tensors] | None = None
    settings: Callable[[Mapping[str, Any], str], Settings] | None = None
    legacy: bool = False  # its networks are timm's `legacy_*`
    license: str = ""  # of the code, and of the files that its authors publish at `published_at`
    published_at: tuple[str, ...] = ()
    url: str = ""


@dataclass(kw_only=True)
class Renamed:
    """Tensors under timm's names, and the names of those that were left out."""

    tensors: Tensors
    dropped: list[str] = field(default_factory=list)


CHANGES: dict[Change, tuple[int | None, Callable[[torch.Tensor], torch.Tensor]]] = {
    "": (None, lambda tensor: tensor),
    "transpose": (2, lambda tensor: tensor.t().contiguous()),
    "as_conv": (2, lambda tensor: tensor[:, :, None, None]),
    "transpose_as_conv": (2, lambda tensor: tensor.t().contiguous()[:, :, None, None]),
}


def rename(source: Source, tensors: Mapping[str, torch.Tensor]) -> Renamed:
    """Return `tensors` under timm's names.

    Errors: `InputError` lists the names that no rule knows with the nearest name that one would, two names that would
    become one, and tensors whose number of dimensions a rule does not expect.
    """
    renamed = Renamed(tensors={})
    origin: dict[str, str] = {}
    unmapped = []
    for name, tensor in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in source.drops):
            renamed.dropped.append(name)
            continue
        found = _first_match(source, name)
        if found is None:
            unmapped.append(name)
            continue
        target, change = found
        dimensions, changed = CHANGES[change]
        if dimensions is not None and tensor.ndim != dimensions:
            raise InputError(f"tensor {name!r} has shape {tuple(tensor.shape)}, not {dimensions} dimensions")
        if target in origin:
            raise InputError(f"tensors {origin[target]!r} and {name!r} would both become {target!r}: delete one")
        origin[target] = name
        renamed.tensors[target] = changed(tensor)
    if unmapped:
        raise InputError(
            f"{len(unmapped)} unmapped, not of {source.title}: {_with_closest(unmapped, list(origin.values()))}"
        )
    if source.finish:
        renamed.tensors = source.finish(renamed.tensors)
    return renamed


def _first_match(source: Source, name: str) -> tuple[str, Change] | None:
    for pattern, template, change in source.rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(template), change
    return None


def _with_closest(names: list[str], known: list[str], *, shown: int = 5) -> str:
    """Return the first of `names`, each with the most similar of the `known` ones."""
    parts = []
    for name in names[:shown]:
        near = difflib.get_close_matches(name, known[:2000], 1)
        parts.append(f"{name[:120]!r}" + (f" (closest: {near[0]!r})" if near else ""))
    return ", ".join(parts) + (", …" if len(names) > shown else "")


def differences(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """Return what keeps `found` from being exactly the tensors `wanted`, or an empty string."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    shapes = [
        f"{name!r} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_with_closest(missing, extra)}")
    if extra:
        parts.append(f"{len(extra)} too many: {_with_closest(extra, missing)}")
    if shapes:
        parts.append(f"{len(shapes)} of other shapes: {', '.join(shapes[:5])}")
    return "; ".join(parts)


# What wrappers put before every name: torch.compile's and DistributedDataParallel's, in either order.
WRAPPERS = ("module.", "_orig_mod.")


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return `tensors` without the prefixes of `torch.compile` and `DistributedDataParallel`.

    Errors: `InputError` where a prefixed and an unprefixed tensor would get one name.
    """
    cleaned: Tensors = {}
    for name, tensor in tensors.items():
        short = name
        while wrapper := next((prefix for prefix in WRAPPERS if short.startswith(prefix)), None):
            short = short.removeprefix(wrapper)
        if short in cleaned:
            raise InputError(
                f"two tensors are named {short!r} when {' and '.join(WRAPPERS)} are taken away: delete one"
            )
        cleaned[short] = tensor
    return cleaned


# --- mmpretrain and mmcls ---------------------------------------------------------------------------------------------


def _finish_mmpretrain(tensors: Tensors) -> Tensors:
    """Number the first stage's shortcut as timm does: with avg_down, an identity stands where others have a pool."""
    if "layer2.0.downsample.2.weight" not in tensors:
        return tensors
    moved = {"layer1.0.downsample.0.": "layer1.0.downsample.1.", "layer1.0.downsample.1.": "layer1.0.downsample.2."}

    def place(name: str) -> str:
        prefix = next((prefix for prefix in moved if name.startswith(prefix)), "")
        return moved[prefix] + name.removeprefix(prefix) if prefix else name

    if any(name.startswith("layer1.0.downsample.2.") for name in tensors):
        return tensors
    return {place(name): tensor for name, tensor in tensors.items()}


class _Unreadable:
    """Stands where a configuration has something else than a literal."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "what is no literal"


UNREADABLE = _Unreadable()
UNPACKED = "**"  # the name under which a table keeps that more comes into it from elsewhere


def literal_config(text: str) -> dict[str, Any]:
    """Return the assignments of a Python configuration file that are literals or `dict(...)`; nothing is evaluated.

    Everything else is `UNREADABLE`, and stands under `UNPACKED` where it has no name.

    Errors: `InputError` where the text is no Python.
    """
    try:
        statements = ast.parse(text[: 2**20]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the configuration in the file cannot be read ({error})") from error
    config: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            config[statement.targets[0].id] = _literal(statement.value)
        elif not isinstance(statement, (ast.Import, ast.ImportFrom)) and not _is_text(statement):
            config[UNPACKED] = UNREADABLE
    return config


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal; anything else becomes `UNREADABLE`."""
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [_literal(item) for item in node.elts]
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {key.value if isinstance(key, ast.Constant) else UNPACKED: _literal(value) for key, value in pairs}
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return {keyword.arg or UNPACKED: _literal(keyword.value) for keyword in node.keywords}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case _:
            return UNREADABLE


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value is not None else []


def _mmpretrain_config(entries: Mapping[str, Any]) -> dict[str, Any] | None:
    meta = _table(entries.get("meta"))
    for name in ("cfg", "config"):
        if isinstance(meta.get(name), str) and "model" in meta[name]:
            return literal_config(meta[name])
        if "model" in _table(meta.get(name)):
            return _table(meta[name])
        if not isinstance(meta.get(name), (str, dict, type(None))):
            raise InputError(
                f"the configuration in the file (meta[{name!r}]) is a pickled object, which is not read: write it as "
                f"text, as mmengine does (cfg.pretty_text)"
            )
    return None


def _mmpretrain_settings(entries: Mapping[str, Any], file_name: str) -> Settings:
    """Read the configuration that mmcls and mmpretrain put beside the weights.

    Errors: `InputError` names an option that changes the network and that no architecture of timm has.
    """
    meta = _table(entries.get("meta"))
    classes = _table(meta.get("dataset_meta")).get("classes") or meta.get("CLASSES") or ()
    names = tuple(classes) if isinstance(classes, (list, tuple)) and all(isinstance(c, str) for c in classes) else ()
    config = _mmpretrain_config(entries)
    if config is None:
        assumed = "the file has no configuration: style='pytorch', no dilation and a BN eps of 1e-5 are assumed"
        return Settings(label_names=names, assumed=assumed)
    model = _table(config.get("model"))
    backbone = _table(model.get("backbone"))
    if not backbone:
        raise InputError("the configuration in the file names no backbone that can be read: nothing can be proven")
    whole = {"config": config, "model": model, "backbone": backbone, "norm_cfg": _table(backbone.get("norm_cfg"))}
    for place, table in whole.items():
        if "_base_" in table or UNPACKED in table or table.get("norm_cfg") is UNREADABLE:
            raise InputError(
                f"the configuration in the file is not complete ({place} takes values from elsewhere): nothing can be "
                f"proven; write it as mmengine does (cfg.pretty_text)"
            )
    usual: dict[str, list[Any]] = {"dilations": [1], "strides": [1, 2, 2, 2], "style": ["pytorch"], "num_stages": [4]}
    for option, values in usual.items():
        given = _items(backbone.get(option, values))
        if given != values and not (option == "dilations" and all(value == 1 for value in given)):
            raise InputError(
                f"the network has {option}={reprlib.repr(backbone[option])}, which its tensors do not show and no "
                f"architecture of timm computes: it would load and give wrong results"
            )
    norm = _table(backbone.get("norm_cfg"))
    if norm.get("type", "BN") not in ("BN", "BN2d", "SyncBN", "MMSyncBN"):
        raise InputError(f"the network is normalised by {reprlib.repr(norm['type'])}; only batch norm can be converted")
    if norm.get("eps", BATCH_NORM_EPS) != BATCH_NORM_EPS:
        raise InputError(
            f"its batch norms have eps={reprlib.repr(norm['eps'])}; a model folder of timm cannot say so, and with "
            f"{BATCH_NORM_EPS} the results would be wrong"
        )
    if _items(backbone.get("conv_cfg")) not in ([], [{"type": "Conv2d"}], [{"type": "Conv"}]):
        raise InputError(f"its convolutions are {reprlib.repr(backbone['conv_cfg'])}; only plain ones can be converted")
    necks = [_table(neck).get("type") for neck in _items(model.get("neck"))]
    if any(neck != "GlobalAveragePooling" for neck in necks):
        raise InputError(f"its neck is {reprlib.repr(necks)}; only global average pooling can be converted")
    preprocessing, assumed = _mmpretrain_preprocessing(config, model)
    return Settings(preprocessing=preprocessing, label_names=names, assumed=assumed)


def _mmpretrain_preprocessing(config: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[Preprocessing, str]:
    """Return how the configuration prepares images, and what it leaves open.

    Errors: `InputError` where the network takes blue before red, which a model folder of timm cannot say.
    """
    loaders = [_table(config.get(name)) for name in ("test_dataloader", "val_dataloader")]
    data = _table(config.get("data"))
    pipelines = [_table(loader.get("dataset")).get("pipeline") for loader in loaders]
    pipelines += [config.get("test_pipeline"), _table(data.get("test")).get("pipeline")]
    steps = [_table(step) for step in next((_items(found) for found in pipelines if found), [])]
    by_type = {step["type"]: step for step in steps if isinstance(step.get("type"), str)}
    newer = _table(config.get("data_preprocessor")) or _table(model.get("data_preprocessor"))
    statistics = newer or _table(config.get("img_norm_cfg")) or by_type.get("Normalize", {})
    # Both read files as BGR; mmcls 0.x turned that around unless told otherwise, mmpretrain only if told so.
    if "mean" in statistics and not statistics.get("to_rgb", not newer):
        raise InputError("its images are BGR, not RGB, which a model folder of timm cannot say: results would be wrong")
    resize = by_type.get("ResizeEdge") or by_type.get("Resize") or {}
    crop = by_type.get("CenterCrop", {})
    short_edge = _first_number(resize.get("scale", resize.get("size")))
    size = _first_number(crop.get("crop_size", crop.get("size")))
    usual = Preprocessing()
    mean, std = _three(statistics.get("mean")), _three(statistics.get("std"))
    interpolation = resize.get("interpolation", usual.interpolation)
    assumed = []
    if not mean or not std:
        mean, std = usual.mean, usual.std
        assumed.append("ImageNet's pixel statistics")
    if not short_edge or not size or size > short_edge or interpolation not in ("bilinear", "bicubic", "nearest"):
        short_edge, size, interpolation = 256, 224, usual.interpolation
        assumed.append("a bilinear short edge of 256 and a centre crop of 224")
    return Preprocessing(
        mean=mean, std=std, interpolation=interpolation, crop_pct=size / short_edge, input_size=(3, size, size)
    ), f"the configuration does not say how images are prepared: {' and '.join(assumed)}" if assumed else ""


def _first_number(value: Any) -> int | None:
    numbers = _items(value)
    return numbers[0] if numbers and type(numbers[0]) is int and numbers[0] > 0 else None


def _three(values: Any) -> tuple[float, float, float] | None:
    """Return channel statistics of pixels in 0 to 255 as those of pixels in 0 to 1."""
    numbers = _items(values)
    if len(numbers) != 3 or not all(isinstance(value, (int, float)) for value in numbers):
        return None
    red, green, blue = (round(value / 255, 6) for value in numbers)
    return red, green, blue


# --- pytorchcv --------------------------------------------------------------------------------------------------------


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


# --- the others -------------------------------------------------------------------------------------------------------


def _zero_biases(tensors: Tensors) -> Tensors:
    """Give the SE layers the biases that timm's have: zero, where the source's have none."""
    completed = dict(tensors)
    for name, tensor in tensors.items():
        if re.fullmatch(r"layer\d\.\d+\.se\.fc[12]\.weight", name):
            completed.setdefault(name.removesuffix("weight") + "bias", tensor.new_zeros(tensor.shape[0]))
    return completed


_BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_IN_BLOCK = r"layer\d\.\d+\.(?:conv\d\.weight|(?:bn\d|downsample\.\d)\.\w+)"


def _paddle_norm(prefix: str, target: str) -> tuple[tuple[str, str, Change], ...]:
    return (
        (rf"{prefix}\._batch_norm\.(weight|bias)", rf"{target}.\g<{_groups(prefix) + 1}>", ""),
        (rf"{prefix}\._batch_norm\._mean", f"{target}.running_mean", ""),
        (rf"{prefix}\._batch_norm\._variance", f"{target}.running_var", ""),
    )


def _groups(pattern: str) -> int:
    return re.compile(pattern).groups


_MM = r"(?:backbone\.)?"
# PaddleClas counts stages from 0 and convolutions from 0; one line per stage and convolution keeps the rules plain.
_PADDLE_RULES: tuple[tuple[str, str, Change], ...] = (
    (r"conv\._conv\.weight", "conv1.weight", ""),
    *_paddle_norm("conv", "bn1"),
    *(
        rule
        for k in (1, 2, 3)
        for rule in (
            (rf"conv1_{k}\._conv\.weight", f"conv1.{3 * (k - 1)}.weight", ""),
            *_paddle_norm(f"conv1_{k}", f"conv1.{3 * (k - 1) + 1}" if k < 3 else "bn1"),
        )
    ),
    *(
        rule
        for stage in range(4)
        for rule in (
            *(
                rule
                for k in range(3)
                for rule in (
                    (rf"bb_{stage}_(\d+)\.conv{k}\._conv\.weight", rf"layer{stage + 1}.\1.conv{k + 1}.weight", ""),
                    *_paddle_norm(rf"bb_{stage}_(\d+)\.conv{k}", rf"layer{stage + 1}.\1.bn{k + 1}"),
                )
            ),
            (rf"bb_{stage}_(\d+)\.short\._conv\.weight", rf"layer{stage + 1}.\1.downsample.0.weight", ""),
            *_paddle_norm(rf"bb_{stage}_(\d+)\.short", rf"layer{stage + 1}.\1.downsample.1"),
            *(
                rule
                for k, layer in ((1, "squeeze"), (2, "excitation"))
                for rule in (
                    (
                        rf"bb_{stage}_(\d+)\.scale\.{layer}\.weight",
                        rf"layer{stage + 1}.\1.se.fc{k}.weight",
                        "transpose_as_conv",
                    ),
                    (rf"bb_{stage}_(\d+)\.scale\.{layer}\.bias", rf"layer{stage + 1}.\1.se.fc{k}.bias", ""),
                )
            ),
        )
    ),
    (r"(?:out|fc)\.weight", "fc.weight", "transpose"),
    (r"(?:out|fc)\.bias", "fc.bias", ""),
)


def _finish_paddle(tensors: Tensors) -> Tensors:
    """Number the shortcuts of the `_vd` networks, which the deep stem tells, as timm numbers those with a pool."""
    if "conv1.0.weight" not in tensors:
        return tensors

    def place(name: str) -> str:
        return re.sub(r"downsample\.([01])", lambda match: f"downsample.{int(match.group(1)) + 1}", name)

    return {place(name): tensor for name, tensor in tensors.items()}


_CV_STAGE = r"features\.stage([1-4])\.unit"
_CV_RULES: tuple[tuple[str, str, Change], ...] = tuple(
    rule
    for unit in range(1, 65)  # pytorchcv counts units from 1
    for rule in (
        (rf"{_CV_STAGE}{unit}\.body\.conv([123])\.conv\.weight", rf"layer\1.{unit - 1}.conv\2.weight", ""),
        (rf"{_CV_STAGE}{unit}\.body\.conv([123])\.bn\.{_BN}", rf"layer\1.{unit - 1}.bn\2.\3", ""),
        (rf"{_CV_STAGE}{unit}\.se\.conv([12])\.(weight|bias)", rf"layer\1.{unit - 1}.se.fc\2.\3", ""),
        (rf"{_CV_STAGE}{unit}\.identity_conv\.conv\.weight", rf"layer\1.{unit - 1}.downsample.0.weight", ""),
        (rf"{_CV_STAGE}{unit}\.identity_conv\.bn\.{_BN}", rf"layer\1.{unit - 1}.downsample.1.\2", ""),
    )
)

SOURCES: tuple[Source, ...] = (
    Source(
        name="mmpretrain",
        title="mmpretrain or mmcls",
        mark=r"(?:backbone\.)?layer\d\.\d+\.se_layer\.conv[12]\.conv\.weight",
        rules=(
            (rf"{_MM}(layer\d\.\d+)\.se_layer\.conv([12])\.conv\.(weight|bias)", r"\1.se.fc\2.\3", ""),
            (rf"{_MM}(conv1\.weight|bn1\.\w+|{_IN_BLOCK})", r"\1", ""),
            (rf"{_MM}stem\.0\.conv\.weight", "conv1.0.weight", ""),
            (rf"{_MM}stem\.1\.conv\.weight", "conv1.3.weight", ""),
            (rf"{_MM}stem\.2\.conv\.weight", "conv1.6.weight", ""),
            (rf"{_MM}stem\.0\.bn\.{_BN}", r"conv1.1.\1", ""),
            (rf"{_MM}stem\.1\.bn\.{_BN}", r"conv1.4.\1", ""),
            (rf"{_MM}stem\.2\.bn\.{_BN}", r"bn1.\1", ""),
            (r"head\.fc\.(weight|bias)", r"fc.\1", ""),
        ),
        # mmcls 0.x kept the weights beside their average under such names.
        drops=(r"ema_\w+", r"(?:data_preprocessor|img_normalizer)\.(?:mean|std)"),
        finish=_finish_mmpretrain,
        settings=_mmpretrain_settings,
        license="apache-2.0",
        published_at=("https://download.openmmlab.com/mmclassification/", "https://download.openmmlab.com/mmpretrain/"),
        url="https://github.com/open-mmlab/mmpretrain",
    ),
    Source(
        name="timm",
        title="timm",
        mark=r"layer\d\.\d+\.se\.fc[12]\.weight",
        rules=((r"(?!layer0\.)(.+)", r"\1", ""),),
        preprocessing=None,
        license="apache-2.0",
        url="https://github.com/huggingface/pytorch-image-models",
    ),
    Source(
        name="cadene",
        title="Cadene's pretrained-models or timm's legacy networks",
        mark=r"layer\d\.\d+\.se_module\.fc[12]\.weight",
        rules=(
            (r"(layer0\.(?:conv\d\.weight|bn\d\.\w+))", r"\1", ""),
            (rf"({_IN_BLOCK}|layer\d\.\d+\.se_module\.fc[12]\.(?:weight|bias))", r"\1", ""),
            (r"last_linear\.(weight|bias)", r"last_linear.\1", ""),
        ),
        legacy=True,
        license="bsd-3-clause",
        published_at=("http://data.lip6.fr/cadene/pretrainedmodels/",),
        url="https://github.com/Cadene/pretrained-models.pytorch",
    ),
    Source(
        name="moskomule",
        title="moskomule/senet.pytorch",
        mark=r"layer\d\.\d+\.se\.fc\.[02]\.weight",
        rules=(
            (rf"(conv1\.weight|bn1\.\w+|{_IN_BLOCK})", r"\1", ""),
            (r"(layer\d\.\d+)\.se\.fc\.0\.weight", r"\1.se.fc1.weight", "as_conv"),
            (r"(layer\d\.\d+)\.se\.fc\.2\.weight", r"\1.se.fc2.weight", "as_conv"),
            (r"fc\.(weight|bias)", r"fc.\1", ""),
        ),
        finish=_zero_biases,
        license="mit",
        published_at=("https://github.com/moskomule/senet.pytorch/releases/",),
        url="https://github.com/moskomule/senet.pytorch",
    ),
    Source(
        name="pytorchcv",
        title="pytorchcv's SE-ResNet or SE-ResNeXt",
        mark=r"features\.stage\d\.unit\d+\.se\.conv[12]\.weight",
        rules=(
            (r"features\.init_block(?:\.conv)?\.conv\.weight", "conv1.weight", ""),
            (rf"features\.init_block(?:\.conv)?\.bn\.{_BN}", r"bn1.\1", ""),
            *_CV_RULES,
            (r"output\.(weight|bias)", r"fc.\1", ""),
        ),
        settings=_pytorchcv_settings,
        license="mit",
        published_at=("https://github.com/osmr/imgclsmob/releases/",),
        url="https://github.com/osmr/imgclsmob",
    ),
    Source(
        name="paddle",
        title="PaddleClas's SE_ResNet_vd or SE_ResNeXt",
        mark=r"bb_\d_\d+\.scale\.squeeze\.weight",
        rules=_PADDLE_RULES,
        finish=_finish_paddle,
        license="apache-2.0",
        published_at=("https://paddle-imagenet-models-name.bj.bcebos.com/",),
        url="https://github.com/PaddlePaddle/PaddleClas",
    ),
    Source(
        name="torchvision",
        title="torchvision's ResNet or ResNeXt",
        mark="",  # the names are timm's; what tells it is that there is no SE unit
        rules=((rf"(conv1\.weight|bn1\.\w+|{_IN_BLOCK}|fc\.(?:weight|bias))", r"\1", ""),),
        license="bsd-3-clause",
        published_at=("https://download.pytorch.org/models/",),
        url="https://github.com/pytorch/vision",
    ),
)


def find_source(tensors: Mapping[str, torch.Tensor], name: str | None = None) -> Source:
    """Return the source of that name, or the one whose mark is among the tensors' names.

    Errors: `InputError` lists the sources that there are.
    """
    names = ", ".join(source.name for source in SOURCES)
    if name is not None:
        for source in SOURCES:
            if source.name == name:
                return source
        raise InputError(f"there is no source {name!r}; the sources are {names}")
    found = [
        source
        for source in SOURCES
        if source.mark and any(re.fullmatch(source.mark, tensor_name) for tensor_name in tensors)
    ]
    if not found and "layer1.0.conv1.weight" in tensors:
        found = [source for source in SOURCES if source.name == "torchvision"]
    if len(found) != 1:
        reason = f"looks like {' and '.join(source.title for source in found)}" if found else "is of no known source"
        example = next(iter(tensors), "")
        raise InputError(f"a file with tensors such as {example[:80]!r} {reason}; name one with --source: {names}")
    return found[0]


def from_mmpretrain(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return mmpretrain's or mmcls's SEResNet tensors under timm's names, unchanged.

    Errors: as for `rename`.
    """
    return rename(find_source(tensors, "mmpretrain"), tensors).tensors
