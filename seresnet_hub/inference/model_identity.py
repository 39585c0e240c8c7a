"""Which model made a result, that others can compare: its name, hashes of its weights, how it prepares pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from seresnet_hub.engines.exported_model import ExportedModel
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.files.model_folder import WEIGHTS_NAME
from seresnet_hub.hub.snapshots import take_snapshot
from seresnet_hub.models.load import MODEL_FILES
from seresnet_hub.models.names import parse_name
from seresnet_hub.models.pretrained import VerifiedFile
from seresnet_hub.models.strict_loading import STEP_COUNT


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model it is: two with the same `architecture` and `tensors_sha256` compute the same.

    `model` is the name it was loaded by. `sha256` is that of its file of weights, as `sha256sum` and the Hub show it,
    and `commit` the Hub's; both are None for a model that was made in Python. `tensors_sha256` is a hash of the tensors
    themselves, before they are fused, with their names and shapes, whatever file they come from. An exported file has
    the hashes of the network that it was made from.
    """

    model: str
    architecture: str
    tensors_sha256: str
    sha256: str | None = None
    commit: str | None = None


def model_identity(model: nn.Module, name: str | Path | None = None) -> ModelIdentity:
    """Return which model it is; `name` is what it was loaded by, with the weights that are there under this name.

    Errors: `InputError` as for `load`.
    """
    if isinstance(model, ExportedModel):
        facts = model.facts
        return ModelIdentity(
            model=model.name if name is None else str(name), architecture=facts.architecture,
            tensors_sha256=facts.tensors_sha256, sha256=facts.sha256, commit=model.commit,
        )  # fmt: skip
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    architecture = str(config.get("architecture") or type(model).__name__)
    file, commit = (None, None) if name is None else _weights_file(name)
    return ModelIdentity(
        model=architecture if name is None else str(name), architecture=architecture,
        tensors_sha256=tensors_sha256(model), sha256=None if file is None else sha256_of(file), commit=commit,
    )  # fmt: skip


def tensors_sha256(model: nn.Module) -> str:
    """Return the sha256 of a model's tensors in the order of their names: name, type, shape and bytes of each.

    Of an exported file, it is that of the network that it was made from.
    """
    if isinstance(model, ExportedModel):
        return model.facts.tensors_sha256
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith(STEP_COUNT):  # nothing is computed with it, and files may lack it
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def engine_of(model: nn.Module) -> dict[str, Any]:
    """Return what computes an exported file, its precision, whether it was fused, its hashes; of others nothing.

    Two int8 exports of one network differ in their hashes alone.
    """
    if not isinstance(model, ExportedModel):
        return {}
    facts, hashes = model.facts, dict(model.record.sha256)
    return {"engine": facts.format, "precision": facts.precision, "fused": facts.fused, "exported_sha256": hashes}


def preparation_of(model: nn.Module) -> dict[str, Any]:
    """Return how a model's config prepares pictures, as JSON has it."""
    config = timm.data.resolve_model_data_config(model)
    names = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
    return {name: list(value) if isinstance(value := config[name], tuple) else value for name in names}


def _weights_file(name: str | Path) -> tuple[Path | None, str | None]:
    """Return the file that `load` takes the weights of this name from, and its commit if it came from the Hub."""
    meant = parse_name(name)
    if meant.folder is not None:
        return meant.folder / WEIGHTS_NAME, None
    repository = meant.repo_id
    names: tuple[str, ...] = MODEL_FILES
    if not repository:
        config = timm.get_pretrained_cfg(meant.name)
        if config is None or isinstance(config.file, VerifiedFile):
            return (None if config is None else Path(config.file)), None
        repository, names = config.hf_hub_id or "", (WEIGHTS_NAME,)
    if not repository:
        return None, None
    snapshot = take_snapshot(repository, meant.revision, names=names, check=False)
    return snapshot.paths[WEIGHTS_NAME], snapshot.commit
