"""Measure a model's accuracy on a data set; the last line of standard output is one JSON object."""

from __future__ import annotations

import _ctrl_c  # noqa: F401  # isort: skip

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from seresnet_hub.command_line import run
from seresnet_hub.data import open_split
from seresnet_hub.evaluation import evaluate
from seresnet_hub.hub import load


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a timm name, hf-hub:NS/NAME[@rev] or local-dir:DIR")
    parser.add_argument("--data", required=True, metavar="DIR_OR_HUB_ID", help="data set with images and labels")
    parser.add_argument("--split", metavar="S", help="its split (default: validation, else test)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="images at a time (default: 128)")
    options = parser.parse_args(arguments)
    split = open_split(options.data, options.split)
    model = load(options.model).to("cuda" if torch.cuda.is_available() else "cpu")
    accuracy = evaluate(model, split, batch_size=options.batch_size)
    return {
        "model": options.model,
        "data": options.data,
        "split": split.name,
        "seen": accuracy.seen,
        "top1": round(accuracy.top1, 4),
        "top5": round(accuracy.top5, 4),
        "images_per_second": round(accuracy.images_per_second, 1),
    }


if __name__ == "__main__":
    sys.exit(run(main))
