"""Say of a converted file what is known, and from where: its licence, its preprocessing, and what had to be assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models import PretrainedCfg

from seresnet_hub.checkpoints.key_maps import Preprocessing, Source
from seresnet_hub.files.model_folder import FACTS_KEY, WEIGHTS_NAME
from seresnet_hub.models.weights import Weights

ASSUMED_PLAIN = (
    "the file names no architecture: the usual network of its shapes is assumed, without what shapes do not show "
    "(anti-aliasing, dilation, other strides, another BN eps)"
)
# The networks whose published files a conversion may meet: SE-ResNets, and plain ones as an initialisation.
PUBLISHED = ("*resne*t*", "*senet*")
TIMMS_OLD_NAME = "pytorch_model.bin"
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct")


def published_file(sha256: str) -> PretrainedCfg | None:
    """Return timm's record of the published file with this hash, whose first digits its name ends with, if it has one.

    Among them are the files of Cadene and torchvision that timm names. Source: timm's pretrained configurations.
    """
    for name in timm.list_pretrained(list(PUBLISHED)):
        config = timm.get_pretrained_cfg(name)
        digits = re.search(r"-([0-9a-f]{8,})\.pth$", config.url if config and isinstance(config.url, str) else "")
        if digits and sha256.startswith(digits.group(1)):
            return config
    return None


def licence_of(
    given: str | None, kind: Source, known: Weights | None, published: PretrainedCfg | None,
    sibling: Mapping[str, Any] | None, address: str,
) -> str:  # fmt: skip
    """Return the licence of the weights: the one given by hand, else what somebody has said of this very file, else "".

    That is the record of the published file with its hash, the config beside it, or the address of the code base's own
    publications; what wrote a file says nothing of who owns it.
    """
    config = sibling or {}
    facts, cfg = (config.get(key) for key in (FACTS_KEY, "pretrained_cfg"))
    named = (table.get("license") for table in (facts, cfg) if isinstance(table, dict))
    stated = (given, known and known.license, published and published.license, *named)
    if license := next((str(license) for license in stated if license), ""):
        return license
    return kind.license if address.startswith(kind.published_at or ("\n",)) else ""


def describes(config: Mapping[str, Any], file_name: str, sha256: str) -> bool:
    """Return whether what a `config.json` states, such as licence and accuracy, is of this file beside it.

    A folder may hold other weights as well. Where no hash is recorded, they are those that timm loads from a folder.
    """
    facts = config.get(FACTS_KEY)
    hashes = facts.get("sha256") if isinstance(facts, dict) else None
    if isinstance(hashes, dict):
        return hashes.get(file_name) == sha256
    return file_name in (WEIGHTS_NAME, TIMMS_OLD_NAME)


def stated_preprocessing(published: PretrainedCfg | None) -> Preprocessing | None:
    if published is None:
        return None
    return Preprocessing(**{name: getattr(published, name) for name in PREPROCESSING})


def assumed_preprocessing(config: Mapping[str, Any], sibling: Mapping[str, Any] | None) -> str:
    """Return, as text, the preprocessing in `config` that the config beside the weights, if any, does not name."""
    said = (sibling or {}).get("pretrained_cfg") or {}
    cfg = config["pretrained_cfg"]
    texts = {
        "input_size": f"images of {' x '.join(map(str, cfg['input_size'][1:]))}",
        "mean": f"mean {tuple(cfg['mean'])}",
        "std": f"std {tuple(cfg['std'])}",
        "interpolation": f"{cfg['interpolation']} interpolation",
        "crop_pct": f"crop_pct {cfg['crop_pct']:g}",
    }
    missing = [texts[name] for name in PREPROCESSING if not said.get(name)]
    return f"nothing says how images were prepared: {', '.join(missing)} are assumed" if missing else ""


def untrained(fresh: Sequence[str]) -> str:
    """Return the sentence on a model's new tensors, "" where there are none."""
    units = len({name.partition(".se.")[0] for name in fresh if ".se." in name})
    parts = [f"{units} SE units"] * bool(units) + ["the classifier"] * any(".se." not in name for name in fresh)
    verb = "is" if parts == ["the classifier"] else "are"
    return f"{' and '.join(parts)} {verb} new and untrained: fine-tune before use" if parts else ""
