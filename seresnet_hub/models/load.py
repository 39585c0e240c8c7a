"""Load models by name, from weights whose every byte was checked: strictly, and never from a pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import PretrainedCfg
from torch import nn

from seresnet_hub.engines.exported_model import load_exported
from seresnet_hub.engines.exported_names import exported_name
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.files.model_folder import CARD_NAME, CONFIG_NAME, CURVES_NAME, FACTS_KEY, SUMMARY_NAME, WEIGHTS_NAME
from seresnet_hub.hub.client import licence_on_the_hub
from seresnet_hub.hub.snapshots import take_snapshot
from seresnet_hub.models.config_checks import checked_config
from seresnet_hub.models.create import create
from seresnet_hub.models.names import ModelName, parse_name, require_model_folder
from seresnet_hub.models.pretrained import VerifiedFile
from seresnet_hub.models.strict_loading import load_folder, load_weights, untrained_folder

MODEL_FILES = (CONFIG_NAME, WEIGHTS_NAME)
REQUIRED_FILES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME)
OPTIONAL_FILES = (SUMMARY_NAME, CURVES_NAME)


def load(name: str | Path, *, pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """Create the model that `name` means, in eval mode, from weights whose every byte was checked, never from a pickle.

    `name` is a timm name, a model folder (`DIR`, `local-dir:DIR`, or a `Path`), `NS/NAME[@rev]` or
    `hf-hub:NS/NAME[@rev]`, or mmpretrain's name of weights that this package has. An existing folder NS/NAME wins;
    write `hf-hub:NS/NAME` for the Hub. `onnx:DIR` and `openvino:DIR` are exported files, as a model that their runtime
    computes (`ExportedModel`), with the bytes that their record names. `kwargs` are timm's. The tensors are exactly
    those of the network that the config describes: only where `num_classes`, `in_chans` or `features_only` ask for it,
    timm makes a new classifier, adapts the stem, or leaves the classifier out. Damaged files in the cache are fetched
    once more. Without a network, what is in the cache is used. Errors: `InputError`.
    """
    if exported_name(name) is not None:
        if kwargs or not pretrained:
            raise InputError(f"{name} is an exported file: it is run as it is, and takes no options of a network")
        return load_exported(str(name))
    meant = parse_name(name)
    if not pretrained:
        return _untrained(meant, kwargs)
    if meant.folder is not None:
        require_model_folder(meant.folder)
        if file := next(unlike_recorded(meant.folder), None):
            path = meant.folder / file
            raise InputError(f"{path} is missing, damaged or exchanged: {CONFIG_NAME} records its sha256")
        return load_folder(meant.folder, meant.folder, kwargs)
    if meant.repo_id:
        snapshot = take_snapshot(meant.repo_id, meant.revision, names=MODEL_FILES)
        model = load_folder(snapshot.paths[CONFIG_NAME].parent, meant.name, kwargs)
        model.pretrained_cfg = {**model.pretrained_cfg, "hf_hub_id": snapshot.repo_id, "source": "hf-hub"}  # type: ignore[dict-item, assignment]
        return model
    cfg = _timms_config(meant.name)
    if cfg is None or not cfg.has_weights:
        return create(name, **kwargs)  # an error that timm words well
    if isinstance(cfg.file, VerifiedFile):
        return load_weights(meant.name, Path(cfg.file), kwargs)
    if not cfg.hf_hub_id:
        raise InputError(f"the weights of {meant.name} are published as a pickle only ({cfg.url}): convert them first")
    snapshot = take_snapshot(cfg.hf_hub_id, None, names=(WEIGHTS_NAME,))
    return load_weights(meant.name, snapshot.paths[WEIGHTS_NAME], kwargs)


def _untrained(meant: ModelName, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the network that the name means with random weights; a stranger's config is checked all the same."""
    directory = meant.folder
    if meant.repo_id:
        directory = take_snapshot(meant.repo_id, meant.revision, names=(CONFIG_NAME,)).paths[CONFIG_NAME].parent
    if directory is None:
        return create(meant.name, pretrained=False, **kwargs)
    return untrained_folder(directory, meant.name, kwargs)


def _timms_config(name: str) -> PretrainedCfg | None:
    return timm.get_pretrained_cfg(name) if timm.is_model(name) else None


class Origin(NamedTuple):
    """Where weights come from: a name without the folders of this machine, the Hub repository, and the licence.

    `repo_id` is empty where they are not on the Hub, `license` where none is named.
    """

    name: str
    repo_id: str
    license: str


def origin_of(name: str | Path) -> Origin:
    """Return where the weights that `load` takes under this name come from; errors as for `load`."""
    meant = parse_name(name)
    if meant.repo_id:
        snapshot = take_snapshot(meant.repo_id, meant.revision, names=MODEL_FILES)
        license = licence_in(checked_config(snapshot.paths[CONFIG_NAME]))
        return Origin(meant.name, meant.repo_id, license or licence_on_the_hub(meant.repo_id, meant.revision))
    if meant.folder is not None:
        require_model_folder(meant.folder)
        license = licence_in(checked_config(meant.folder / CONFIG_NAME))
        return Origin(f"local-dir:{meant.folder.resolve().name}", "", license)
    cfg = _timms_config(meant.name)
    return Origin(meant.name, (cfg.hf_hub_id or "") if cfg else "", (cfg.license or "") if cfg else "")


def licence_in(config: Mapping[str, Any]) -> str:
    """Return the licence that a checked `config.json` names, among our facts or timm's, "" where it names none."""
    named = (config.get(key, {}).get("license") for key in (FACTS_KEY, "pretrained_cfg"))
    return next(filter(None, named), "")


def recorded_hashes(directory: Path) -> dict[str, str]:
    """Return the sha256 that `config.json` records of the folder's files, by name."""
    hashes = checked_config(directory / CONFIG_NAME).get(FACTS_KEY, {}).get("sha256") or {}
    return {name: hashes[name] for name in (*REQUIRED_FILES, *OPTIONAL_FILES) if name in hashes}


def unlike_recorded(directory: Path, known: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the names of the files that are not there with the sha256 that `config.json` records.

    `known` are the sha256 of files that were read already.
    """
    for name, expected in recorded_hashes(directory).items():
        if not (directory / name).is_file() or ((known or {}).get(name) or sha256_of(directory / name)) != expected:
            yield name
