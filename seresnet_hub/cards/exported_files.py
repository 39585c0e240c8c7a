"""Show on a card which exported files lie beside the model, how they were proven, and how to run them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard

from seresnet_hub.cards.exported_snippets import (
    on_a_page,
    shows_page,
    shows_preparation,
    with_onnxruntime,
    with_openvino,
    with_the_package,
)
from seresnet_hub.cards.markdown import code, plain, prose, table
from seresnet_hub.data.held_out import HELD_OUT
from seresnet_hub.engines.exported_files import Record, files_of

TITLE = "## Exported files"
SECTION = re.compile(rf"^{TITLE}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
BEFORE = re.compile(r"^## Preprocessing$", re.MULTILINE)
# Of the files of a format, the one that the code on the card runs: exact ones first, on a page small ones next.
PREFERRED = ("fp32", "fp16", "bf16", "int8")
PREFERRED_ON_A_PAGE = ("fp32", "int8", "fp16")


def with_exports(text: str, records: Sequence[Record], sizes: Mapping[str, int], repo_id: str) -> str:
    """Return a card's text with a section on the exported files, and with the tags of their formats.

    `sizes` are the bytes of each file by its name in the repository `repo_id`. A section that is there is replaced;
    without exports it goes.
    """
    if not records:
        return SECTION.sub("", text)
    section = exported_section(records, sizes, repo_id) + "\n\n"
    if SECTION.search(text):
        text = SECTION.sub(lambda _: section, text, count=1)
    elif place := BEFORE.search(text):
        text = text[: place.start()] + section + text[place.start() :]
    else:
        text = text.rstrip() + "\n\n" + section.rstrip() + "\n"
    card = ModelCard(text, ignore_metadata_errors=False)
    front: Any = card.data
    tags = list(front.tags or [])
    front.tags = [*tags, *(tag for tag in dict.fromkeys(one.facts.format for one in records) if tag not in tags)]
    return str(card)


def exported_section(records: Sequence[Record], sizes: Mapping[str, int], repo_id: str) -> str:
    """Return the section of a card on the exported files of the Hub repository `repo_id`."""
    parts = [
        TITLE,
        _proven(records),
        _table(records, sizes),
        *_measured(records),
        *_quantised(records),
        *_taken(records),
    ]
    ranked = sorted(records, key=_rank(PREFERRED))
    if plain := next((one for one in ranked if not one.facts.preprocessing), None):
        parts += ["With `seresnet_hub`, as any other model:", with_the_package(plain, repo_id)]
    shown = [one for one in ranked if shows_preparation(one.facts)]
    if onnx := next((one for one in shown if one.facts.format == "onnx"), None):
        parts += ["With ONNX Runtime, numpy and Pillow alone:", with_onnxruntime(onnx, repo_id)]
    if openvino := next((one for one in shown if one.facts.format == "openvino"), None):
        parts += ["With OpenVINO, numpy and Pillow alone:", with_openvino(openvino, repo_id)]
    if for_pages := sorted((one for one in records if shows_page(one.facts)), key=_rank(PREFERRED_ON_A_PAGE)):
        parts += [ON_A_PAGE, on_a_page(for_pages[0], repo_id)]
    return "\n\n".join(parts)


# transformers.js is left out: timm's config.json names no type it knows, and its own preparation changes the scores.
ON_A_PAGE = (
    "On a page, by ONNX Runtime Web, with the scores of the code above. Pictures stay where they are. transformers.js "
    "cannot load this repository by its name: it does not know timm's `config.json`."
)


def _rank(order: Sequence[str]) -> Any:
    return lambda one: order.index(one.facts.precision) if one.facts.precision in order else len(order)


def _proven(records: Sequence[Record]) -> str:
    pictures = {one.proof.get("pictures") for one in records}
    batches = {tuple(one.proof.get("batches") or ()) for one in records}
    count = f"{pictures.pop()} " if len(pictures) == 1 and all(isinstance(n, int) for n in pictures) else ""
    sizes = list(map(str, batches.pop())) if len(batches) == 1 else []
    each = f" at batches of {', '.join(sizes[:-1])} and {sizes[-1]}" if len(sizes) > 1 else ""
    return prose(
        "Each file was read back by its own runtime and compared with the network in float64, run by PyTorch, on "
        f"{count}real pictures{each}. Differences and tolerances are shares of the largest absolute output; a file "
        "beyond its tolerance is not written."
    )


def _table(records: Sequence[Record], sizes: Mapping[str, int]) -> str:
    header = ["format", "precision", "file", "size (MB)", "largest difference", "tolerance", "same first class (%)"]
    measured = any(one.accuracy for one in records)
    header += ["top-1 before (%)", "top-1 after (%)"] if measured else []
    rows = []
    for one in records:
        names = files_of(one.facts.format, one.facts.precision)
        row = [
            {"onnx": "ONNX", "openvino": "OpenVINO"}.get(one.facts.format, one.facts.format), one.facts.precision,
            ", ".join(map(code, names)), f"{sum(sizes[name] for name in names) / 1e6:.1f}",
            _number(one.proof, "largest_difference", "{:.1e}"), _number(one.proof, "tolerance", "{:.0e}"),
            _number(one.proof, "argmax_agreement", "{:.1f}", 100),
        ]  # fmt: skip
        if measured:
            accuracy = one.accuracy or {}
            row += [_number(accuracy, name, "{:.2f}") for name in ("top1_before", "top1_after")]
        rows.append(row)
    return table(header, rows)


def _number(values: Mapping[str, Any], name: str, form: str, times: float = 1) -> str:
    value = values.get(name)
    try:
        return form.format(times * value) if isinstance(value, (int, float)) else ""
    except OverflowError:  # a whole number that no float holds
        return ""


def _measured(records: Sequence[Record]) -> list[str]:
    """Return on what the accuracies of the table were measured."""
    found = {
        f"{one.accuracy.get('images', 0):,} {_images_of(str(one.accuracy.get('split', '')))}"
        for one in records
        if one.accuracy and isinstance(one.accuracy.get("images"), int)
    }
    return [f"Accuracy *measured* on {' and on '.join(sorted(found))}, before and after the export."] if found else []


def _images_of(split: str) -> str:
    return "held-out images" if split == HELD_OUT else f"images of {plain(split)}"


def _quantised(records: Sequence[Record]) -> list[str]:
    """Return how each int8 file was calibrated, which layers stay in float there, and which ones cost most."""
    lines = []
    for one in records:
        if not one.quantization:
            continue
        name, found = code(files_of(one.facts.format, one.facts.precision)[0]), one.quantization
        calibration = found.get("calibration")
        pictures = calibration.get("pictures") if isinstance(calibration, dict) else None
        line = f"{name} is quantised to int8 per channel"
        line += f", calibrated with {pictures:,} pictures" if isinstance(pictures, int) else ""
        if error := _number(found, "calibration_error", "{:.1f}", 100):
            allowed = _number(found, "calibration_error_allowed", "{:.0f}", 100)
            line += (
                f", over which the class furthest off is wrong by {error} % of how much outputs vary from picture to "
            )
            line += f"picture ({allowed} % are allowed)" if allowed else "picture"
        for key, words in (("keep", "kept in float"), ("kept_for_accuracy", "kept in float for their accuracy")):
            if layers := _names(found.get(key)):
                line += f"; {words}: {layers}"
        sensitive = found.get("sensitive")
        ranked = sensitive if isinstance(sensitive, list) else []
        worst = [each.get("layer") for each in ranked if isinstance(each, dict)]
        lines.append(f"{line}; the layers that cost most: {_names(worst)}." if worst else f"{line}.")
    return lines


def _taken(records: Sequence[Record]) -> list[str]:
    """Return what files take and give where it is not what the others do."""
    lines = []
    for one in records:
        name = code(files_of(one.facts.format, one.facts.precision)[0])
        if one.facts.preprocessing:
            lines.append(
                f"{name} prepares pictures itself: it takes bytes in RGB order, `(batch, height, width, 3)`, and gives "
                "probabilities."
            )
        if one.facts.batch is not None:
            lines.append(f"{name} takes {one.facts.batch} at once, no more and no fewer.")
    return lines


def _names(names: Any) -> str:
    return ", ".join(code(str(name)) for name in names) if isinstance(names, list) else ""
