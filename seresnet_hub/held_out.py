"""Find again the images that a model was measured on, and keep a model from being measured on those it learnt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.folder import CONFIG_NAME, FACTS_KEY, read_json
from seresnet_hub.splits import HELD_OUT, OnlyTrainingError, Split, hold_out, labels_of, open_split, whole_of

RECORD_KEY = "held_out"  # among the facts of config.json


def record_of(part: Split, *, share: float, seed: int) -> dict[str, Any]:
    """Return what a model folder records of `part`, the images that `hold_out` chose by `share` and `seed`."""
    assert part.kept is not None
    return {"split": part.kept.split, "holdout": share, "seed": seed, "images": part.rows,
            "of": sum(part.kept.unit_rows),
            "fingerprint": _fingerprint(whole_of(part), np.concatenate(part.kept.labels))}  # fmt: skip


def recorded(model: nn.Module) -> dict[str, Any] | None:
    """Return what the model's folder records of its held-out images (see `record_of`), `None` where it does not."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    folder = config.get("file")  # timm keeps there where a model folder lies
    if not isinstance(folder, str) or not (path := Path(folder, CONFIG_NAME)).is_file():
        return None
    facts = read_json(path).get(FACTS_KEY)
    record = facts.get(RECORD_KEY) if isinstance(facts, dict) else None
    return record if isinstance(record, dict) else None


def split_for(
    model: nn.Module, source: str, split: str | None = None, *, label_column: str | None = None,
    label_lists: bool = False,
) -> Split:  # fmt: skip
    """Open the split of `source` to measure `model` on: as `open_split`, and "held-out" is what was held out from it.

    Errors: as for `open_split`; `InputError` where "held-out" is asked for and the model records none, or `source` is
    no longer the data that it was held out from.
    """
    record = recorded(model)
    if split != HELD_OUT:
        try:
            opened = open_split(source, split, label_column=label_column, label_lists=label_lists)
        except OnlyTrainingError:
            if record is None:
                raise
        else:
            if split is not None or record is None or opened.name != record.get("split"):
                return opened
        raise InputError(
            f"data set {source!r} has only the split {record.get('split')!r}, which this model was trained on but for "
            f"{record.get('images')} images: --split {HELD_OUT} measures these, --split {record.get('split')} all"
        )
    if record is None:
        raise InputError(
            f"--split {HELD_OUT}: the model does not record that images were held out; name another split, "
            "such as --split train"
        )
    try:
        name, share, seed = str(record["split"]), float(record["holdout"]), int(record["seed"])
        images, of, fingerprint = int(record["images"]), int(record["of"]), str(record["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the model's {CONFIG_NAME} does not say how images were held out: {error}") from error
    whole = open_split(source, name, label_column=label_column)
    if _fingerprint(whole, labels_of(whole)) != fingerprint:
        now = f"it has {whole.rows:,} images now, {of:,} then" if whole.rows != of else f"{of:,} images, not the same"
        raise InputError(
            f"{source} is not the data that {images:,} images were held out from, or has changed since ({now}): which "
            "of them were not trained on is not known; name another split, such as --split train"
        )
    return hold_out(whole, share, seed)[1]


def _fingerprint(split: Split, labels: np.ndarray) -> str:
    """Return a hash of what decides which images are held out, and of their files' names and sizes.

    Times of change are left out, so that a copy of a folder is the same data.
    """
    digest = hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
    files = [(shard.name, shard.size) for shard in split.shards]
    text = json.dumps([split.unit_rows, digest, files, split.class_names])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
