"""Measure what an export costs in accuracy: the network and the exported file, on the same labelled images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from seresnet_hub.data.open_split import public_name
from seresnet_hub.data.split import Split
from seresnet_hub.errors import PrintableLog
from seresnet_hub.evaluation.evaluate import Accuracy, evaluate, in_model_order

# Points of top-1 that an export may lose before it is worth a warning: the other precisions round, int8 is calibrated.
LARGE_DROPS = {"fp32": 0.1, "fp16": 0.5, "bf16": 1.0, "int8": 1.0}

log = PrintableLog(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportAccuracy:
    """Accuracies in percent over the same `images`, of the network (`_before`) and of the exported file (`_after`).

    `drop` is what top-1 loses, in points; it is negative where the exported file is better.
    """

    data: str
    split: str
    images: int
    top1_before: float
    top5_before: float
    top1_after: float
    top5_after: float
    drop: float

    def to_json(self) -> dict[str, Any]:
        """Return the accuracies as a record holds them."""
        return asdict(self)


def export_accuracy(
    model: nn.Module, exported: nn.Module, split: Split, *, batch_size: int = 128, workers: int | None = None,
    before: Accuracy | None = None,
) -> ExportAccuracy:  # fmt: skip
    """Return the accuracy of `model` as it is and of `exported`, on every labelled image of `split`.

    `exported` takes what `model` takes and gives logits. The split's classes are numbered as the model numbers them.
    `before` is what `accuracy_before` returned, so that several exports of a network need it once. Errors: `InputError`
    as `evaluate`.
    """
    before = before or accuracy_before(model, split, batch_size=batch_size, workers=workers)
    after = evaluate(exported, in_model_order(split, model), batch_size=batch_size, workers=workers)
    return ExportAccuracy(
        data=public_name(split.source), split=split.name, images=after.counted,
        top1_before=round(before.top1, 4), top5_before=round(before.top5, 4),
        top1_after=round(after.top1, 4), top5_after=round(after.top5, 4), drop=round(before.top1 - after.top1, 4),
    )  # fmt: skip


def accuracy_before(model: nn.Module, split: Split, *, batch_size: int = 128, workers: int | None = None) -> Accuracy:
    """Return the accuracy of a network itself on the split whose classes it names."""
    return evaluate(model, in_model_order(split, model), batch_size=batch_size, workers=workers)


def warn_of_large_drop(accuracy: ExportAccuracy, precision: str) -> None:
    """Log one line where an export loses more than its precision should, which says what to do about it."""
    if accuracy.drop <= LARGE_DROPS[precision]:
        return
    advice = "export in fp32, or report this"
    if precision == "int8":
        advice = (
            "calibrate with other pictures, such as those it will see (--calibrate), keep the layers that hurt most in "
            "higher precision (--keep), or have them found (--max-drop 0.5)"
        )
    elif precision != "fp32":
        advice = "export in fp32"
    log.warning(
        f"{precision} loses {accuracy.drop:.2f} points of top-1 on {accuracy.data} ({accuracy.top1_before:.2f} % to "
        f"{accuracy.top1_after:.2f} %): {advice}"
    )
