"""Name what pictures show."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import Parser, command
from seresnet_hub.commands.speed_options import add_speed_options, prepared
from seresnet_hub.models.name_forms import NAME_FORMS

EXAMPLE = "seresnet-hub predict runs/mine photos --topk 3"


def parser() -> Parser:
    parser = command(__doc__, prog="seresnet-hub predict", example=EXAMPLE)
    parser.any_bytes = frozenset({"images"})
    parser.usage = "%(prog)s [MODEL] IMAGE [IMAGE ...] [options]"
    parser.add_argument(
        "images", metavar="[MODEL] IMAGE", nargs="+",
        help=f"{NAME_FORMS} (default: a small CIFAR-10 network that comes with the package); then picture files, "
        "folders of them, or - for standard input",
    )  # fmt: skip
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--topk", type=int, default=5, metavar="K", help="classes to name (default: 5)")
    add_speed_options(parser)
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.commands.terminal import tell
    from seresnet_hub.data.class_names import class_names
    from seresnet_hub.data.read_image import MOST_BYTES
    from seresnet_hub.errors import InputError
    from seresnet_hub.inference.find_images import picture_files
    from seresnet_hub.inference.predict import predict
    from seresnet_hub.models.load import load
    from seresnet_hub.models.names import is_model_folder, is_model_name
    from seresnet_hub.models.published_weights import OWN_WEIGHTS

    first, *others = options.images
    model_name, given_images = (first, others) if is_model_name(first) else (OWN_WEIGHTS[0].name, options.images)
    if not given_images:
        raise InputError(f"there is no picture to look at: {first} is taken for a model; name pictures after it")
    for given in given_images:
        if is_model_folder(given):
            raise InputError(f"{given} is a model folder, not a picture: name one model, before the pictures")
    names: list[str] = []
    pictures: list[Path | bytes] = []
    for given in given_images:
        if given == "-":
            names.append("-")
            # Closed, there is nothing to read from.
            pictures.append(sys.stdin.buffer.read(MOST_BYTES + 1) if sys.stdin else b"")
            continue
        found, left_out = picture_files(given)
        if left_out:
            which = f"{len(left_out)} images that belong to models, runs or reports"
            tell(f"{given}: {which} were left out ({left_out[0]} …)")
        names += map(str, found)
        pictures += found
    if any(picture == b"" for picture in pictures):
        raise InputError("-: standard input is empty or closed")
    model = load(model_name)
    default = "" if model_name == first else ", the default, which comes with the package"
    tell(f"model: {model_name}{default} ({model.pretrained_cfg['architecture']}, {model.num_classes} classes)")  # type: ignore[index]
    model = prepared(model, options)
    unreadable: list[dict[str, str]] = []

    def note(number: int, error: InputError) -> None:
        if len(pictures) == 1:
            raise error
        tell(f"unreadable: {error}")
        unreadable.append({"image": names[number], "error": str(error)})

    results = predict(model, pictures, topk=options.topk, unreadable=note)
    if not any(results):
        raise InputError(f"none of the {len(names)} pictures can be read")
    kept = [(name, classes) for name, classes in zip(names, results, strict=True) if classes]
    known = set(class_names(model) or ())
    folders = [Path(name).parent.name for name, _ in kept]
    if known.issuperset(folders):
        right = sum(classes[0]["name"] == folder for (_, classes), folder in zip(kept, folders, strict=True))
        tell(f"{right} of {len(kept)} pictures show what the folder they are in is called")
    predictions = [{"image": name, "classes": classes} for name, classes in kept]
    return {"model": model_name, "predictions": predictions, "unreadable": unreadable}


def exit_code(options: argparse.Namespace, result: dict[str, Any]) -> int:
    """Return 1 where some of the pictures could not be read."""
    return int(bool(result["unreadable"]))
