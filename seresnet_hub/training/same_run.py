"""Refuse to go on with another recipe or other data, and with processes that differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from accelerate.utils import gather_object
from torch import nn

from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.field_types import declarations, written
from seresnet_hub.recipes.recipe import Recipe
from seresnet_hub.training.checkpoint_checks import require_whole

# Fields that may differ between machines: these, and the names of local folders.
OF_A_MACHINE = frozenset({"data", "weights", "workers", "license", "keep_states", "cache_gb"})
# Fields that do not change what is learnt, but for rounding.
NOT_LEARNT = OF_A_MACHINE | {
    *("checkpoint_steps", "eval_every", "save_every", "eval_precision", "corrupt_share"),
    *("compile", "inductor", "se_blocks", "grad_checkpointing"),
}
# What a checkpoint that is older than a field was trained with.
DEFAULTS = json.loads(
    json.dumps({f.name: f.default for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING})
)


def settings_of(recipe: Recipe, split: Split, *, but: frozenset[str] = NOT_LEARNT) -> str:
    """Return, as JSON, what must be the same for a run to go on as the same run: the recipe and the data's shape."""
    settings = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in but}
    rows = hashlib.sha256(json.dumps(split.unit_rows).encode()).hexdigest()[:16]
    return json.dumps({**settings, "training_images": split.rows, "shards": rows, "classes": split.class_names})


def require_same_run(checkpoint: Mapping[str, Any], wanted: str, total_steps: int) -> None:
    """Raise `InputError` where a checkpoint is of other settings than `wanted`, or of another version of this code."""
    saved = {**DEFAULTS, **require_whole(checkpoint)}
    changed = {key: value for key, value in json.loads(wanted).items() if saved.get(key) != value}
    if changed:
        differences = "; ".join(
            f"{key} was {reprlib.repr(saved.get(key))}, now {value!r}" if key != "shards" else "the shards are others"
            for key, value in changed.items()
        )
        raise InputError(
            f"cannot resume with another recipe or other data: {differences}; {_way_back(saved, changed)}another run "
            "needs another --output"
        )
    if not 0 <= checkpoint["step"] <= total_steps:
        raise InputError(f"cannot resume: the state is at step {checkpoint['step']:,} of a run of {total_steps:,}")


def _way_back(saved: Mapping[str, Any], changed: Iterable[str]) -> str:
    """Say how to go on as before, where fields of the recipe alone differ."""
    fields = declarations(Recipe).keys() - {"name"}
    if not fields.issuperset(changed):
        return ""
    values = {key: tuple(saved[key]) if isinstance(saved[key], list) else saved[key] for key in changed}
    texts = (shlex.quote(f"{key}={written(value, declarations(Recipe)[key].word)}") for key, value in values.items())
    return f"to go on with it, add --set {' '.join(texts)}; "


def require_same_run_everywhere(recipe: Recipe, split: Split, last_step: int) -> None:
    """Raise `InputError` on every process where one was started with another recipe or reads other data."""
    names = json.dumps([(shard.name, shard.size) for shard in split.shards])
    files = f"{len(split.shards)} ({hashlib.sha256(names.encode()).hexdigest()[:12]}, by names and sizes)"
    settings = json.loads(settings_of(recipe, split, but=OF_A_MACHINE))
    runs = gather_object([{**settings, "files": files, "last step": last_step}])
    for number, run in enumerate(runs):
        for key, value in run.items():
            if value != runs[0].get(key):
                raise InputError(
                    f"process {number} has {key} {reprlib.repr(value)}, process 0 {reprlib.repr(runs[0].get(key))}: "
                    "start all machines with the same command, on the same data"
                )


def require_same_weights_everywhere(model: nn.Module) -> None:
    """Raise `RuntimeError` where the processes hold different weights or buffers, by their sha256."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digests = gather_object([digest.hexdigest()])
    if len(set(digests)) != 1:
        raise RuntimeError(f"the processes have drifted apart: {digests}")
