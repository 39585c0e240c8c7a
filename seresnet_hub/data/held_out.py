"""Hold out images to measure a model on, find them again, and keep it from being measured on those it learnt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from seresnet_hub.data.open_split import OnlyTrainingError, open_split
from seresnet_hub.data.split import Split, Subset
from seresnet_hub.data.units import labels_of, labels_of_units
from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.files.atomic_writing import read_json
from seresnet_hub.files.model_folder import CONFIG_NAME, FACTS_KEY

HELD_OUT = "held-out"  # the name of the part of a training split that is measured on
RECORD_KEY = "held_out"  # among the facts of config.json

log = PrintableLog(__name__)


def open_splits(
    source: str,
    train: str,
    evaluation: str | None,
    *,
    holdout: float = 0.0,
    seed: int = 0,
    cache_gb: float | None = None,
) -> tuple[Split, Split]:
    """Open the split to train on and the one to measure on.

    `evaluation=None` is validation, else test, else the share `holdout` of the training images (see `hold_out`), which
    are then not trained on. At most `cache_gb` of both together are kept (see `open_split`). Errors: as for
    `open_split`; `InputError` where there is nothing to measure on.
    """
    training = open_split(source, train, cache_gb=cache_gb)
    named = evaluation or next((name for name in ("validation", "test") if name in training.siblings), None)
    if named is not None:
        measured = open_split(source, named, cache_gb=cache_gb)
        if training.parquet is not None and measured.parquet is not None:
            training.parquet.cache.share_room_with(measured.parquet.cache)
        return training, measured
    if not holdout:
        raise InputError(
            f"data set {source!r} has neither a validation nor a test split, only {', '.join(training.siblings)}: "
            "name one with --set eval_split=NAME, or hold out a fifth of the training images with --set holdout=0.2"
        )
    return hold_out(training, holdout, seed)


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Divide a split in two, and return the rest and what is held out; reads every label once.

    Of each class `share` is held out, rounded, but at least one image where there are two or more, and never all.
    Which ones depends on the seed and the order of the rows alone. Errors: `InputError` where nothing can be held out.
    """
    labels = tuple(labels_of_units(split))
    chosen = np.zeros(split.rows, dtype=bool)
    together = np.concatenate(labels)
    for label in np.unique(together):
        rows = np.flatnonzero(together == label)
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        random_numbers = np.random.default_rng([seed, int(label) % 2**63])
        chosen[random_numbers.permutation(rows)[:count]] = True
    if not chosen.any():
        raise InputError(
            f"{split.source} has one image a class, so none can be held out to measure on: add images, or a folder of "
            "them named test"
        )
    cuts = np.cumsum(split.unit_rows)[:-1]

    def part(mask: np.ndarray, name: str) -> Split:
        rows = tuple(np.flatnonzero(unit) for unit in np.split(mask, cuts))
        subset = Subset(split.name, split.unit_rows, rows, labels)
        return replace(split, name=name, unit_rows=tuple(map(len, rows)), subset=subset)

    return part(~chosen, split.name), part(chosen, HELD_OUT)


def whole_of(part: Split) -> Split:
    """Return the split that `hold_out` divided, of one of its parts."""
    assert part.subset is not None
    return replace(part, name=part.subset.whole_name, unit_rows=part.whole_unit_rows, subset=None)


def record_of(part: Split, *, share: float, seed: int, corrupt_share: float) -> dict[str, Any]:
    """Return what a model folder records of `part`, the images that `hold_out` chose by `share` and `seed`.

    `corrupt_share` is how many of them could be undecodable.
    """
    assert part.subset is not None
    return {"split": part.subset.whole_name, "holdout": share, "seed": seed, "images": part.rows,
            "corrupt_share": corrupt_share,
            "of": sum(part.whole_unit_rows),
            "fingerprint": _fingerprint(whole_of(part), np.concatenate(part.subset.labels))}  # fmt: skip


def allowed_damage(model: nn.Module, split: Split) -> float:
    """Return the share of a split's images that may be undecodable when `model` is measured on it.

    None may be, but of held-out images those that were left out when it was measured at first.
    """
    record = recorded(model) if split.name == HELD_OUT else None
    share = (record or {}).get("corrupt_share", 0.0)
    return float(share) if isinstance(share, int | float) and 0 <= share <= 1 else 0.0


def learnt_before(start: Mapping[str, Any], part: Split, *, share: float, seed: int) -> str:
    """Return a warning, or "", if the weights may have learnt images of `part`.

    They held out other images if data, share or seed differ. `start` is timm's config of the weights.
    """
    record = _record_in(start)
    if record is None or part.subset is None:
        return ""
    now = record_of(part, share=share, seed=seed, corrupt_share=0.0)
    if all(record.get(key) == now[key] for key in ("holdout", "seed", "fingerprint")):
        return ""
    return (
        "The starting weights were trained on a collection of their own, with other images held out: as far as it "
        "holds the same pictures, some of those that are measured here were learnt there, and the accuracy is too high"
    )


def recorded(model: nn.Module) -> dict[str, Any] | None:
    """Return what is recorded of the model's held-out images (see `record_of`), `None` where nothing is.

    That is in its folder, or in the exported file that it is.
    """
    return _record_in(getattr(model, "pretrained_cfg", None) or {})


def without_held_out(model: nn.Module, split: Split) -> Split:
    """Return the images of a split that `model` may have learnt: all but those that were held out from this very one.

    Errors: `InputError` where its record does not say how they were held out.
    """
    record = recorded(model)
    if record is None or split.name != record.get("split") or not split.label_column or not _is_recorded(split, record):
        return split
    then = _parsed(record)
    return hold_out(split, then.share, then.seed)[0]


def _record_in(config: Mapping[str, Any]) -> dict[str, Any] | None:
    if isinstance(given := config.get(RECORD_KEY), dict):  # of an exported file
        return given
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
    if split == HELD_OUT:
        return _held_out_before(source, record, label_column)
    try:
        opened = open_split(source, split, label_column=label_column, label_lists=label_lists)
    except OnlyTrainingError as error:
        if record is None:
            raise
        name = record.get("split")
        if _is_recorded(open_split(source, str(name), label_column=label_column), record):
            raise _only_trained_on(source, record) from error
        raise InputError(
            f"data set {source!r} has only the split {name!r}, and it is not the data that this model was trained on, "
            f"or has changed since: --split {name} measures all of it, with pictures among them that the model may "
            "have learnt"
        ) from error
    if record is not None and opened.name == record.get("split") and _is_recorded(opened, record):
        if split is None:
            raise _only_trained_on(source, record)
        log.warning(
            "%s of the %s images of %s were held out when this model was trained, and it has learnt the others: the "
            "accuracy is too high", record.get("images"), f"{opened.rows:,}", source,
        )  # fmt: skip
    return opened


def _held_out_before(source: str, record: Mapping[str, Any] | None, label_column: str | None) -> Split:
    """Return the images of `source` that were held out when the model of this record was trained."""
    if record is None:
        raise InputError(
            f"--split {HELD_OUT}: the model does not record that images were held out; name another split, "
            "such as --split train"
        )
    then = _parsed(record)
    whole = open_split(source, then.split, label_column=label_column)
    if not _is_recorded(whole, record):
        same_count = whole.rows == then.of
        now = (
            f"{then.of:,} images, not the same" if same_count else f"it has {whole.rows:,} images now, {then.of:,} then"
        )
        raise InputError(
            f"{source} is not the data that {then.images:,} images were held out from, or has changed since ({now}): "
            "which of them were not trained on is not known; name another split, such as --split train"
        )
    return hold_out(whole, then.share, then.seed)[1]


class _HeldOut(NamedTuple):
    """What a record says: of how many images of a split how many were held out, and by which share and seed."""

    split: str
    share: float
    seed: int
    images: int
    of: int


def _parsed(record: Mapping[str, Any]) -> _HeldOut:
    """Return what a record says. Errors: `InputError` where it lacks something, or that is wrong."""
    try:
        found = _HeldOut(
            split=str(record["split"]), share=float(record["holdout"]), seed=int(record["seed"]),
            images=int(record["images"]), of=int(record["of"]),
        )  # fmt: skip
        _ = record["fingerprint"]
        if not 0 < found.share < 1 or found.seed < 0:
            raise ValueError(f"a share of {found.share} by the seed {found.seed}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the model's record does not say how images were held out: {error}") from error
    return found


def _only_trained_on(source: str, record: Mapping[str, Any]) -> InputError:
    return InputError(
        f"data set {source!r} has only the split {record.get('split')!r}, which this model was trained on but for "
        f"{record.get('images')} images: --split {HELD_OUT} measures these, --split {record.get('split')} all"
    )


def _is_recorded(whole: Split, record: Mapping[str, Any]) -> bool:
    """Return whether this is the very split that images were held out from."""
    if whole.right_classes is not None or whole.rows != record.get("of"):
        return False
    return _fingerprint(whole, labels_of(whole)) == record.get("fingerprint")


def _fingerprint(split: Split, labels: np.ndarray) -> str:
    """Return a hash of what decides which images are held out, and of their files' names and sizes.

    Times of change are left out, so that a copy of a folder is the same data.
    """
    digest = hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
    folders = split.class_folders
    files = folders.names_and_sizes() if folders else [(shard.name, shard.size) for shard in split.shards]
    text = json.dumps([split.unit_rows, digest, files, split.class_names])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
