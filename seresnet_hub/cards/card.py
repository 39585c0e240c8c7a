"""Render model cards: text made of facts and measured results, and of nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from seresnet_hub.cards.markdown import code, plain, prose, shell_block, table
from seresnet_hub.cards.snippets import FOLDER, Place, usage
from seresnet_hub.cards.texts import CITATIONS, IMAGENET, LIMITATIONS, LIMITED_CLASSES, NO_LICENCE
from seresnet_hub.errors import InputError, printable
from seresnet_hub.files.model_folder import CONFIG_NAME, CURVES_NAME, FACTS_KEY
from seresnet_hub.models.cost import Sizes
from seresnet_hub.models.published_weights import Weights
from seresnet_hub.recipes.recipe import Recipe

# With as many classes, a network that knows nothing has a top-5 accuracy of 100 %.
NO_TOP5 = 5
# A card lists so many classes; of more, those of the highest and the lowest accuracy.
MOST_CLASSES, MOST_EXTREME = 100, 10
# Recipe fields that say nothing of the weights, or what the card says elsewhere; those that a reader looks for even
# where they have their usual value; and those that count with some values of another field only.
UNLISTED = frozenset({"model", "data", "license", "weights", "num_classes", "eval_split", "workers", "keep_states",
                      "checkpoint_steps"})  # fmt: skip
ALWAYS_LISTED = frozenset({"optimizer", "momentum", "schedule", "seed"})
LISTED_WITH: dict[str, tuple[str, frozenset[str]]] = {
    "decay_rate": ("schedule", frozenset({"step", "staircase"})),
    "crop_padding": ("crop", frozenset({"pad"})),
    "scale": ("crop", frozenset({"resized"})),
}
DEFAULTS = {field.name: str(field.default) for field in fields(Recipe) if field.default is not MISSING}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Accuracies in percent on one split: as its authors published them (`source` is the address), or as measured here.

    A measured result's `source` is the command that measured it, `commit` the version of the code that ran it.
    """

    dataset: str
    split: str
    top1: float
    top5: float | None
    image_size: int
    origin: Literal["published", "measured"]
    source: str
    dataset_id: str = ""
    images: int | None = None
    commit: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything a card says. `notes` are what a reader must know before using the weights.

    `recipe` and `provenance` are rows of names and values. `preprocessing` holds timm's fields of that name.
    `base_model` is the repository of the weights that training began with, `curves` the path from the card to the
    picture. `class_counts` are each class's images in the first result's split, and how many of them were right.
    `place` is how the code on the card names the model. An empty `license` is one that nobody knows.
    """

    title: str
    summary: str
    architecture: str
    needs_plugin: bool
    license: str
    sizes: Sizes
    num_classes: int
    preprocessing: Mapping[str, Any]
    channels: int = 3
    datasets: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()
    notes: tuple[str, ...] = ()
    recipe: tuple[tuple[str, str], ...] = ()
    command: str = ""
    has_curves: bool = False
    curves: str = CURVES_NAME
    provenance: tuple[tuple[str, str], ...] = ()
    paper_ids: tuple[str, ...] = ()
    base_model: str = ""
    class_names: tuple[str, ...] = ()
    class_counts: tuple[tuple[int, int], ...] = ()
    place: Place = FOLDER


def render(card: Card) -> str:
    """Return the card as Markdown with YAML front matter, which huggingface_hub writes."""
    sections = [
        f"# {plain(card.title)}",
        prose(card.summary),
        *map(_note, (*card.notes, *([] if card.license else [NO_LICENCE]))),
        "## The model",
        _model_table(card),
        "## Accuracy",
        _accuracy(card),
        *_classes(card),
        "## Use",
        usage(
            card.place, num_classes=card.num_classes, named=bool(card.class_names),
            of_imagenet=IMAGENET in card.datasets and card.num_classes == 1000, needs_plugin=card.needs_plugin,
            image=(card.channels, *card.preprocessing["input_size"][1:]),
        ),
        "## Preprocessing",
        _preprocessing(card.preprocessing, card.channels),
        *_training(card),
        *(("## Provenance", table(("", ""), card.provenance)) if card.provenance else ()),
        "## Limitations and biases",
        "\n".join(f"- {line}" for line in _limitations(card)),
        "## Citation",
        CITATIONS,
    ]  # fmt: skip
    return f"---\n{_front_matter(card)}\n---\n\n" + "\n\n".join(sections) + "\n"


def published_result(weights: Weights) -> Result:
    """Return the accuracy that the authors of `weights` publish."""
    return Result(
        dataset="ImageNet-1k",
        dataset_id=IMAGENET,
        split="validation",
        top1=weights.top1,
        top5=weights.top5,
        image_size=224,
        origin="published",
        source=weights.origin_url,
    )


def card_of_weights(weights: Weights, sizes: Sizes, measured: Sequence[Result] = ()) -> Card:
    """Return the card of published weights that this package converts, with what was `measured` of them here."""
    return Card(
        title=weights.name,
        summary=f"`{weights.architecture}` with the weights that mmpretrain publishes as `{weights.source_name}`, "
        "under timm's names: the same numbers, in a file that timm loads without any other package.",
        architecture=weights.architecture,
        needs_plugin=False,
        license=weights.license,
        sizes=sizes,
        num_classes=1000,
        preprocessing={
            "input_size": (3, 224, 224),
            "mean": weights.mean,
            "std": weights.std,
            "interpolation": weights.interpolation,
            "crop_pct": weights.crop_pct,
        },
        datasets=(IMAGENET,),
        results=(published_result(weights), *measured),
        recipe=(("recipe of the authors", f"`{weights.source_name}` ({weights.origin_url})"),),
        provenance=(
            ("original file", weights.url),
            ("sha256 of the original file", f"`{weights.sha256_prefix}…`, as its name says"),
            ("licence of the original", weights.license),
        ),
        paper_ids=(weights.paper_ids,),
        place=Place(
            timm=weights.name,
            transformers='"model"',
            note=f"transformers needs a folder; `seresnet-hub convert {weights.url} --output model` writes it.",
            registered=True,
        ),
    )


def card_of(config: Mapping[str, Any], sizes: Sizes, *, needs_plugin: bool, has_curves: bool = False) -> Card:
    """Return the card of a model folder from its `config.json`, which holds the facts under the package's name.

    Errors: `InputError` names what is missing.
    """
    try:
        facts: Mapping[str, Any] = config[FACTS_KEY]
        hashes = tuple((f"sha256 of {code(name)}", code(value)) for name, value in facts["sha256"].items())
        per_class = facts.get("per_class") or {"images": (), "correct": ()}
        provenance = tuple(
            (plain(name.replace("_", " ")), plain(text))
            for name, text in facts.get("provenance", {}).items()
            if name != "assumed"  # a note says it
        )
        return Card(
            title=facts["title"],
            summary=facts["summary"],
            architecture=config["architecture"],
            needs_plugin=needs_plugin,
            license=facts.get("license", ""),
            sizes=sizes,
            num_classes=config["num_classes"],
            channels=(config.get("model_args") or {}).get("in_chans") or config["pretrained_cfg"]["input_size"][0],
            preprocessing=config["pretrained_cfg"],
            datasets=tuple(facts.get("datasets", ())),
            results=tuple(Result(**result) for result in facts.get("results", ())),
            notes=tuple(facts.get("notes", ())),
            recipe=tuple((plain(name), plain(text)) for name, text in _listed(facts.get("recipe", {}))),
            command=facts.get("command", ""),
            has_curves=has_curves,
            provenance=(*provenance, *hashes),
            paper_ids=tuple(facts.get("papers", ())),
            base_model=facts.get("base_model", ""),
            class_names=tuple(map(str, config.get("label_names") or ())),
            class_counts=tuple(zip(per_class["images"], per_class["correct"], strict=True)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{CONFIG_NAME} lacks what a card says: {error}") from error


def _listed(recipe: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the fields of a recipe that a card lists: what is not usual, and what a reader looks for in any case."""

    def is_listed(name: str, text: str) -> bool:
        if name in LISTED_WITH:
            other, values = LISTED_WITH[name]
            return recipe.get(other) in values
        return name in ALWAYS_LISTED or (name not in UNLISTED and text not in (DEFAULTS.get(name), "None"))

    return tuple(("recipe" if name == "name" else name, text) for name, text in recipe.items() if is_listed(name, text))


def _note(note: str) -> str:
    return f"> {prose(note)}" if "**" in note else f"> **{prose(note)}**"


def _front_matter(card: Card) -> str:
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=printable(card.license) or None,
        base_model=printable(card.base_model) or None,
        datasets=list(map(printable, card.datasets)) or None,
        tags=["image-classification", "timm", *_loaders(card), "se-resnet"],
        model_name=printable(card.title),
        eval_results=[line for result in card.results for line in _eval_results(result, card.num_classes)] or None,
    )
    return data.to_yaml().strip()


def _loaders(card: Card) -> list[str]:
    """Return the tags that say what else loads the model: transformers, or timm together with this package."""
    if card.needs_plugin:
        return ["seresnet_hub"]
    return ["transformers"] if card.num_classes and card.channels == 3 else []


def _top5(result: Result, num_classes: int) -> float | None:
    return result.top5 if num_classes > NO_TOP5 else None


def _eval_results(result: Result, num_classes: int) -> list[EvalResult]:
    published = result.origin == "published"
    how = {"command": printable(result.source), **({"commit": result.commit} if result.commit else {})}
    top5 = _top5(result, num_classes)
    values = [("Top-1", result.top1), *([("Top-5", top5)] if top5 is not None else [])]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=printable(result.dataset_id or result.dataset),
            dataset_name=printable(result.dataset),
            dataset_split=printable(result.split),
            metric_type="accuracy",
            metric_name=f"{name} accuracy, {result.origin} (%)",
            metric_value=round(value, 4),
            metric_args=None if published else how,
            source_name="the weights' authors" if published else None,
            source_url=printable(result.source) if published else None,
        )
        for name, value in values
    ]


def _model_table(card: Card) -> str:
    sizes = card.sizes
    return table(
        ("", ""),
        [
            ("Architecture", code(card.architecture)),
            ("Parameters (M)", f"{sizes.parameters / 1e6:.3f}"),
            ("Multiply-adds (G)", f"{sizes.multiply_adds / 1e9:.3f}"),
            ("Activations (M)", f"{sizes.activations / 1e6:.2f}"),
            ("Image size", " × ".join(map(str, card.preprocessing["input_size"][1:]))),
            ("Classes", f"{card.num_classes:,}" if card.num_classes else "none: features only"),
            ("Licence", plain(card.license) or "none known"),
            *([("Papers", ", ".join(_paper(paper) for paper in card.paper_ids))] if card.paper_ids else []),
        ],
    )


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    if not re.fullmatch(r"[\w./-]+", number):
        return plain(paper)
    return f"[arXiv {number}](https://arxiv.org/abs/{number})"


def _accuracy(card: Card) -> str:
    if not card.results:
        return "No accuracy is known for these weights: none was published for them, and none was measured."
    rows = [
        (
            plain(f"{result.dataset}, {result.split}"),
            f"{result.images:,}" if result.images else "",
            str(result.image_size),
            f"{result.top1:.2f}",
            f"{result.top5:.2f}" if result.top5 is not None else "",
            _origin(result, card.command),
        )
        for result in card.results
    ]
    header = ("data", "images", "size", "top-1 (%)", "top-5 (%)", "origin")
    if card.num_classes <= NO_TOP5:
        return table((*header[:4], header[5]), [(*row[:4], row[5]) for row in rows])
    return table(header, rows)


def _origin(result: Result, command: str) -> str:
    if result.origin == "published":
        return f"*published* by the weights' authors: {plain(result.source)}"
    how = "by the training command below" if result.source == command else f"with {code(result.source)}"
    return f"*measured* {how}" + (f" at commit {code(result.commit)}" if result.commit else "")


def _classes(card: Card) -> list[str]:
    """Return the section that names the classes, with the accuracy of each where it was measured."""
    names = card.class_names or tuple(map(str, range(len(card.class_counts))))
    if not names:
        return []
    if len(card.class_counts) != len(names):
        listed = ", ".join(map(plain, names)) + "."
        elsewhere = f"The names of the {len(names):,} classes are in `{CONFIG_NAME}`, under `label_names`."
        return ["## Classes", listed if len(names) <= MOST_CLASSES else elsewhere]

    def rows(numbers: Sequence[int]) -> list[tuple[str, str, str]]:
        counted = ((names[number], *card.class_counts[number]) for number in numbers)
        return [
            (plain(name), f"{images:,}", f"{100 * right / images:.2f}" if images else "not measured")
            for name, images, right in counted
        ]

    header = ("class", "images", "top-1 (%)")
    where = plain(f"on {card.results[0].dataset}, {card.results[0].split}") if card.results else ""
    if len(names) <= MOST_CLASSES:
        return ["## Classes", f"Top-1 accuracy of each class {where}:", table(header, rows(range(len(names))))]
    measured = [number for number, (images, _) in enumerate(card.class_counts) if images]
    ordered = sorted(measured, key=lambda number: card.class_counts[number][1] / card.class_counts[number][0])
    return [
        "## Classes",
        f"The {MOST_EXTREME} classes of the {len(names):,} with the lowest top-1 accuracy {where}:",
        table(header, rows(ordered[:MOST_EXTREME])),
        f"The {MOST_EXTREME} with the highest:",
        table(header, rows(ordered[: -MOST_EXTREME - 1 : -1])),
        f"`{CONFIG_NAME}` has all of them: names under `label_names`, images and right answers in the same order under "
        f"`{FACTS_KEY}`, `per_class`.",
    ]


def _preprocessing(cfg: Mapping[str, Any], channels: int) -> str:
    size, crop_pct = cfg["input_size"], cfg["crop_pct"]
    edge = round(size[-1] / crop_pct)
    crop = f"short edge to {edge}, centre crop of {size[-1]}" if edge != size[-1] else f"to {size[-1]}"
    mean, std = (", ".join(f"{value:.4f}" for value in cfg[name]) for name in ("mean", "std"))
    colours = "RGB" if channels == 3 else f"{channels} channel{'s' * (channels > 1)}"
    return (
        f"{colours}, resized ({cfg['interpolation']}) {crop}, values in [0, 1], minus mean ({mean}), divided by "
        f"standard deviation ({std}). timm does this from `config.json`."
    )


def _training(card: Card) -> list[str]:
    parts: list[str] = []
    if card.recipe:
        parts.append(table(("", ""), card.recipe))
    if card.command:
        parts.append(shell_block(card.command))
    if card.has_curves:
        parts.append(f"![Loss and accuracy over the course of training]({card.curves})")
    return ["## Training", *parts] if parts else []


def _limitations(card: Card) -> list[str]:
    known = [line for dataset in card.datasets for line in LIMITATIONS.get(dataset, ())]
    return known or [LIMITED_CLASSES, "Nothing is known of how it fares on pictures of another origin."]
