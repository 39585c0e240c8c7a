"""Say whether a stranger's `config.json` can be used: each value of the type and range that timm and we need."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import timm

from seresnet_hub.checkpoints.checked_json import checked_json
from seresnet_hub.engines.export_facts import CROP_MODES, INTERPOLATIONS
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import FACTS_KEY
from seresnet_hub.recipes.field_types import LEAST_CROP_PCT, LONGEST_SIDE

# Arguments of timm's factory and its builder, which say nothing about a network: they name other files, or switch off
# what `strict` is for.
FACTORY_ARGUMENTS = frozenset(
    {"cache_dir", "checkpoint_path", "exportable", "model_name", "no_jit", "pretrained", "pretrained_cfg"}
    | {"pretrained_cfg_overlay", "scriptable", "kwargs_filter", "pretrained_strict", "pretrained_filter_fn"}
    | {"pretrained_model_args", "feature_cfg", "features_only", "model_cfg", "variant", "model_cls"}
    | {"device", "dtype"}  # the network would be made in memory before it is held against its file
)
NEVER_NULL = ("model_args", "pretrained_cfg", FACTS_KEY)  # timm and we read in them
# The names and descriptions of ImageNet-21k's 21,843 classes take 2 MB. A config is parsed several times, by timm too.
MOST_BYTES, MOST_ENTRIES = 2**24, 500_000
MOST_CLASSES = 10_000_000
LARGEST_ARGUMENT = 1_000_000


def checked_config(path: Path) -> dict[str, Any]:
    """Return the config in a file. Errors: `InputError` where a value is not what it must be."""
    config = checked_json(path, most_bytes=MOST_BYTES, most_entries=MOST_ENTRIES)
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object")
    preprocessing: Any = config.get("pretrained_cfg", config)
    every: tuple[tuple[Rules, Any], ...] = (
        (TOP, config),
        (FACTS, config.get(FACTS_KEY)),
        (_preprocessing_rules(preprocessing), preprocessing),
    )
    for rules, values in every:
        for key in [key for key in rules if key in values] if isinstance(values, dict) else ():
            fits, words = rules[key]
            if not fits(values[key]) and (values[key] is not None or key in NEVER_NULL):
                raise InputError(f"{path}: {key!r} is {reprlib.repr(values[key])}, expected {words}")
    return config


def check_architecture(path: Path) -> None:
    """Raise `InputError` unless the config names an architecture that timm has, and arguments of a network."""
    config = checked_config(path)
    architecture, arguments = config.get("architecture"), config.get("model_args", {})
    if not architecture:
        raise InputError(f"{path} names no architecture: it is no config of timm's")
    if "." in architecture or not timm.is_model(architecture):  # timm takes a tag, too, which is no architecture
        raise InputError(
            f"{path}: timm {timm.__version__} has no architecture {architecture!r}: a newer timm may, or a package "
            "that has to be imported first"
        )
    require_network_arguments(path, arguments)


def require_network_arguments(path: Path, arguments: Mapping[str, Any]) -> None:
    """Raise `InputError` where a config's `model_args` have what says nothing about a network."""
    if forbidden := sorted(FACTORY_ARGUMENTS & set(arguments)):
        raise InputError(f"{path}: 'model_args' has {forbidden[0]!r}, which says nothing about a network")


# --- the rules --------------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: Any, *, length: int = 3, least: int = 1) -> bool:
    if not isinstance(value, list) or len(value) != length:
        return False
    return all(_is_count(side) and least <= side <= LONGEST_SIDE for side in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_numbers(value: Any, *, least: float, lengths: set[int]) -> bool:
    if not isinstance(value, list) or len(value) not in lengths:
        return False
    return all(_is_number(number) and least <= number <= 1e6 for number in value)  # false of NaN


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text_or_texts(value: Any) -> bool:
    return _is_text(value) or _is_texts(value)


def _is_texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_names(value: Any) -> bool:
    if isinstance(value, dict):  # as transformers numbers classes
        return value.keys() == set(map(str, range(len(value)))) and _is_texts_by_name(value)
    return _is_texts(value)


def is_arguments(value: Any) -> bool:
    """Return whether the numbers in a table are no absurd ones: a network of a million blocks takes hours to make.

    Their sum counts: timm makes lists as long as the depths of all stages together before it makes any layer.
    """
    if not isinstance(value, dict) or not all(abs(number) <= LARGEST_ARGUMENT for number in _numbers_in(value)):
        return False
    return sum(map(abs, _numbers_in(value))) <= LARGEST_ARGUMENT


def _numbers_in(value: Any) -> Iterator[Any]:
    waiting = [value]  # not by recursion: the nesting is a stranger's
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, (dict, list)):
            waiting += inner.values() if isinstance(inner, dict) else inner
        elif _is_number(inner):
            yield inner


# Texts in timm's part of a config.
TEXTS = (
    *("url", "file", "source", "hf_hub_id", "hf_hub_filename", "architecture", "tag"),
    *("license", "description", "origin_url", "paper_name"),
)
# What each value of a config must be where it is there, and in words. A null stands for a value that is not there.
Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
TEXT, FLAG, COUNT = (_is_text, "a text"), (_is_flag, "true or false"), (_is_count, "a whole number")
CLASSES = (lambda value: _is_count(value) and value <= MOST_CLASSES, f"a whole number up to {MOST_CLASSES:,}")
NAMES = (_is_names, "a list of names, or a table of them by number")
DESCRIPTIONS = (_is_texts_by_name, "a table of texts")
TOP: Rules = {
    "architecture": (_is_text, "a name"),
    "num_classes": CLASSES,
    "num_features": COUNT,
    "global_pool": (lambda value: _is_text(value) or _is_flag(value), "a name"),
    "label_names": NAMES,
    "label_descriptions": DESCRIPTIONS,
    "model_args": (is_arguments, f"a table whose numbers are at most {LARGEST_ARGUMENT:,} together"),
    "pretrained_cfg": (_is_table, "a table"),
    FACTS_KEY: (_is_table, "a table"),
}
FACTS: Rules = {"license": TEXT, "sha256": (_is_texts_by_name, "a table of texts")}


def _preprocessing_rules(values: Any) -> Rules:
    size: Any = values.get("input_size") if isinstance(values, dict) else None
    channels = size[0] if _is_size(size) else 3
    lengths = {1, 3, channels}
    share = (lambda value: _is_number(value) and LEAST_CROP_PCT <= value <= 10, f"a number from {LEAST_CROP_PCT} to 10")
    sides = (_is_size, f"three positive whole numbers up to {LONGEST_SIDE:,}")
    pool = (lambda value: _is_size(value, length=2, least=0), f"two whole numbers up to {LONGEST_SIDE:,}")
    texts = (_is_text_or_texts, "a text or a list of texts")
    layers = (_is_text_or_texts, "a name or a list of names")
    return {
        "num_classes": CLASSES,
        "label_offset": COUNT,
        "input_size": sides,
        "test_input_size": sides,
        "min_input_size": sides,
        "fixed_input_size": FLAG,
        "pool_size": pool,
        "test_pool_size": pool,
        "mean": (lambda v: _is_numbers(v, least=-1e6, lengths=lengths), f"a list of {channels} finite numbers"),
        "std": (lambda v: _is_numbers(v, least=1e-6, lengths=lengths), f"a list of {channels} positive numbers"),
        "crop_pct": share,
        "test_crop_pct": share,
        "interpolation": (lambda v: v in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
        "crop_mode": (lambda v: v in CROP_MODES, f"one of {', '.join(CROP_MODES)}"),
        "classifier": layers,
        "first_conv": layers,
        "label_names": NAMES,
        "label_descriptions": DESCRIPTIONS,
        **dict.fromkeys(TEXTS, TEXT),
        "paper_ids": texts,
        "notes": texts,
        "custom_load": (lambda value: _is_flag(value) or _is_text(value), "true, false or a name"),
        "state_dict": (lambda value: not value, "nothing: the tensors are in the file beside it"),
    }
