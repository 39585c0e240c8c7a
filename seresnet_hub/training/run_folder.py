"""Write what a training run gives: the model folder, its history, and the facts that its card says."""

from __future__ import annotations

import copy
import csv
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import nn

from seresnet_hub.cards.card import NO_TOP5, card_of, render
from seresnet_hub.cards.markdown import code, plain
from seresnet_hub.data.held_out import RECORD_KEY, record_of
from seresnet_hub.data.open_split import public_name
from seresnet_hub.data.split import Split
from seresnet_hub.environment import code_commit, hardware, package_version, versions
from seresnet_hub.evaluation.evaluate import Accuracy
from seresnet_hub.evaluation.majority_baseline import Chance
from seresnet_hub.files.atomic_writing import filling, replacing
from seresnet_hub.files.locks import require_held
from seresnet_hub.files.model_folder import CURVES_NAME, FACTS_KEY, SUMMARY_NAME, timm_config, write_model
from seresnet_hub.models.cost import sizes_of
from seresnet_hub.models.create import list_models
from seresnet_hub.models.load import Origin
from seresnet_hub.plots import draw_curves
from seresnet_hub.recipes.field_types import described
from seresnet_hub.recipes.recipe import RECIPES, Recipe
from seresnet_hub.training.progress import Row
from seresnet_hub.training.start_or_resume import BEST, BEST_RAW, RAW


def save_run(
    output: Path, model: nn.Module, class_names: tuple[str, ...] | None, facts: dict[str, Any],
    history: Sequence[Row], curves: bytes,
) -> None:  # fmt: skip
    """Write a model folder with the run's history and its curves (see `drawn_curves`); a new one appears whole.

    Errors: `InputError` where the run's folder is gone, or it cannot be written.
    """
    require_held(output)
    sizes = sizes_of(copy.deepcopy(model).to("meta").eval(), model.pretrained_cfg["input_size"])  # type: ignore[arg-type, index]

    def card(config: Mapping[str, Any]) -> str:
        needs_plugin = config["architecture"] in list_models()
        return render(card_of(config, sizes, needs_plugin=needs_plugin, has_curves=True))

    with filling(output) as folder:
        config = {**timm_config(model, pretrained_cfg={}, label_names=class_names), FACTS_KEY: facts}
        write_model(folder, model.state_dict(), config=config, card=card)
        with replacing(folder / SUMMARY_NAME) as temporary:
            write_summary(history, temporary)
        with replacing(folder / CURVES_NAME) as temporary:
            temporary.write_bytes(curves)


def drawn_curves(history: Sequence[Row], num_classes: int) -> bytes:
    """Return the history as a PNG; drawing takes longer than writing a small model, so it is done once for all."""
    file = BytesIO()
    draw_curves(history, file, top5=num_classes > NO_TOP5)
    return file.getvalue()


def write_summary(history: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV, in the manner of timm's summary; what was not measured is empty."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(history)


AUTOCAST_NAMES = {"bf16": "bfloat16", "fp16": "float16"}
# What is said of the weights in a folder beside the last ones.
KINDS = {
    "": "",
    BEST: " The best epoch so far, chosen by the accuracy below: expect less on other images.",
    RAW: " The weights themselves, not their moving average.",
    BEST_RAW: " The best epoch so far of the weights themselves, not their moving average, chosen by the accuracy "
    "below: expect less on other images.",
}


def facts_of_run(
    recipe: Recipe, source: str, accuracy: Accuracy, *, split: Split, origin: Origin | None, step: int, steps: int,
    seen: int, world_size: int, asked: Recipe, max_steps: int | None = None, kind: str = "",
    chance: Chance | None = None, learnt_before: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return what the card and `config.json` say of these weights, after `step` of the recipe's `steps`.

    `asked` is the recipe before it was resolved, `learnt_before` what `held_out.learnt_before` says.
    """
    data = public_name(source)
    is_hub_id = "/" in data
    notes, begun = [], ""
    if origin is not None:
        begun = f" from {code(origin.name)}"
        recipe, asked = (dataclasses.replace(one, weights=origin.name) for one in (recipe, asked))
    if split.subset is not None:
        notes.append(
            f"Its accuracy was measured on {accuracy.seen:,} images held out from the same collection it was trained "
            f"on ({100 * recipe.holdout:g} % of each class); pictures from elsewhere may fare worse."
        )
    elif split.name == recipe.train_split:
        notes.append("Its accuracy was measured on the images that it was trained on, and says nothing of others.")
    if accuracy.precision != "no":
        notes.append(
            f"Its accuracy was measured under autocast in {AUTOCAST_NAMES[accuracy.precision]}; in float32 it may be "
            "another by a few images."
        )
    if learnt_before:
        notes.append(f"{learnt_before}.")
    if chance is not None and (doubt := chance.doubt(accuracy.top1)):
        notes.append(f"There is no evidence that it learnt anything: {plain(doubt)}.")
    named = data if source != RECIPES.get(recipe.name, recipe).data else None
    command, commit = _command(asked, named, max_steps, world_size), code_commit()
    done = f"{step:,} steps" if step == steps else f"{step:,} of its {steps:,} steps"
    fields = dataclasses.asdict(recipe)
    record = None
    if split.subset is not None:
        record = record_of(split, share=recipe.holdout, seed=recipe.seed, corrupt_share=recipe.corrupt_share)
    return {
        "title": f"{recipe.model}, trained on {data}",
        "summary": f"{code(recipe.model)} trained{begun} by the recipe {code(recipe.name)}: {done}, {seen:,} images."
        + KINDS[kind],
        "license": recipe.license or (origin.license if origin else "apache-2.0"),
        "base_model": origin.repo_id if origin else "",
        "notes": notes,
        **({RECORD_KEY: record} if record else {}),
        "datasets": [source] if is_hub_id else [],
        "results": [{
            "dataset": data, "dataset_id": source if is_hub_id else "", "split": split.name,
            "top1": accuracy.top1, "top5": accuracy.top5, "image_size": recipe.eval_size or recipe.input_size,
            "origin": "measured",
            "source": command, "images": accuracy.seen, "commit": commit,
        }],
        **_per_class(accuracy),
        "recipe": {name: str(value) for name, value in fields.items() if name not in ("license", "data")},
        "command": command,
        "provenance": {
            "trained by": package_version(), **({"commit": commit} if commit else {}),
            **({"starting weights": origin.name, "licence of the starting weights": origin.license or "not named"}
               if origin else {}),
            "processes": str(world_size), "hardware": hardware(), **versions(),
        },
    }  # fmt: skip


def _per_class(accuracy: Accuracy) -> dict[str, dict[str, list[int]]]:
    if accuracy.class_counts is None:
        return {}
    images, correct = accuracy.class_counts.T.tolist()
    return {"per_class": {"images": images, "correct": correct}}


def _command(recipe: Recipe, data: str | None, max_steps: int | None, world_size: int) -> str:
    """Return the command that trains `recipe` again: its name, and each field that differs from the table's."""
    launcher = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(world_size), "-m", "seresnet_hub"]
    words = [*(launcher if world_size > 1 else ["seresnet-hub"]), "train", "--recipe"]
    words += [recipe.name if recipe.name in RECIPES else f"{recipe.name}.toml"]
    words += ["--data", data] if data else []
    words += ["--max-steps", str(max_steps)] if max_steps else []
    original = RECIPES.get(recipe.name)
    for row in described(recipe) if original is not None else ():
        name = row["field"]
        if name not in ("name", "data") and getattr(recipe, name) != getattr(original, name):
            words += ["--set", f"{name}={row['value']}"]
    return shlex.join(words)
