"""Name what pictures show; the last line of standard output is one JSON object."""

from __future__ import annotations

import _ctrl_c  # noqa: F401  # isort: skip

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seresnet_hub.command_line import run
from seresnet_hub.errors import InputError
from seresnet_hub.hub import load
from seresnet_hub.images import image_files
from seresnet_hub.inference import predict


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a timm name, hf-hub:NS/NAME[@rev] or local-dir:DIR")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture files, folders of them, or - for stdin")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes to name (default: 5)")
    options = parser.parse_args(arguments)
    names: list[str] = []
    pictures: list[Path | bytes] = []
    for given in options.images:
        found: list[Path | bytes] = [sys.stdin.buffer.read()] if given == "-" else [*image_files([given])]
        names += ["-"] if given == "-" else map(str, found)
        pictures += found
    if any(picture == b"" for picture in pictures):
        raise InputError("-: standard input is empty")
    model = load(options.model).to("cuda" if torch.cuda.is_available() else "cpu")
    results = predict(model, pictures, topk=options.topk)
    for name, classes in zip(names, results, strict=True):
        best = ", ".join(f"{found['name']} {100 * found['score']:.1f} %" for found in classes)
        print(f"{name}: {best}")
    predictions = [{"image": name, "classes": classes} for name, classes in zip(names, results, strict=True)]
    return {"model": options.model, "predictions": predictions}


if __name__ == "__main__":
    sys.exit(run(main))
