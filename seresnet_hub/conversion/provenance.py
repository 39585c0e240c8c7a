"""Say of a converted file what is known, and from where: its licence, its preprocessing, and what had to be assumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from seresnet_hub.cards.card import published_result
from seresnet_hub.cards.texts import IMAGENET
from seresnet_hub.checkpoints.file_settings import Preprocessing
from seresnet_hub.conversion.planning import ConversionPlan
from seresnet_hub.conversion.source_file import SourceFile, as_unicode
from seresnet_hub.environment import package_version
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import FACTS_KEY, FACTS_OF_ONE_WEIGHT_SET, timm_config
from seresnet_hub.hub.client import licence_on_the_hub
from seresnet_hub.models.load import licence_in

UNLISTED = ("initialised", "padded_with_zeros")  # provenance that is too long for a card
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct")


def licence_of(given: str | None, file: SourceFile) -> str:
    """Return the licence of the weights: the one given by hand, else what somebody has said of this very file, else "".

    That is the record of the published file with its hash, the config beside it, the address of the code base's own
    publications, or the card on the Hub; what wrote a file says nothing of who owns it.
    """
    known, published = file.known, file.published
    stated = (given, known and known.license, published and published.license, licence_in(file.own_config))
    if license := next((str(license) for license in stated if license), ""):
        return license
    license = file.source.license if file.address.startswith(file.source.published_at) else ""
    return license or (licence_on_the_hub(file.repo_id) if file.repo_id else "")


def config_of(file: SourceFile, plan: ConversionPlan, class_names: Sequence[str], licence: str) -> dict[str, Any]:
    """Return the `config.json` of the converted model, but for this package's facts.

    Class names and preprocessing are those given, else what the file or its publication says, else its source's usual.
    Errors: `InputError` where the class names given are not as many as the classes.
    """
    if class_names and len(class_names) != plan.num_classes:
        raise InputError(f"there are {len(class_names)} labels for {plan.num_classes} classes")
    beside = file.config or {}
    label_names = list(class_names or file.settings.label_names or beside.get("label_names") or ())
    if len(label_names) != plan.num_classes:
        label_names = []  # what the file calls its classes does not describe a new classifier
    cfg: dict[str, Any] = {"tag": file.source.name, "num_classes": plan.num_classes}
    preprocessing = _known_preprocessing(file) or file.source.preprocessing
    if file.config is not None:
        stated = beside.get("pretrained_cfg", {})
        cfg = {**{k: v for k, v in stated.items() if k not in ("num_classes", "architecture")}, **cfg}
    elif preprocessing is not None and not plan.is_for_cifar:
        cfg |= {**asdict(preprocessing), "crop_mode": "center"}
    # timm's entry for the architecture is that of other weights.
    cfg = {**dict.fromkeys(FACTS_OF_ONE_WEIGHT_SET), **cfg}
    config = timm_config(plan.network, pretrained_cfg=cfg, model_args=plan.model_args, label_names=label_names)
    config["pretrained_cfg"].pop("license", None)  # the config beside the file may speak of other weights
    if licence:
        config["pretrained_cfg"]["license"] = licence
    readable: dict[str, Any] = json.loads(as_unicode(json.dumps(config, ensure_ascii=False)))
    return readable


def _known_preprocessing(file: SourceFile) -> Preprocessing | None:
    """Return how images are prepared as the file, or else timm's record of it, says."""
    if file.settings.preprocessing is not None or file.published is None:
        return file.settings.preprocessing
    return Preprocessing(**{name: getattr(file.published, name) for name in PREPROCESSING})


def assumptions(file: SourceFile, plan: ConversionPlan, config: Mapping[str, Any]) -> str:
    """Return, as text, what nobody says of the file, and what was assumed instead."""
    texts = [file.settings.assumed, plan.assumed]
    if _known_preprocessing(file) is None and file.known is None:
        texts.append(_assumed_preprocessing(config["pretrained_cfg"], (file.config or {}).get("pretrained_cfg", {})))
    return "; ".join(filter(None, texts))


def _assumed_preprocessing(cfg: Mapping[str, Any], stated: Mapping[str, Any]) -> str:
    texts = {
        "input_size": f"images of {' x '.join(map(str, cfg['input_size'][1:]))}",
        "mean": f"mean {tuple(cfg['mean'])}",
        "std": f"std {tuple(cfg['std'])}",
        "interpolation": f"{cfg['interpolation']} interpolation",
        "crop_pct": f"crop_pct {cfg['crop_pct']:g}",
    }
    missing = [texts[name] for name in PREPROCESSING if not stated.get(name)]
    return f"nothing says how images were prepared: {', '.join(missing)} are assumed" if missing else ""


def untrained(fresh: Sequence[str]) -> str:
    """Return the sentence on a model's new tensors, "" where there are none."""
    units = len({name.partition(".se.")[0] for name in fresh if ".se." in name})
    parts = [f"{units} SE units"] * bool(units) + ["the classifier"] * any(".se." not in name for name in fresh)
    verb = "is" if parts == ["the classifier"] else "are"
    return f"{' and '.join(parts)} {verb} new and untrained: fine-tune before use" if parts else ""


def provenance_of(file: SourceFile, plan: ConversionPlan, licence: str, assumed: str) -> dict[str, str]:
    """Return where the weights come from, as text; nothing in it depends on the time or the machine."""
    known = file.known
    texts = {
        "source": file.source.name,
        "source_project": file.source.url,
        "source_url": known.url if known else file.address,
        "source_sha256": file.checkpoint.sha256,
        "converter": package_version(),
        "license": licence,
        "architecture": plan.architecture,
        "model_args": json.dumps(plan.model_args, sort_keys=True) if plan.model_args else "",
        "recipe": known.source_name if known else "",
        "published_top1": str(known.top1) if known else "",
        "published_top5": str(known.top5) if known else "",
        "assumed": assumed,
        "initialised": ", ".join(plan.fresh),
        "padded_with_zeros": ", ".join(plan.padded),
    }
    return {name: text for name, text in texts.items() if text}


def facts_of(file: SourceFile, plan: ConversionPlan, provenance: Mapping[str, str]) -> dict[str, Any]:
    """Return what the card says of the weights, besides their proof and their hash."""
    notes = [f"{untrained(plan.fresh)}."] if plan.fresh else []
    if "assumed" in provenance:
        notes.append(f"**Assumed:** {provenance['assumed']}.")
    license = provenance.get("license", "")
    listed = {name: text for name, text in provenance.items() if name not in UNLISTED}
    stated = file.own_config.get(FACTS_KEY, {})
    # The same weights in another wrapping: what was said of them holds.
    if {"title", "summary"} <= stated.keys() and not plan.fresh:
        return {
            **stated, "license": license, "notes": [*stated.get("notes", ()), *notes],
            "provenance": {**stated.get("provenance", {}), **listed},
        }  # fmt: skip
    known = file.known
    return {
        "title": known.name if known else f"{plan.architecture}, converted from {file.source.name}",
        "summary": f"`{plan.architecture}` with weights converted from {file.source.title}.",
        "license": license,
        "datasets": [IMAGENET] if known else [],
        "results": [asdict(published_result(known))] if known and not plan.fresh else [],
        "notes": notes,
        "papers": [known.paper_ids] if known else [],
        "provenance": listed,
    }


def proof_line(difference: float | None, plan: ConversionPlan) -> str:
    """Return the card's sentence on the comparison with the source's own network."""
    if difference is None:
        return "The converted network was not compared with the source's own."
    subject = "Without its new SE units the converted network" if plan.has_new_se_units else "The converted network"
    compared = "stage features and logits" if plan.num_classes and not plan.has_new_classifier else "stage features"
    return f"{subject} was compared with the source's own in float64: {compared} differ by at most {difference:.1g}."
