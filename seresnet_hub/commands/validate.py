"""Measure a model's accuracy on a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import command
from seresnet_hub.commands.speed_options import add_speed_options, prepared
from seresnet_hub.models.name_forms import NAME_FORMS

EXAMPLE = "seresnet-hub validate runs/mine --data photos --split held-out"


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, prog="seresnet-hub validate", example=EXAMPLE)
    parser.usage = "%(prog)s MODEL --data DIR_OR_HUB_ID [options]"
    parser.add_argument("model", metavar="MODEL", help=NAME_FORMS)
    images = parser.add_argument_group("the images")
    images.add_argument("--data", required=True, metavar="DIR_OR_HUB_ID", help="data set with images and labels")
    images.add_argument(
        "--split", metavar="S",
        help="its split (default: validation, else test); held-out: the images that were held out from training",
    )  # fmt: skip
    images.add_argument("--label-column", metavar="NAME", help="its labels: class numbers, or lists of them")
    images.add_argument("--real", action="store_true", help="count by ImageNet-ReaL's labels, found by file names")
    images.add_argument("--input-size", type=int, metavar="N", help="height and width (default: the model's)")
    images.add_argument(
        "--crop-pct", type=float, metavar="X", help="the crop's share of the edge (default: the model's)"
    )
    speed = add_speed_options(parser)
    speed.add_argument("--amp", choices=("bf16", "fp16"), help="compute in this precision (default: the weights')")
    speed.add_argument("--batch-size", type=int, default=128, metavar="N", help="images at a time (default: 128)")
    speed.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode images (default: as many as suit the machine)"
    )
    report = parser.add_argument_group("a report")
    report.add_argument("--report", type=Path, metavar="DIR", help="write accuracy by class and the confusion matrix")
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.data.class_names import class_names
    from seresnet_hub.data.held_out import allowed_damage, split_for
    from seresnet_hub.environment import loader_workers
    from seresnet_hub.evaluation.evaluate import evaluate, in_model_order, with_real_labels
    from seresnet_hub.evaluation.report import require_report, worst_classes, write_report
    from seresnet_hub.models.load import load
    from seresnet_hub.models.trial_forward import check_runs

    if options.report is not None:
        require_report(options.report)
    model = load(options.model)
    if options.input_size is None:
        check_runs(model, options.model)
    split = split_for(model, options.data, options.split, label_column=options.label_column, label_lists=True)
    split = with_real_labels(split, model) if options.real else in_model_order(split, model)
    model = prepared(model, options)
    workers = loader_workers() if options.workers is None else options.workers
    accuracy = evaluate(
        model, split, batch_size=options.batch_size, input_size=options.input_size, crop_pct=options.crop_pct,
        confusion=options.report is not None, corrupt_share=allowed_damage(model, split), workers=workers,
        precision=options.amp or "no",
    )  # fmt: skip
    result = {
        "model": options.model,
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
    }
    if accuracy.confusion is not None:
        names = split.class_names or class_names(model)
        write_report(options.report, accuracy.confusion, names)
        result["report"] = str(options.report)
        result["worst_classes"] = worst_classes(accuracy.confusion, names)
    return result
