"""Emulate ImageNet runs on eight GPUs, from measured figures: how long they take, and what holds them up."""

from __future__ import annotations

import seresnet_hub_command  # noqa: F401  # isort: skip

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import command
from seresnet_hub.commands.result_or_error import start


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, example="python scripts/simulate.py --network-gigabits 10")
    parser.add_argument(
        "--measured", default="model_cards", type=Path, metavar="DIR",
        help="folder of measured figures (default: model_cards)",
    )  # fmt: skip
    parser.add_argument("--cores", type=int, default=96, metavar="N", help="CPU cores of the machine (default: 96)")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="loader workers a GPU (default: 8)")
    parser.add_argument("--network-gigabits", type=float, default=25.0, metavar="N", help="a second (default: 25)")
    parser.add_argument("--disk-gigabytes", type=float, default=3.0, metavar="N", help="a second (default: 3)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the result into this JSON file")
    parser.add_argument(
        "--measure", metavar="DIR_OR_HUB_ID",
        help="emulate nothing: measure the loader's CPU time an image on this data set, into the folder of figures",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=6000, metavar="N", help="with --measure (default: 6000)")
    parser.add_argument(
        "--code", choices=("before", "now"), default="now", help="with --measure: whose figures they are (default: now)"
    )
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from _simulate_cpu import CPU_FILE, measure_cpu
    from _simulate_runs import ONLY_NOW, TRAINED, Machine, simulated_runs

    from seresnet_hub.errors import InputError
    from seresnet_hub.files.atomic_writing import write_json

    if options.measure:
        path = options.measured / CPU_FILE
        trained = tuple(one for one in TRAINED if options.code == "now" or ONLY_NOW not in one)
        return measure_cpu(options.measure, trained, images=options.images, code=options.code, path=path)
    figures = {name: getattr(options, name) for name in ("cores", "workers", "network_gigabits", "disk_gigabytes")}
    for name, value in figures.items():
        if value <= 0:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: it must be above 0")
    result = simulated_runs(Machine(**figures), options.measured)
    if options.output:
        write_json(options.output, result)
    return result


if __name__ == "__main__":
    start(parser(), main)
