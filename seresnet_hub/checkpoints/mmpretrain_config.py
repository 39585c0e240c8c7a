"""Read the configuration that mmcls and mmpretrain put beside the weights, and refuse what timm has no network for.

It is Python, of which only literals are read: nothing is evaluated.
"""

from __future__ import annotations

import ast
import reprlib
from collections.abc import Mapping
from typing import Any

from seresnet_hub.checkpoints.file_settings import USUAL_PREPROCESSING, Preprocessing, Settings
from seresnet_hub.errors import InputError

BATCH_NORM_EPS = 1e-5


class _Unreadable:
    """Stands where a configuration has something else than a literal."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "what is no literal"


UNREADABLE = _Unreadable()
UNPACKED = "**"  # the name under which a table keeps that more comes into it from elsewhere


def mmpretrain_settings(entries: Mapping[str, Any], file_name: str) -> Settings:
    """Read the configuration that mmcls and mmpretrain put beside the weights.

    Errors: `InputError` names an option that changes the network and that no architecture of timm has, and says where
    the configuration cannot be read.
    """
    meta = _table(entries.get("meta"))
    classes = _table(meta.get("dataset_meta")).get("classes") or meta.get("CLASSES") or ()
    names = tuple(classes) if isinstance(classes, (list, tuple)) and all(isinstance(c, str) for c in classes) else ()
    config = _config_of(entries)
    if config is None:
        assumed = "the file has no configuration: style='pytorch', no dilation and a BN eps of 1e-5 are assumed"
        return Settings(label_names=names, assumed=assumed)
    _require_usual_network(config)
    preprocessing, assumed = _preprocessing_of(config)
    return Settings(preprocessing=preprocessing, label_names=names, assumed=assumed)


def _require_usual_network(config: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the whole configuration can be read, and describes what timm's network computes."""
    model = _table(config.get("model"))
    backbone = _table(model.get("backbone"))
    if not backbone:
        raise InputError("the configuration in the file names no backbone that can be read: nothing can be proven")
    norm = _table(backbone.get("norm_cfg"))
    whole = {"config": config, "model": model, "backbone": backbone, "norm_cfg": norm}
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


def _preprocessing_of(config: Mapping[str, Any]) -> tuple[Preprocessing, str]:
    """Return how the configuration prepares images, and what it leaves open.

    Errors: `InputError` where the network takes blue before red, which a model folder of timm cannot say.
    """
    loaders = [_table(config.get(name)) for name in ("test_dataloader", "val_dataloader")]
    data = _table(config.get("data"))
    pipelines = [_table(loader.get("dataset")).get("pipeline") for loader in loaders]
    pipelines += [config.get("test_pipeline"), _table(data.get("test")).get("pipeline")]
    steps = [_table(step) for step in next((_items(found) for found in pipelines if found), [])]
    by_type = {step["type"]: step for step in steps if isinstance(step.get("type"), str)}
    newer = _table(config.get("data_preprocessor")) or _table(_table(config.get("model")).get("data_preprocessor"))
    statistics = newer or _table(config.get("img_norm_cfg")) or by_type.get("Normalize", {})
    # Both read files as BGR; mmcls 0.x turned that around unless told otherwise, mmpretrain only if told so.
    if "mean" in statistics and not statistics.get("to_rgb", not newer):
        raise InputError("its images are BGR, not RGB, which a model folder of timm cannot say: results would be wrong")
    resize = by_type.get("ResizeEdge") or by_type.get("Resize") or {}
    crop = by_type.get("CenterCrop", {})
    short_edge = _first_number(resize.get("scale", resize.get("size")))
    size = _first_number(crop.get("crop_size", crop.get("size")))
    usual = USUAL_PREPROCESSING
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


# --- reading a configuration without running it -----------------------------------------------------------------------


def _config_of(entries: Mapping[str, Any]) -> dict[str, Any] | None:
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
