"""Write a model as the folder that plain timm loads: `model.safetensors`, `config.json`, `README.md`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models._hub import (
    save_config_for_hf,
)  # the writer behind timm's own push: the config stays "as timm writes it"
from torch import nn

from seresnet_hub.errors import InputError

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"


def cache_folder() -> Path:
    """Return the folder for data this package writes: `$SERESNET_HUB_CACHE`, else `~/.cache/seresnet_hub`."""
    return Path(os.environ.get("SERESNET_HUB_CACHE") or Path.home() / ".cache" / "seresnet_hub")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory that becomes `path` when the block succeeds, and vanishes when not.

    Errors: `InputError` where the disk is full or the directory cannot be written.
    """
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    except InputError as error:  # from a file inside a new folder: name the folder that a person asked for
        raise InputError(str(error).replace(str(temporary), str(path))) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


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


def config_text(
    model: nn.Module,
    *,
    pretrained_cfg: Mapping[str, Any],
    model_args: Mapping[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
) -> str:
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
        return path.read_text(encoding="utf-8") + "\n"


def write_model(
    directory: Path,
    state_dict: Mapping[str, torch.Tensor],
    *,
    config: str,
    card: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the three files of a model folder; a new folder appears whole, an existing one is updated file by file.

    The safetensors metadata always says `format: pt`. Errors: `InputError` where the disk is full or read-only.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}

    def fill(target: Path) -> None:
        with replacing(target / WEIGHTS_NAME) as temporary:
            try:
                save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
            except Exception as error:  # safetensors reports a full disk with a class of its own
                raise OSError(str(error)) from error
            temporary.chmod(0o666 & ~_umask())  # safetensors keeps its files to their owner
        write_text(target / CONFIG_NAME, config)
        write_text(target / CARD_NAME, card)

    if directory.is_dir():
        fill(directory)
        return
    with replacing(directory) as temporary:
        temporary.mkdir()
        fill(temporary)
