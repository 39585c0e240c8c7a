"""Show on a card which exported files lie beside the model, how they were proven, and how to run them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard

from seresnet_hub.cards.exported_snippets import on_a_page, shows_preparation, with_onnxruntime, with_openvino
from seresnet_hub.cards.markdown import code, plain, prose, table
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
    parts = [TITLE, _proven(records), _table(records, sizes), *_measured(records), *_kept(records)]
    first = {one.facts.format: one for one in sorted(records, key=_rank(PREFERRED), reverse=True)}
    if onnx := first.get("onnx"):
        parts += [f"With `seresnet_hub`, as every other model ({code(f'hf download {repo_id} --local-dir model')}):",
                  WITH_THE_PACKAGE]  # fmt: skip
        if shows_preparation(onnx.facts):
            parts += ["With ONNX Runtime, numpy and Pillow alone:", with_onnxruntime(onnx, repo_id)]
    if (openvino := first.get("openvino")) and shows_preparation(openvino.facts):
        parts += ["With OpenVINO, numpy and Pillow alone:", with_openvino(openvino, repo_id)]
    alone = [one for one in records if one.facts.format == "onnx" and one.facts.batch in (None, 1)]
    for_pages = sorted(alone, key=_rank(PREFERRED_ON_A_PAGE))
    if for_pages and shows_preparation(for_pages[0].facts):
        parts += ["On a page, by ONNX Runtime Web: nothing but this file is needed, and pictures stay where they are. A "
                  "browser shrinks pictures in another way than Pillow, so scores differ a little.",
                  on_a_page(for_pages[0], repo_id)]  # fmt: skip
    return "\n\n".join(parts)


WITH_THE_PACKAGE = """```python
import seresnet_hub

model = seresnet_hub.load("onnx:model")
print(seresnet_hub.predict(model, "picture.jpg"))
```"""


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
    return form.format(times * value) if isinstance(value, (int, float)) else ""


def _measured(records: Sequence[Record]) -> list[str]:
    """Return on what the accuracies of the table were measured."""
    found = {
        f"{one.accuracy.get('images', 0):,} images of {plain(str(one.accuracy.get('split', '')))}"
        for one in records
        if one.accuracy and isinstance(one.accuracy.get("images"), int)
    }
    return [f"Accuracy *measured* on {' and on '.join(sorted(found))}, before and after the export."] if found else []


def _kept(records: Sequence[Record]) -> list[str]:
    """Return which layers of which file were kept in higher precision."""
    lines = []
    for one in records:
        kept = (one.quantization or {}).get("kept")
        if isinstance(kept, list) and kept:
            name = files_of(one.facts.format, one.facts.precision)[0]
            lines.append(f"{code(name)} has these layers in higher precision: {', '.join(code(str(k)) for k in kept)}.")
    return lines
