"""Fetch published weights, check their bytes, and hand them to timm as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from seresnet_hub.checkpoints.key_maps import find_source
from seresnet_hub.checkpoints.reader import read_checkpoint
from seresnet_hub.checkpoints.renaming import rename
from seresnet_hub.checkpoints.safetensors_headers import read_header
from seresnet_hub.errors import InputError, message_of
from seresnet_hub.files.atomic_writing import read_json, replacing, sha256_of
from seresnet_hub.files.model_folder import CONFIG_NAME, FACTS_KEY, WEIGHTS_NAME
from seresnet_hub.hub.snapshots import take_snapshot
from seresnet_hub.models.network_for_tensors import builder, require_fit, without_memory
from seresnet_hub.models.published_weights import OwnWeights, Weights

NAMESPACE_VARIABLE = "SERESNET_HUB_NAMESPACE"
HUB_NAMESPACE: str | None = None  # none is owned yet, and a name that anybody could take must not be trusted


class VerifiedFile(os.PathLike[str]):
    """The path of a set of weights that is made when it is opened: fetched, verified, converted; own ones verified.

    timm opens a pretrained config's `file` when, and only when, it loads the weights.
    """

    def __init__(self, weights: Weights | OwnWeights) -> None:
        self.weights = weights

    def __fspath__(self) -> str:
        return str(fetch(self.weights) if isinstance(self.weights, Weights) else own_file(self.weights))

    def __str__(self) -> str:  # timm reads the format from the ending
        return f"{self.weights.name}.safetensors"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifiedFile) and other.weights == self.weights

    def __hash__(self) -> int:
        return hash(self.weights)


def own_file(weights: OwnWeights) -> Path:
    """Return the safetensors file of weights that come with the package; `InputError` where its bytes are others."""
    path = weights.folder / WEIGHTS_NAME
    wanted = read_json(weights.folder / CONFIG_NAME)[FACTS_KEY]["sha256"][WEIGHTS_NAME]
    try:
        found = sha256_of(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; install the package again") from error
    if found != wanted:
        raise InputError(f"{path} has sha256 {found[:16]}…, not {wanted[:16]}…: install the package again")
    return path


@cache
def fetch(weights: Weights) -> Path:
    """Return a safetensors file of `weights` under timm's names, once a process.

    Tried in this order: the Hub namespace, where one is set (`SERESNET_HUB_NAMESPACE`), as every Hub file is fetched:
    its bytes compared with the hash that the Hub gives, its tensors with the architecture's; the original file, in
    `torch.hub`'s checkpoint folder or from its server, checked against the sha256 in its name and converted. Errors:
    `InputError` says what was tried and why it failed.
    """
    tried: list[str] = []
    namespace = os.environ.get(NAMESPACE_VARIABLE) or HUB_NAMESPACE
    if namespace:
        repository = f"{namespace}/{weights.name}"
        try:
            downloaded = take_snapshot(repository, None, names=(WEIGHTS_NAME,)).paths[WEIGHTS_NAME]
            shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in read_header(downloaded).items()}
            _require_fit(shapes, weights)
            return downloaded
        except Exception as error:  # safetensors raises its own
            tried.append(f"{repository} on the Hub ({message_of(error)})")
    cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])
    try:
        if not cached.is_file():
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(cached), hash_prefix=weights.sha256_prefix)
        original = read_checkpoint(cached, sha256_prefix=weights.sha256_prefix)
    except Exception as error:  # urllib, the socket and the disk each raise their own
        tried.append(f"{weights.url} ({message_of(error)})")
        raise InputError(
            f"cannot get the weights {weights.name}: tried {' and '.join(tried)}. If you have the original file, "
            f"put it at {cached}"
        ) from error
    try:
        converted, _ = rename(find_source(original.tensors, "mmpretrain"), original.tensors)
        _require_fit(converted, weights)
    except InputError as error:
        raise InputError(f"{cached} from {weights.url}: {error}") from error
    # Converted anew by each process, so that only bytes whose hash was just checked are ever loaded.
    target = cached.with_suffix(".safetensors")
    metadata = {"format": "pt", "source_url": weights.url, "source_sha256": original.sha256}
    with replacing(target) as temporary:
        save_file({name: converted[name].contiguous() for name in sorted(converted)}, temporary, metadata=metadata)
    return target


def _require_fit(tensors: Mapping[str, torch.Tensor], weights: Weights) -> None:
    """Raise `InputError` unless the tensors are exactly those of the architecture as it was published.

    timm loads without strictness where the number of classes differs or only features are wanted, so that a file of
    other tensors would leave the network random, in part or whole.
    """
    require_fit(tensors, without_memory(builder(weights.architecture, weights.name), {}), weights.architecture)
