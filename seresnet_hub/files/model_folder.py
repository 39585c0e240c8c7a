"""Write a model as the folder that plain timm loads: `model.safetensors`, `config.json`, `README.md`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models._hub import (
    save_config_for_hf,
)  # the writer behind timm's own push: the config stays "as timm writes it"
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.files.durability import flush_folder, flush_tree, make_folders
from seresnet_hub.files.leftovers import partial_of, sweep
from seresnet_hub.files.locks import only_writer

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
SUMMARY_NAME = "summary.csv"
CURVES_NAME = "curves.png"
PER_CLASS_NAME, CONFUSION_NAME, PICTURE_NAME = "per_class.csv", "confusion.csv", "confusion.png"  # of a report
FACTS_KEY = "seresnet_hub"  # in config.json: what timm does not write, and does not read
# What timm's config says of the weights it names, and not of other weights of the same architecture.
OTHER_WEIGHTS_FACTS = frozenset(
    {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "custom_load", "license", "description",
     "origin_url", "paper_name", "paper_ids", "notes", "test_input_size", "test_crop_pct", "test_pool_size",
     "label_names", "label_descriptions", "label_offset"}
)  # fmt: skip


def cache_folder() -> Path:
    """Return the folder for data this package writes: `$SERESNET_HUB_CACHE`, else `~/.cache/seresnet_hub`."""
    return Path(os.environ.get("SERESNET_HUB_CACHE") or Path.home() / ".cache" / "seresnet_hub")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory that becomes `path` when the block succeeds, and vanishes when not.

    It is on the disk, and not only in the system's memory, before `path` is replaced, and `path` when this returns.
    What killed processes left half-written in that directory is removed. Errors: `InputError` where the disk is full or
    the directory cannot be written.
    """
    with _named(path):
        make_folders(path.parent)
        sweep(path.parent)
        with partial_of(path) as temporary:
            try:
                yield temporary
                flush_tree(temporary)
                os.replace(temporary, path)
                flush_folder(path.parent)
            except InputError as error:  # from a file inside a new folder: name the folder that a person asked for
                raise InputError(str(error).replace(str(temporary), str(path))) from error


@contextmanager
def staging(directory: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder to write files `names` into, which go to `directory` when the block succeeds.

    A new directory appears whole; in one that exists, its files are replaced, one right after the other. Until then
    nothing of it changes, and no training run or other writer is in there. Errors: `InputError` as of `replacing`, and
    where another process uses the directory.
    """
    with _named(directory):
        exists = directory.is_dir()  # an error where the name is too long
    if not exists:
        with replacing(directory) as temporary:
            temporary.mkdir()
            yield temporary
        return
    # Inside, since the folder may be a file system of its own.
    with _named(directory), only_writer(directory), partial_of(directory / directory.resolve().name) as temporary:
        sweep(directory)
        temporary.mkdir()
        try:
            yield temporary
            flush_tree(temporary)
            for name in names:
                os.replace(temporary / name, directory / name)
            flush_folder(directory)
        except InputError as error:
            raise InputError(str(error).replace(str(temporary), str(directory))) from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Make the system's errors an `InputError` with the name; of a NUL in it, they are ValueErrors.

    Names that are no UTF-8 are refused: safetensors writes such a file, and does not read it.
    """
    try:
        os.fsencode(path).decode()
    except UnicodeError as error:
        raise InputError(f"cannot write {path}: its name is not valid UTF-8, choose another") from error
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise InputError(f"cannot write {path}: {error}") from error


def fill_folder(directory: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into `directory`, file by file where it exists; a new folder appears whole."""
    with _named(directory):
        exists = directory.is_dir()
    if exists:
        fill(directory)
        return
    with replacing(directory) as temporary:
        temporary.mkdir()
        fill(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; errors name the file where it cannot be read or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value


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

    def fill(target: Path) -> None:
        write_weights(target, state_dict, metadata)
        hashes = {WEIGHTS_NAME: sha256_of(target / WEIGHTS_NAME)}
        described = {**config, FACTS_KEY: {**config.get(FACTS_KEY, {}), "sha256": hashes}}
        write_json(target / CONFIG_NAME, described)
        write_text(target / CARD_NAME, card(described))

    fill_folder(directory, fill)
