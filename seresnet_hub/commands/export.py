"""Export a model to ONNX, OpenVINO or torch-export, with proof."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import Parser, command, keywords
from seresnet_hub.engines.export_facts import DYNAMIC
from seresnet_hub.models.name_forms import NAME_FORMS

EXAMPLE = "seresnet-hub export runs/mine --output runs/mine --format onnx"


def parser() -> Parser:
    parser = command(__doc__, prog="seresnet-hub export", example=EXAMPLE)
    parser.usage = "%(prog)s MODEL --output DIR [options]"
    parser.add_argument("model", metavar="MODEL", help=NAME_FORMS)
    file = parser.add_argument_group("the file")
    file.add_argument("--output", required=True, metavar="DIR", help="where DIR/FORMAT goes; may be the model's folder")
    file.add_argument("--format", default="onnx", metavar="F", help="onnx (default), openvino or torch-export")
    file.add_argument("--precision", default="fp32", metavar="P", help="fp32 (default), fp16, bf16 or int8")
    file.add_argument("--batch", type=_number, metavar="N", help="images at a time (default: dynamic, any number)")
    file.add_argument("--input-size", type=_number, metavar="N", help="pixels a side, or dynamic (default: as trained)")
    file.add_argument("--no-fuse", dest="fuse", action="store_false", help="leave norms and SE units as they are")
    file.add_argument("--with-preprocessing", action="store_true", help="take uint8 RGB pictures, give probabilities")
    file.add_argument("--force", action="store_true", help="replace an export that is there")
    accuracy = parser.add_argument_group("accuracy")
    accuracy.add_argument("--data", metavar="D", help="labelled pictures to measure before and after: folder or Hub id")
    accuracy.add_argument("--split", metavar="S", help="of --data (validation, else test)")
    int8 = parser.add_argument_group("int8")
    int8.add_argument("--calibrate", metavar="D", help="pictures to calibrate on: folder or Hub id (default: --data)")
    int8.add_argument("--keep", action="append", default=[], metavar="LAYER", help="stays in float; may be repeated")
    int8.add_argument("--max-drop", type=float, metavar="POINTS", help="of top-1 on --data: keep layers until it is so")
    return parser


def _number(text: str) -> int | str:
    if text == DYNAMIC:
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor {DYNAMIC}") from error


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.commands.terminal import tell
    from seresnet_hub.exporting.export import export

    result = export(**keywords(options))
    tell(f"to run it: {_way_to_run(result)}")
    return result


def _way_to_run(result: Mapping[str, Any]) -> str:
    """Return what runs an export: a command, where this package runs it."""
    from seresnet_hub.engines.exported_files import exports_in

    file, format = result["files"][0], result["format"]
    if format == "torch-export":
        return f"torch.export.load({file!r}).module()"
    if result["preprocessing"]:
        return "its own runtime, with uint8 pictures (batch, height, width, 3) in RGB order, gives probabilities"
    path = result["output"] if len(exports_in(Path(result["output"]), format)) == 1 else file
    return f"seresnet-hub predict {shlex.quote(f'{format}:{path}')} picture.jpg"
