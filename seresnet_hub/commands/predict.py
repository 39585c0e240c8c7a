"""Name what pictures show, or write that, and features, into a table."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seresnet_hub.commands.parser import Parser, command
from seresnet_hub.commands.speed_options import add_speed_options, prepared, require_numbers
from seresnet_hub.models.name_forms import RUN_FORMS

if TYPE_CHECKING:
    from torch import nn

    from seresnet_hub.data.split import Split
    from seresnet_hub.training.processes import Processes

EXAMPLE = "seresnet-hub predict runs/mine photos --output photos.parquet"
FINAL = "final"  # the features before the classifier


def parser() -> Parser:
    parser = command(__doc__, prog="seresnet-hub predict", example=EXAMPLE)
    parser.any_bytes = frozenset({"images"})
    parser.usage = "%(prog)s [MODEL] SOURCE [SOURCE ...] [options]"
    parser.add_argument(
        "images", metavar="[MODEL] SOURCE", nargs="+",
        help=f"{RUN_FORMS} (default: a small CIFAR-10 network of the package); then picture files, folders, quoted "
        "patterns ('*.jpg'), addresses, or - for standard input; or one data set",
    )  # fmt: skip
    parser.add_argument("--split", metavar="S", help="of the data set (validation, else test, else train)")
    parser.add_argument("--label-column", metavar="NAME", help="of the data set (default: found by its type)")
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--topk", type=int, default=5, metavar="K", help="classes to name (default: 5)")
    answer.add_argument(
        "--output", metavar="FILE",
        help="a row for each picture, in FILE.parquet, .csv, .jsonl or a folder; after a kill the same command goes on",
    )  # fmt: skip
    answer.add_argument("--scores", action="store_true", help="with --output: the probabilities of all classes")
    answer.add_argument(
        "--features", nargs="*", type=_stage, metavar="K",
        help=f"with --output: pooled features of stages K, or of {FINAL} (what the classifier sees; the default)",
    )  # fmt: skip
    answer.add_argument("--labels-from-folder", action="store_true", help="the name of a picture's folder is its label")
    answer.add_argument("--force", action="store_true", help="replace another output, or begin anew")
    speed = add_speed_options(parser)
    speed.add_argument("--amp", choices=("bf16", "fp16"), help="compute in this precision (default: the weights')")
    speed.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    speed.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that decode images (as many as suit)",
    )  # fmt: skip
    speed.add_argument("--decoder", choices=("pil", "fast"), default="pil", help="fast: pixels may differ a little")
    return parser


def _stage(text: str) -> int | None:
    if text == FINAL:
        return None
    try:
        return int(text)
    except ValueError as error:
        problem = f"{text!r} is no stage: a stage is a number or {FINAL}; name pictures before --features"
        raise argparse.ArgumentTypeError(problem) from error


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.commands.launched import launched_processes

    with launched_processes() as processes:
        return _run(options, processes)


def _run(options: argparse.Namespace, processes: Processes | None) -> dict[str, Any]:
    from seresnet_hub.commands.launched import on_all
    from seresnet_hub.commands.terminal import tell
    from seresnet_hub.data.open_split import EMBEDDED
    from seresnet_hub.errors import InputError
    from seresnet_hub.inference.sources import open_sources
    from seresnet_hub.inference.table_files import format_of
    from seresnet_hub.models.load import load
    from seresnet_hub.models.names import is_model_folder, is_model_name
    from seresnet_hub.models.published_weights import OWN_WEIGHTS

    first, *others = options.images
    is_data = not others and (first == EMBEDDED or options.split is not None)
    has_model = is_model_name(first) and not is_data
    model_name, given = (first, others) if has_model else (OWN_WEIGHTS[0].name, options.images)
    if not given:
        why = "" if os.path.exists(first) else ", since no such file or folder is here"
        raise InputError(f"there is no picture to look at: {first} is taken for a model{why}; name pictures after it")
    for one in given:
        if is_model_folder(one):
            raise InputError(f"{one} is a model folder, not a picture: name one model, before the pictures")
    require_numbers(options)
    if options.output is not None:
        format_of(options.output)
    elif options.scores or options.features is not None or options.force:
        raise InputError("--scores, --features and --force are for a table: name it with --output")
    elif processes is not None:
        raise InputError("several processes write a table together: name it with --output")
    split = on_all(processes, lambda: open_sources(given, split=options.split, label_column=options.label_column))
    model = on_all(processes, lambda: load(model_name))
    if processes is None or processes.main:
        default = "" if model_name == first else ", the default, which comes with the package"
        tell(f"model: {model_name}{default} ({model.pretrained_cfg['architecture']}, {model.num_classes} classes)")  # type: ignore[index]
    if options.output is not None:
        return _write(options, model, model_name, split, processes)
    return {"model": model_name, **_predictions(options, prepared(model, options), split)}


def _workers(options: argparse.Namespace, rows: int, processes: int) -> int:
    from seresnet_hub.environment import FEW_PICTURES, loader_workers

    if options.workers is not None:
        return int(options.workers)
    return 0 if rows <= FEW_PICTURES else max(1, loader_workers() // processes)


def _write(
    options: argparse.Namespace, model: nn.Module, name: str, split: Split, processes: Processes | None
) -> dict[str, Any]:
    """Write the table, and return what was counted."""
    from seresnet_hub.commands.terminal import tell
    from seresnet_hub.inference.model_identity import model_identity
    from seresnet_hub.inference.write_predictions import write_predictions

    identity = model_identity(model, name)
    features = () if options.features is None else options.features or (None,)
    result = write_predictions(
        prepared(model, options), split, options.output, topk=options.topk, scores=options.scores, features=features,
        labels_from_folder=options.labels_from_folder, batch_size=options.batch_size,
        workers=_workers(options, split.rows, 1 if processes is None else processes.count),
        precision=options.amp or "no", decoder=options.decoder, force=options.force, identity=identity,
        prepared_as={"fused": options.fuse, "compiled": options.compile}, processes=processes, say=tell,
    )  # fmt: skip
    if processes is None or processes.main:
        if result["failed"]:
            tell(f"{result['failed']:,} of {result['rows']:,} pictures cannot be read: see 'error' in {options.output}")
        if options.labels_from_folder and not result.get("labelled"):
            tell(f"no folder is called as a class of {name}, so none of the pictures has a label")
    return result


def _predictions(options: argparse.Namespace, model: nn.Module, split: Split) -> dict[str, Any]:
    """Return the classes of each picture that can be read, and the errors of the others."""
    from seresnet_hub.commands.terminal import tell
    from seresnet_hub.errors import InputError
    from seresnet_hub.inference.prediction_table import accuracy, count
    from seresnet_hub.inference.run_batches import run_batches
    from seresnet_hub.inference.sources import named_error
    from seresnet_hub.inference.write_predictions import table_for

    by_folder = options.labels_from_folder or not split.label_column
    table = table_for(model, split, topk=options.topk, labels_from_folder=by_folder)
    if not table.topk:
        raise InputError("the model has no classifier: write its features into a table (--features with --output)")
    predictions: list[dict[str, Any]] = []
    unreadable: list[dict[str, Any]] = []
    counts = Counter[str]()
    batches = run_batches(
        model, split, batch_size=options.batch_size, workers=_workers(options, split.rows, 1),
        precision=options.amp or "no", decoder=options.decoder,
    )  # fmt: skip
    for answers in batches:
        rows = table.rows(answers)
        counts.update(count(table, rows))
        for row in rows.to_pylist():
            if row["error"] is not None:
                error = named_error(row["image"], row["error"])
                if split.rows == 1:
                    raise InputError(error)
                tell(f"unreadable: {error}")
                unreadable.append({"image": row["image"], "error": error})
                continue
            classes = [
                {"index": row[f"class_{k}"], "name": row[f"name_{k}"], "score": row[f"score_{k}"]}
                for k in range(1, table.topk + 1)
            ]
            predictions.append({"image": row["image"], "classes": classes})
    if not predictions:
        raise InputError(f"none of the {split.rows} pictures can be read")
    result: dict[str, Any] = {"predictions": predictions, "unreadable": unreadable, "failed": len(unreadable)}
    if options.labels_from_folder or split.label_column:
        return result | accuracy(counts)
    if counts["labelled"] == len(predictions):
        tell(f"{counts['right']} of {len(predictions)} pictures show what the folder they are in is called")
    return result
