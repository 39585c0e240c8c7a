"""Measure the project's own speed and memory; the last line of standard output is one JSON object."""

from __future__ import annotations

import _ctrl_c  # noqa: F401  # isort: skip

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from _benchmark_convert import add_convert, benchmark_convert
from _benchmark_inference import add_inference, benchmark_inference
from _benchmark_loader import add_loader, benchmark_loader
from _benchmark_training import add_training, benchmark_training

from seresnet_hub.command_line import run

Add = Callable[[argparse.ArgumentParser], None]
Measure = Callable[[argparse.Namespace], dict[str, Any]]
# What can be measured: name, what it is, its options, the measurement.
BENCHMARKS: tuple[tuple[str, str, Add, Measure], ...] = (
    ("convert", "time and memory of a conversion, against load and save", add_convert, benchmark_convert),
    ("inference", "speed of a fused network, beside timm's and a plain one", add_inference, benchmark_inference),
    ("loader", "speed and memory of the loader, beside others", add_loader, benchmark_loader),
    ("training", "speed of training steps, beside timm's and a plain network's", add_training, benchmark_training),
)


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, meaning, add, measure in BENCHMARKS:
        command = commands.add_parser(name, help=meaning, description=meaning)
        add(command)
        command.set_defaults(measure=measure)
    options = parser.parse_args(arguments)
    measure_chosen: Measure = options.measure
    return measure_chosen(options)


if __name__ == "__main__":
    sys.exit(run(main))
