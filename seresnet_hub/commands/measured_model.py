"""Measure one model as the options of `validate` say, on all processes, and say the result."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from seresnet_hub.commands.launched import on_all, on_main
from seresnet_hub.commands.speed_options import prepared
from seresnet_hub.commands.terminal import tell
from seresnet_hub.data.class_names import class_names
from seresnet_hub.data.held_out import allowed_damage, split_for
from seresnet_hub.data.split import Split
from seresnet_hub.environment import loader_workers, package_version
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.class_subset import classes_for
from seresnet_hub.evaluation.evaluate import Accuracy, evaluate, in_model_order, with_real_labels
from seresnet_hub.evaluation.image_table import write_image_table
from seresnet_hub.evaluation.metrics import metrics_of
from seresnet_hub.evaluation.nearest_neighbour_accuracy import index_for, nearest_neighbour_accuracy
from seresnet_hub.evaluation.out_of_memory import with_smaller_batches
from seresnet_hub.evaluation.report import worst_classes, write_report
from seresnet_hub.evaluation.report_page import Measured
from seresnet_hub.inference.embedding_index import EmbeddingIndex
from seresnet_hub.inference.model_identity import ModelIdentity, engine_of, model_identity
from seresnet_hub.inference.run_batches import run_batches
from seresnet_hub.inference.sources import require_apart
from seresnet_hub.models.load import load
from seresnet_hub.models.trial_forward import check_runs

if TYPE_CHECKING:
    from seresnet_hub.training.processes import Processes


def measured(options: argparse.Namespace, name: str, processes: Processes | None = None) -> dict[str, Any]:
    """Return what `validate` says of the model `name`, after writing what the options ask for.

    Errors: `InputError`, on all processes alike.
    """
    opened = on_all(processes, lambda: _opened(options, name))
    model, split, classes = opened.model, opened.split, opened.classes
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
        "precision": engine_of(model).get("precision", accuracy.precision),
        "compile": options.compile,
        "workers": workers,
        "processes": count,
        "batch_size": accuracy.batch_size,
        "tta": accuracy.tta,
        "classes": None if accuracy.classes is None else len(accuracy.classes),
    }
    result |= on_main(processes, lambda: _written(options, name, opened, accuracy))
    if options.knn is not None:
        result |= _knn(options, opened, workers, processes)
    return result


class _Opened(NamedTuple):
    """The model on its device, which one it is where that is asked for, and what to measure it on.

    `neighbours` has the rows that its features are compared with, whose weights and classes are those of the model.
    """

    model: nn.Module
    identity: ModelIdentity | None
    split: Split
    classes: tuple[int, ...] | None
    neighbours: EmbeddingIndex | None


def _opened(options: argparse.Namespace, name: str) -> _Opened:
    model = load(name)
    if options.input_size is None:
        check_runs(model, name)
    split = split_for(model, options.data, options.split, label_column=options.label_column, label_lists=True)
    split = with_real_labels(split, model) if options.real else in_model_order(split, model)
    if options.knn is not None and split.right_classes is not None:
        raise InputError(f"images of {split.source} have lists of labels: --knn needs one label of each")
    if options.predictions is not None:
        require_apart(options.predictions, split)
    classes = classes_for(split, model, options.classes)
    asked = options.predictions is not None or options.report is not None or options.knn
    identity = model_identity(model, name) if asked else None
    index = None
    if options.knn:
        assert identity is not None
        index = index_for(options.knn, class_names=split.class_names, tensors_sha256=identity.tensors_sha256)
    return _Opened(prepared(model, options), identity, split, classes, index)


def _written(options: argparse.Namespace, name: str, opened: _Opened, accuracy: Accuracy) -> dict[str, Any]:
    """Return the metrics, and write what is asked for; on the main process alone."""
    split, records = opened.split, accuracy.records
    assert records is not None
    result: dict[str, Any] = {}
    if split.right_classes is None:
        metrics = metrics_of(records)
        result |= {key: None if value is None else round(value, 6) for key, value in metrics.items()}
    if options.predictions is not None:
        assert opened.identity is not None
        own = class_names(opened.model)
        write_image_table(
            options.predictions, records, split, names=_names_by_number(opened.model, split, accuracy),
            classes=accuracy.classes,
            metadata={
                **asdict(opened.identity), "data": split.source, "split": split.name, "rows": split.rows,
                "class_names": own, "fused": options.fuse, "compiled": options.compile, "tta": accuracy.tta,
                "precision": accuracy.precision, "input_size": list(accuracy.input_size),
                "crop_pct": accuracy.crop_pct, "classes": accuracy.classes, "version": package_version(),
                **engine_of(opened.model),
            },
        )  # fmt: skip
        result["predictions"] = str(options.predictions)
    if accuracy.confusion is not None:
        names = _class_names(opened.model, split, accuracy)
        assert opened.identity is not None
        known = {key: value for key, value in asdict(opened.identity).items() if value and key != "tensors_sha256"}
        facts = known | {"data": options.data, "split": split.name, **_shown(accuracy)}
        title = f"{_short(name)} on {_short(options.data)} ({split.name})"
        page = Measured(records=records, metrics=metrics, split=split, title=title, facts=facts)
        write_report(options.report, accuracy.confusion, names, page)
        result["report"] = str(options.report)
        result["worst_classes"] = worst_classes(accuracy.confusion, names)
    return result


def _short(name: str) -> str:
    """Return the last part of a path, and any other name as it is."""
    return os.path.basename(os.path.abspath(name)) if os.path.exists(name) else name


def _shown(accuracy: Accuracy) -> dict[str, str]:
    """Return how it was measured, for a person."""
    height, width = accuracy.input_size
    facts = {
        "input size": f"{height} x {width}", "crop": f"{accuracy.crop_pct:g}",
        "precision": "" if accuracy.precision == "no" else accuracy.precision,
        "test-time augmentation": accuracy.tta or "",
        "classes told apart": "" if accuracy.classes is None else str(len(accuracy.classes)),
    }  # fmt: skip
    return {name: fact for name, fact in facts.items() if fact}


def _knn(options: argparse.Namespace, opened: _Opened, workers: int, processes: Processes | None) -> dict[str, Any]:
    """Return the accuracy of the nearest neighbours by the features before the classifier, in another pass."""
    model, split = opened.model, opened.split
    rank, count = (0, 1) if processes is None else (processes.rank, processes.count)

    def features(size: int) -> tuple[torch.Tensor, np.ndarray]:
        steps = -(-split.rows // size)
        start, stop = (steps * number // count for number in (rank, rank + 1))
        found = [
            (answers.features["features"], np.where([error is None for error in answers.errors], answers.labels, -1))
            for answers in run_batches(
                model, split, batch_size=size, workers=workers, start=start, stop=stop, logits=False, features=[None],
                precision=options.amp or "no",
            )
        ]  # fmt: skip
        if not found:  # there are fewer batches than processes
            return torch.empty(0, 0), np.empty(0, np.int64)
        return torch.cat([one for one, _ in found]), np.concatenate([one for _, one in found])

    gather = None if processes is None else processes.gathered
    (own, labels), _ = with_smaller_batches(features, options.batch_size, gather=gather)
    if gather is not None:
        parts = gather((own, labels))
        own = torch.cat([one for one, _ in parts if len(one)])
        labels = np.concatenate([one for _, one in parts])
    found = on_main(processes, lambda: nearest_neighbour_accuracy(own, labels, opened.neighbours))
    if found.duplicates and (processes is None or processes.main):
        tell(
            f"{found.duplicates:,} of {found.counted:,} images have the features of a row of {options.knn}: if they "
            "are the same pictures, knn_top1 is too high"
        )
    return {"knn_top1": round(found.top1, 4), "knn_top5": round(found.top5, 4), "knn_k": found.k}


def _names_by_number(model: nn.Module, split: Split, accuracy: Accuracy) -> list[str] | None:
    """Return the names of all the model's classes; the number of one that was not told apart, if it has no name."""
    own, told_apart = class_names(model), _class_names(model, split, accuracy)
    if own is not None or told_apart is None or accuracy.classes is None:
        return own or told_apart
    names = [str(number) for number in range(model.num_classes)]  # type: ignore[arg-type]
    for number, name in zip(accuracy.classes, told_apart, strict=True):
        names[number] = name
    return names


def _class_names(model: nn.Module, split: Split, accuracy: Accuracy) -> list[str] | None:
    """Return the names of the classes that were told apart."""
    own, names = class_names(model), split.class_names
    if accuracy.classes is None:
        return list(names) if names else own
    if own is not None:
        return [own[number] for number in accuracy.classes]
    return list(names) if names and len(names) == len(accuracy.classes) else None
