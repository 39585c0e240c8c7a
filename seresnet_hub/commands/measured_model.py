"""Measure one model as the options of `validate` say, on all processes, and say the result."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from torch import nn

from seresnet_hub.commands.launched import on_all, on_main
from seresnet_hub.commands.speed_options import prepared
from seresnet_hub.commands.terminal import tell
from seresnet_hub.data.class_names import class_names
from seresnet_hub.data.held_out import allowed_damage, split_for
from seresnet_hub.data.split import Split
from seresnet_hub.environment import loader_workers
from seresnet_hub.evaluation.class_subset import classes_for
from seresnet_hub.evaluation.evaluate import Accuracy, evaluate, in_model_order, with_real_labels
from seresnet_hub.evaluation.metrics import metrics_of
from seresnet_hub.evaluation.report import worst_classes, write_report
from seresnet_hub.models.load import load
from seresnet_hub.models.trial_forward import check_runs

if TYPE_CHECKING:
    from seresnet_hub.training.processes import Processes


def measured(options: argparse.Namespace, name: str, processes: Processes | None = None) -> dict[str, Any]:
    """Return what `validate` says of the model `name`, after writing what the options ask for.

    Errors: `InputError`, on all processes alike.
    """
    model, split = on_all(processes, lambda: _opened(options, name))
    classes = classes_for(split, model, options.classes)
    main, count = (True, 1) if processes is None else (processes.main, processes.count)
    if main and classes is not None and options.classes is None:
        tell(f"the {len(classes)} classes of {split.source} are some of the model's: it chooses among these alone")
    workers = max(1, loader_workers() // count) if options.workers is None else options.workers
    accuracy = evaluate(
        model, split, batch_size=options.batch_size, input_size=options.input_size, crop_pct=options.crop_pct,
        confusion=options.report is not None, corrupt_share=allowed_damage(model, split), workers=workers,
        precision=options.amp or "no", tta=options.tta, classes=classes, records=True,
        **({} if processes is None else
           {"rank": processes.rank, "world_size": count, "total": processes.total, "gather": processes.gathered}),
    )  # fmt: skip
    result = {
        "model": name,
        "data": options.data,
        "split": split.name,
        "seen": accuracy.seen,
        "counted": accuracy.counted,
        "top1": round(accuracy.top1, 4),
        "top5": round(accuracy.top5, 4),
        "loss": None if accuracy.loss is None else round(accuracy.loss, 6),
        "input_size": list(accuracy.input_size),
        "crop_pct": accuracy.crop_pct,
        "images_per_second": round(accuracy.images_per_second, 1),
        "precision": accuracy.precision,
        "compile": options.compile,
        "workers": workers,
        "processes": count,
        "batch_size": accuracy.batch_size,
        "tta": accuracy.tta,
        "classes": None if accuracy.classes is None else len(accuracy.classes),
    }
    return result | on_main(processes, lambda: _written(options, model, split, accuracy))


def _opened(options: argparse.Namespace, name: str) -> tuple[nn.Module, Split]:
    """Return the model on its device and the split to measure it on."""
    model = load(name)
    if options.input_size is None:
        check_runs(model, name)
    split = split_for(model, options.data, options.split, label_column=options.label_column, label_lists=True)
    split = with_real_labels(split, model) if options.real else in_model_order(split, model)
    return prepared(model, options), split


def _written(options: argparse.Namespace, model: nn.Module, split: Split, accuracy: Accuracy) -> dict[str, Any]:
    """Return the metrics, and write what is asked for; on the main process alone."""
    assert accuracy.records is not None
    result: dict[str, Any] = {}
    if split.right_classes is None:
        metrics = metrics_of(accuracy.records.labelled())
        result |= {key: None if value is None else round(value, 6) for key, value in metrics.items()}
    names = _class_names(model, split, accuracy)
    if accuracy.confusion is not None:
        write_report(options.report, accuracy.confusion, names)
        result["report"] = str(options.report)
        result["worst_classes"] = worst_classes(accuracy.confusion, names)
    return result


def _class_names(model: nn.Module, split: Split, accuracy: Accuracy) -> list[str] | None:
    """Return the names of the classes that were told apart."""
    own, names = class_names(model), split.class_names
    if accuracy.classes is None:
        return list(names) if names else own
    if own is not None:
        return [own[number] for number in accuracy.classes]
    return list(names) if names and len(names) == len(accuracy.classes) else None
