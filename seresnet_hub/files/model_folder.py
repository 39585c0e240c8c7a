"""Write a model as the folder that plain timm loads: `model.safetensors`, `config.json`, `README.md`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models._hub import (
    save_config_for_hf,
)  # the writer behind timm's own push: the config stays "as timm writes it"
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import filling, replacing, sha256_of, write_json, write_text

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
SUMMARY_NAME = "summary.csv"
CURVES_NAME = "curves.png"
PER_CLASS_NAME, CONFUSION_NAME, PICTURE_NAME = "per_class.csv", "confusion.csv", "confusion.png"  # of a report
PAGE_NAME, METRICS_NAME, RELIABILITY_NAME = "index.html", "metrics.json", "reliability.png"
FACTS_KEY = "seresnet_hub"  # in config.json: what timm does not write, and does not read
# Fields of timm's config that are true of one set of weights only.
FACTS_OF_ONE_WEIGHT_SET = frozenset(
    {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "custom_load", "license", "description",
     "origin_url", "paper_name", "paper_ids", "notes", "test_input_size", "test_crop_pct", "test_pool_size",
     "label_names", "label_descriptions", "label_offset"}
)  # fmt: skip


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def timm_config(
    model: nn.Module,
    *,
    pretrained_cfg: Mapping[str, Any],
    model_args: Mapping[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the `config.json` that timm writes for `model`, with `pretrained_cfg` laid over the model's own.

    Errors: `InputError` where a model argument cannot be written as JSON.
    """
    original = model.pretrained_cfg
    model_config = {"label_names": list(label_names)} if label_names else {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, CONFIG_NAME)
        try:
            model.pretrained_cfg = {**original, **pretrained_cfg}  # type: ignore[dict-item, assignment]
            save_config_for_hf(model, path, model_config=model_config, model_args=dict(model_args or {}))
        except (TypeError, ValueError) as error:
            raise InputError(f"cannot describe the model in {CONFIG_NAME}: {error}") from error
        finally:
            model.pretrained_cfg = original
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # timm reads the number of classes above, and transformers passes it beside `model_args`: there twice is an error.
    config.get("model_args", {}).pop("num_classes", None)
    if label_names is None and "label_names" in config["pretrained_cfg"]:  # where transformers does not look
        config["label_names"] = config["pretrained_cfg"].pop("label_names")
    return config


def _sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in alphabetical order: the library writes it in another order every time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # The same entries take the same room, but for a character that the two libraries escape differently.
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def write_weights(
    directory: Path, state_dict: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `model.safetensors` into `directory`, whole or not at all.

    The safetensors metadata always says `format: pt`. Errors: `InputError` where the disk is full or read-only.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with replacing(directory / WEIGHTS_NAME) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        except Exception as error:  # safetensors reports a full disk with a class of its own
            raise OSError(str(error)) from error
        _sort_metadata(temporary)
        temporary.chmod(0o666 & ~_umask())  # safetensors keeps its files to their owner


def write_model(
    directory: Path,
    state_dict: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, Any],
    card: Callable[[Mapping[str, Any]], str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the three files of a model folder; a new folder appears whole, an existing one is updated file by file.

    `config.json` gets the sha256 of the weights among its facts; `card` makes the README of that config. Errors:
    `InputError` where the disk is full or read-only.
    """
    with filling(directory) as target:
        write_weights(target, state_dict, metadata)
        write_config_and_card(target, config, card)


def write_config_and_card(directory: Path, config: Mapping[str, Any], card: Callable[[Mapping[str, Any]], str]) -> str:
    """Write the files that describe the weights in a folder, as `write_model` does; return the weights' sha256."""
    sha256 = sha256_of(directory / WEIGHTS_NAME)
    described = {**config, FACTS_KEY: {**config.get(FACTS_KEY, {}), "sha256": {WEIGHTS_NAME: sha256}}}
    write_json(directory / CONFIG_NAME, described)
    write_text(directory / CARD_NAME, card(described))
    return sha256
