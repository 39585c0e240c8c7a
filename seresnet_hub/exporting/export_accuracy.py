"""Measure what an export costs in accuracy: the network and the exported file, on the same labelled images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from seresnet_hub.data.held_out import allowed_damage
from seresnet_hub.data.open_split import public_name
from seresnet_hub.data.split import Split
from seresnet_hub.environment import FEW_PICTURES
from seresnet_hub.errors import PrintableLog
from seresnet_hub.evaluation.class_subset import classes_for
from seresnet_hub.evaluation.evaluate import Accuracy, evaluate, in_model_order

# Points of top-1 that an export may lose before it is worth a warning. Float formats only round: what they lose is of
# images that were nearly ties.
LARGE_DROPS = {"fp32": 0.1, "fp16": 0.5, "bf16": 0.5, "int8": 1.0}
ADVICE = {
    "fp32": "the file computes something else: export it anew, and report this if it stays",
    "int8": "calibrate with other pictures, such as it will see (--calibrate), or leave the layers that hurt most in "
    "higher precision (--keep LAYER, or --max-drop 0.5, which finds them)",
}

log = PrintableLog(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportAccuracy:
    """Accuracies in percent over the same `images`: `_before` of the network, `_after` of the exported file.

    `drop` is what top-1 loses, in points; it is negative where the exported file is better. `classes` is how many of
    the network's classes were told apart, None where these were all.
    """

    data: str
    split: str
    images: int
    classes: int | None
    top1_before: float
    top5_before: float
    top1_after: float
    top5_after: float
    drop: float

    def to_json(self) -> dict[str, Any]:
        """Return the accuracies as a record holds them."""
        return asdict(self)


def accuracy_on(model: nn.Module, classes_of: nn.Module, split: Split) -> Accuracy:
    """Return the accuracy of `model` on a split as `split_for` opens it, every labelled image counted.

    The split's classes are numbered as those of the network `classes_of` by name, and where they are some of them, the
    model chooses among these alone. Errors: `InputError` as for `evaluate`.
    """
    return evaluate(
        model, in_model_order(split, classes_of), classes=classes_for(split, classes_of),
        corrupt_share=allowed_damage(classes_of, split), workers=0 if split.rows <= FEW_PICTURES else None,
    )  # fmt: skip


def export_accuracy(model: nn.Module, exported: nn.Module, split: Split) -> ExportAccuracy:
    """Return the accuracy of `model` as it is and of `exported`, which takes and gives the same.

    Errors: `InputError` as for `evaluate`.
    """
    before, after = accuracy_on(model, model, split), accuracy_on(exported, model, split)
    return ExportAccuracy(
        data=public_name(split.source), split=split.name, images=after.counted,
        classes=None if after.classes is None else len(after.classes),
        top1_before=round(before.top1, 4), top5_before=round(before.top5, 4),
        top1_after=round(after.top1, 4), top5_after=round(after.top5, 4), drop=round(before.top1 - after.top1, 4),
    )  # fmt: skip


def warn_of_large_drop(accuracy: ExportAccuracy, precision: str) -> None:
    """Log one line where an export loses more than its precision should; it says what to do about that."""
    if accuracy.drop > LARGE_DROPS[precision]:
        log.warning(
            f"{precision} loses {accuracy.drop:.2f} points of top-1 on {accuracy.images:,} images of {accuracy.data} "
            f"(from {accuracy.top1_before:.2f} to {accuracy.top1_after:.2f} %): "
            f"{ADVICE.get(precision, 'export in fp32')}"
        )
