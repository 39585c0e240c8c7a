"""Keep the last checkpoints of a training run as safetensors files, each checked when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import replacing
from seresnet_hub.files.locks import STATES_FOLDER, require_held

CHECKPOINT_NAME = re.compile(r"step-([0-9]+)\.safetensors")


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written; the text says in what way."""


def list_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints of the run in `output`, the latest step first; `InputError` where it cannot be read."""
    folder = Path(output, STATES_FOLDER)
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder}: {getattr(error, 'strerror', None) or error}") from error
    matches = filter(None, map(CHECKPOINT_NAME.fullmatch, names))
    latest_first = sorted(matches, key=lambda match: (int(match[1]), match[0]), reverse=True)
    paths = [folder / match[0] for match in latest_first]
    for path in paths:
        if not path.is_file() and os.path.lexists(path):  # it may have been removed meanwhile
            raise InputError(f"{path} is no file, or a link to none, where a state is looked for: move it away")
    return paths


def save_checkpoint(output: Path, checkpoint: Mapping[str, Any], *, keep: int = 1) -> Path:
    """Write `checkpoint` whole or not at all, then delete all but it and the `keep - 1` before it; return the file.

    It is a tree of mappings and lists over tensors, their types, numbers, texts and None; `checkpoint["step"]` numbers
    it. Tensors lose their memory layout, tuples become lists. Errors: `InputError` where the disk is full or read-only,
    the run's folder is gone, or the tree has something else in it.
    """
    text, tensors = serialized(checkpoint)
    path = Path(output, STATES_FOLDER, f"step-{checkpoint['step']:08d}.safetensors")
    require_held(output)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"state": text, "sha256": digest_of(text, tensors)})
        except Exception as error:  # safetensors reports a full disk with a class of its own
            free = shutil.disk_usage(path.parent).free >> 20
            raise OSError(f"{error} ({free} MiB are free there)") from error
    # The new one is on the disk, under its name. Later ones are damaged: the run has gone back behind them.
    saved = list_checkpoints(output)
    place = saved.index(path)
    for other in saved[:place] + saved[place + keep :]:
        try:
            other.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot remove {other}: {error.strerror or error}") from error
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds. Errors: `DamagedCheckpoint` where it is not what was written, by its sha256."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        if metadata["sha256"] != digest_of(metadata["state"], tensors):
            raise DamagedCheckpoint("its sha256 is another")
        checkpoint: dict[str, Any] = _join(json.loads(metadata["state"]), tensors)
        return checkpoint
    except DamagedCheckpoint:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise DamagedCheckpoint(f"{type(error).__name__}: {error}") from error


def latest_checkpoint(output: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the last readable checkpoint of the run in `output`, and what is wrong with later ones.

    Errors: `InputError` where there is none.
    """
    damaged: list[str] = []
    for path in list_checkpoints(output):
        try:
            return load_checkpoint(path), damaged
        except DamagedCheckpoint as error:
            damaged.append(f"{path} is damaged ({error})")
    raise InputError(f"cannot resume: {'; '.join(damaged) or f'{output} has no checkpoint'}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state; each tensor gets the memory layout of its parameter, as sums depend on the order.

    Whether it is fused stays as this machine has it.
    """
    none: dict[str, Any] = {}
    groups = [
        {**group, **{name: own[name] for name in ("fused",) if name in own}}
        for group, own in zip_longest(state["param_groups"], optimizer.param_groups, fillvalue=none)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def serialized(checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """Return a checkpoint as a text and the tensors that it names; `InputError` as for `save_checkpoint`."""
    tensors: dict[str, torch.Tensor] = {}
    return json.dumps(_split(checkpoint, "", tensors)), tensors


def _split(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON can say it; its tensors go to `tensors`, and their names stay in their place."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _split(item, f"{name}/{key}".lstrip("/"), tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, torch.dtype):  # some optimisers have one among their settings
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"cannot save a state: its {name} is a {type(value).__name__}; choose another optimizer")


def _join(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "dtype" in value:
            dtype = getattr(torch, value["dtype"])
            if not isinstance(dtype, torch.dtype):
                raise DamagedCheckpoint(f"{value['dtype']!r} is no type of torch's")
            return dtype
        return {key: _join(item, tensors) for key, item in value["items"]}
    return value


def digest_of(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
