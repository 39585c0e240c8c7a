"""Measure the project's own speed and memory."""

from __future__ import annotations

import seresnet_hub_command  # noqa: F401  # isort: skip

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from _benchmark_options import add_convert, add_inference, add_loader, add_networks, add_predict

from seresnet_hub.commands.parser import JSON_HELP, command
from seresnet_hub.commands.result_or_error import start

Add = Callable[[argparse.ArgumentParser], None]
# What can be measured: name, what it is, its options. `_benchmark_NAME` has the measurement, `benchmark_NAME`.
BENCHMARKS: tuple[tuple[str, str, Add], ...] = (
    ("convert", "time and memory of a conversion, against load and save", add_convert),
    ("inference", "speed of a fused network, beside timm's and a plain one", add_inference),
    ("loader", "speed and memory of the loader, beside others", add_loader),
    ("predict", "speed of predictions of a folder, beside timm's inference.py", add_predict),
    ("training", "speed of training steps, beside timm's and a plain network's", add_networks),
)


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, example="python scripts/benchmark.py inference --dtype fp32")
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, meaning, add in BENCHMARKS:
        options = commands.add_parser(name, help=meaning, description=meaning)
        options.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=JSON_HELP)
        add(options)
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    measure: Callable[[argparse.Namespace], dict[str, Any]] = getattr(
        import_module(f"_benchmark_{options.benchmark}"), f"benchmark_{options.benchmark}"
    )
    return measure(options)


if __name__ == "__main__":
    start(parser(), main)
