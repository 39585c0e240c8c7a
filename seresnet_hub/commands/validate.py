"""Measure the accuracy of models on a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import command
from seresnet_hub.commands.speed_options import add_speed_options, require_numbers
from seresnet_hub.models.name_forms import RUN_FORMS

EXAMPLE = "seresnet-hub validate runs/mine --data photos --split held-out"


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, prog="seresnet-hub validate", example=EXAMPLE)
    parser.usage = "%(prog)s MODEL [MODEL ...] --data DIR_OR_HUB_ID [options]"
    parser.add_argument(
        "models", nargs="+", metavar="MODEL",
        help=f"{RUN_FORMS}, or a quoted pattern ('seresnet50*')",
    )  # fmt: skip
    images = parser.add_argument_group("what is measured")
    images.add_argument("--data", required=True, metavar="DIR_OR_HUB_ID", help="data set with images and labels")
    images.add_argument("--split", metavar="S", help="its split (validation, else test), or held-out")
    images.add_argument("--label-column", metavar="NAME", help="its labels: class numbers, or lists of them")
    images.add_argument("--real", action="store_true", help="count by ImageNet-ReaL's labels, by file names")
    images.add_argument("--input-size", type=int, metavar="N", help="height and width (default: the model's)")
    images.add_argument("--crop-pct", type=float, metavar="X", help="the crop's share of the edge (the model's)")
    images.add_argument(
        "--tta", choices=("flip", "tencrop"),
        help="average over mirror images, or over ten crops",
    )  # fmt: skip
    images.add_argument(
        "--classes", type=Path, metavar="FILE",
        help="choose among these alone: numbers or names, one a line",
    )  # fmt: skip
    images.add_argument(
        "--knn", nargs="?", const="", metavar="INDEX",
        help="also by nearest features, here or in INDEX.parquet",
    )  # fmt: skip
    speed = add_speed_options(parser)
    speed.add_argument("--amp", choices=("bf16", "fp16"), help="compute in this precision (default: the weights')")
    speed.add_argument(
        "--batch-size", type=int, default=128, metavar="N",
        help="images at a time (128), halved where memory is short",
    )  # fmt: skip
    speed.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that decode images (as many as suit)",
    )  # fmt: skip
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output", type=Path, metavar="TABLE",
        help="a row for each model, in TABLE.csv or .md",
    )  # fmt: skip
    results.add_argument(
        "--predictions", type=Path, metavar="FILE",
        help="a row for each image, in FILE.parquet, .csv or .jsonl",
    )  # fmt: skip
    results.add_argument("--report", type=Path, metavar="DIR", help="a page: accuracy by class, confusion and mistakes")
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.commands.launched import launched_processes, on_main
    from seresnet_hub.errors import InputError

    with launched_processes() as processes:
        from seresnet_hub.commands.measured_model import measured
        from seresnet_hub.commands.measured_models import measured_models, named_models

        require_numbers(options)
        if options.knn is not None and (options.input_size or options.crop_pct or options.real):
            raise InputError("--knn goes with neither --input-size, --crop-pct nor --real")
        models = named_models(options.models)
        for option, of_one in (("--report", options.report), ("--predictions", options.predictions)):
            if len(models) > 1 and of_one is not None:
                raise InputError(f"{option} is of one model, and these are {len(models)}")
        on_main(processes, lambda: _require_places(options))
        if len(models) == 1 and options.output is None:
            return measured(options, models[0], processes)
        return measured_models(options, models, processes)


def _require_places(options: argparse.Namespace) -> None:
    """Raise `InputError` where what is asked for could not be written, before the work for it."""
    from seresnet_hub.evaluation.image_table import require_image_table
    from seresnet_hub.evaluation.report import require_report

    if options.report is not None:
        require_report(options.report)
    if options.predictions is not None:
        require_image_table(options.predictions)


def exit_code(_: argparse.Namespace, result: dict[str, Any]) -> int:
    """Return 1 where a model of a table could not be measured."""
    return 1 if result.get("failed") else 0
