"""Render model cards: text made of facts and measured results, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from seresnet_hub.errors import InputError
from seresnet_hub.folder import CONFIG_NAME, CURVES_NAME, FACTS_KEY
from seresnet_hub.sizes import Sizes
from seresnet_hub.weights import Weights

# Stands for the repository in a card that is not published yet; pushing puts the real name there.
REPO_ID = "NAMESPACE/NAME"
IMAGENET = "ILSVRC/imagenet-1k"

# What is known of a data set and carries over to every model trained on it.
LIMITATIONS: dict[str, tuple[str, ...]] = {
    IMAGENET: (
        "It knows ImageNet-1k's 1,000 classes and nothing else: it names one of them for any picture, and its scores "
        "are not calibrated probabilities.",
        "ImageNet's photographs come from the web, mostly from North America and Europe (arXiv 1711.08536): objects, "
        "people and places from elsewhere are recognised less well.",
        "Some of ImageNet's validation labels are wrong or name one of several objects in the picture (arXiv "
        "2006.07159), so differences of a few tenths of a percent mean little.",
        "ImageNet's pictures are licensed for non-commercial research; the licence above is that of the weights.",
        "Do not use it to judge people: several classes are correlated with people's looks and clothes.",
    )
}  # fmt: skip
LIMITED_CLASSES = "It knows the classes it was trained on and nothing else: it names one of them for any picture."

CITATIONS = """```bibtex
@inproceedings{hu2018senet,
  title = {Squeeze-and-Excitation Networks},
  author = {Hu, Jie and Shen, Li and Sun, Gang},
  booktitle = {CVPR},
  year = {2018},
  eprint = {1709.01507}
}
@misc{wightman2019timm,
  title = {PyTorch Image Models},
  author = {Wightman, Ross},
  year = {2019},
  doi = {10.5281/zenodo.4414861}
}
```"""


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
    picture.
    """

    title: str
    summary: str
    architecture: str
    needs_plugin: bool
    license: str
    sizes: Sizes
    num_classes: int
    preprocessing: Mapping[str, Any]
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


def render(card: Card) -> str:
    """Return the card as Markdown with YAML front matter, which huggingface_hub writes."""
    sections = [
        f"# {card.title}",
        card.summary,
        *(f"> **{note}**" for note in card.notes),
        "## The model",
        _model_table(card),
        "## Accuracy",
        _accuracy(card.results),
        "## Use",
        _usage(card),
        "## Preprocessing",
        _preprocessing(card.preprocessing),
        *_training(card),
        *(("## Provenance", table(("", ""), card.provenance)) if card.provenance else ()),
        "## Limitations and biases",
        "\n".join(f"- {line}" for line in _limitations(card)),
        "## Citation",
        CITATIONS,
    ]
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
    )


def card_of(config: Mapping[str, Any], sizes: Sizes, *, needs_plugin: bool, has_curves: bool = False) -> Card:
    """Return the card of a model folder from its `config.json`, which holds the facts under the package's name.

    Errors: `InputError` names what is missing.
    """
    try:
        facts: Mapping[str, Any] = config[FACTS_KEY]
        hashes = tuple((f"sha256 of `{name}`", f"`{value}`") for name, value in facts["sha256"].items())
        provenance = tuple((name.replace("_", " "), text) for name, text in facts.get("provenance", {}).items())
        return Card(
            title=facts["title"],
            summary=facts["summary"],
            architecture=config["architecture"],
            needs_plugin=needs_plugin,
            license=facts.get("license", ""),
            sizes=sizes,
            num_classes=config["num_classes"],
            preprocessing=config["pretrained_cfg"],
            datasets=tuple(facts.get("datasets", ())),
            results=tuple(Result(**result) for result in facts.get("results", ())),
            notes=tuple(facts.get("notes", ())),
            recipe=tuple((name, text) for name, text in facts.get("recipe", {}).items()),
            command=facts.get("command", ""),
            has_curves=has_curves,
            provenance=(*provenance, *hashes),
            paper_ids=tuple(facts.get("papers", ())),
            base_model=facts.get("base_model", ""),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{CONFIG_NAME} lacks what a card says: {error}") from error


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def _front_matter(card: Card) -> str:
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=card.license or None,
        base_model=card.base_model or None,
        datasets=list(card.datasets) or None,
        tags=["image-classification", "timm", "se-resnet", *(["seresnet_hub"] if card.needs_plugin else [])],
        model_name=card.title,
        eval_results=[line for result in card.results for line in _eval_results(result)] or None,
    )
    return data.to_yaml().strip()


def _eval_results(result: Result) -> list[EvalResult]:
    published = result.origin == "published"
    how = {"command": result.source, **({"commit": result.commit} if result.commit else {})}
    values = [("Top-1", result.top1), *([("Top-5", result.top5)] if result.top5 is not None else [])]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=result.dataset_id or result.dataset,
            dataset_name=result.dataset,
            dataset_split=result.split,
            metric_type="accuracy",
            metric_name=f"{name} accuracy, {result.origin} (%)",
            metric_value=round(value, 4),
            metric_args=None if published else how,
            source_name="the weights' authors" if published else None,
            source_url=result.source if published else None,
        )
        for name, value in values
    ]


def _model_table(card: Card) -> str:
    sizes = card.sizes
    return table(
        ("", ""),
        [
            ("Architecture", f"`{card.architecture}`"),
            ("Parameters (M)", f"{sizes.parameters / 1e6:.3f}"),
            ("Multiply-adds (G)", f"{sizes.multiply_adds / 1e9:.3f}"),
            ("Activations (M)", f"{sizes.activations / 1e6:.2f}"),
            ("Image size", " × ".join(map(str, card.preprocessing["input_size"][1:]))),
            ("Classes", f"{card.num_classes:,}" if card.num_classes else "none: features only"),
            *([("Papers", ", ".join(_paper(paper) for paper in card.paper_ids))] if card.paper_ids else []),
        ],
    )


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[arXiv {number}](https://arxiv.org/abs/{number})"


def _accuracy(results: Sequence[Result]) -> str:
    if not results:
        return "No accuracy is known for these weights: none was published for them, and none was measured."
    rows = [
        (
            f"{result.dataset}, {result.split}",
            f"{result.images:,}" if result.images else "",
            str(result.image_size),
            f"{result.top1:.2f}",
            f"{result.top5:.2f}" if result.top5 is not None else "",
            _origin(result),
        )
        for result in results
    ]
    return table(("data", "images", "size", "top-1 (%)", "top-5 (%)", "origin"), rows)


def _origin(result: Result) -> str:
    if result.origin == "published":
        return f"*published* by the weights' authors: {result.source}"
    return f"*measured* with `{result.source}`" + (f" at commit `{result.commit}`" if result.commit else "")


def _usage(card: Card) -> str:
    plugin = "import seresnet_hub  # registers the architecture with timm\n" if card.needs_plugin else ""
    name = f"hf-hub:{REPO_ID}"
    also = "; import seresnet_hub" if card.needs_plugin else ""
    return f"""Classify a picture:

```python
import timm, torch
from PIL import Image
{plugin}
model = timm.create_model("{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
scores = model(transform(Image.open("picture.jpg").convert("RGB"))[None]).softmax(-1)
```

Feature maps of every stage:

```python
features = timm.create_model("{name}", pretrained=True, features_only=True).eval()
maps = features(transform(Image.open("picture.jpg").convert("RGB"))[None])
print([tuple(m.shape) for m in maps])
```

Embeddings:

```python
embedder = timm.create_model("{name}", pretrained=True, num_classes=0).eval()
embedding = embedder(transform(Image.open("picture.jpg").convert("RGB"))[None])
```

The files, and the model from them:

```bash
hf download {REPO_ID} --local-dir model
python -c "import timm{also}; timm.create_model('local-dir:model', pretrained=True)"
```

Fine-tune for other classes:

```python
from timm.optim import create_optimizer_v2

model = timm.create_model("{name}", pretrained=True, num_classes=10)
optimizer = create_optimizer_v2(model, "sgd", lr=0.01, weight_decay=1e-4)
for images, labels in loader:
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step(), optimizer.zero_grad()
```"""


def _preprocessing(cfg: Mapping[str, Any]) -> str:
    size, crop_pct = cfg["input_size"], cfg["crop_pct"]
    edge = round(size[-1] / crop_pct)
    crop = f"short edge to {edge}, centre crop of {size[-1]}" if edge != size[-1] else f"to {size[-1]}"
    numbers = (", ".join(f"{value:.4f}" for value in cfg[name]) for name in ("mean", "std"))
    mean, std = numbers
    return (
        f"RGB, resized ({cfg['interpolation']}) {crop}, values in [0, 1], minus mean ({mean}), divided by standard "
        f"deviation ({std}). timm does this from `config.json`."
    )


def _training(card: Card) -> list[str]:
    parts: list[str] = []
    if card.recipe:
        parts.append(table(("", ""), card.recipe))
    if card.command:
        parts.append(f"```bash\n{card.command}\n```")
    if card.has_curves:
        parts.append(f"![Loss and accuracy over the course of training]({card.curves})")
    return ["## Training", *parts] if parts else []


def _limitations(card: Card) -> list[str]:
    known = [line for dataset in card.datasets for line in LIMITATIONS.get(dataset, ())]
    return known or [LIMITED_CLASSES, "Nothing is known of how it fares on pictures of another origin."]
