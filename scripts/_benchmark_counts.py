"""Count the kernels that a GPU would run, on a machine without it: each network in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from _benchmark_options import NETWORKS
from _benchmark_timing import Log

from seresnet_hub.errors import InputError
from seresnet_hub.models.compiling import INFERENCE_SETTINGS
from seresnet_hub.recipes.inductor import options_of

BATCH_SIZE = 256
# Inductor's settings of training that are worth a prediction. The second stores a sum of gradients that each of its
# readers would compute again otherwise.
TRAINING_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "realize_reads_threshold=2": {"realize_reads_threshold": 2},
}
# What needs the GPU itself. Norms are folded by hand instead of by freezing.
NEEDS_THE_GPU = ("freezing", "triton.cudagraphs", "test_configs.autotune_choice_desc_regex")


def count_networks(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return for each of Inductor's settings and each network the kernels' bytes, operations and predicted times.

    They are those of bf16 in channels_last; in training autocast's. The kernels of a network, which are many, go to
    `--log` alone. Errors: `InputError` where Triton is not installed, or more than one batch size is asked for.
    """
    try:
        import triton
    except ImportError as error:
        raise InputError("--target needs Triton, which torch's CPU builds lack: install a CUDA build") from error
    if options.dtype not in (None, ["bf16"]) or len(options.batch_size or [BATCH_SIZE]) > 1:
        raise InputError("--target counts in bf16, and one --batch-size at a time")
    batch_size = (options.batch_size or [BATCH_SIZE])[0]
    result: dict[str, Any] = {
        "benchmark": what, "target": options.target, "torch": torch.__version__, "triton": triton.__version__,
        "timm": timm.__version__, "model": options.model, "plain": options.plain, "dtype": "bf16",
        "batch_size": batch_size, "size": options.size, "counted": {},
    }  # fmt: skip
    log = Log(options.log, benchmark=what, model=options.model, target=options.target)
    for name, settings in _settings(what, options).items():
        counted: dict[str, Any] = {"inductor": settings}
        for kind in options.network or NETWORKS:
            one = _counted(
                what=what, network=options.plain if kind == "plain" else options.model, kind=kind, settings=settings,
                target=options.target, batch_size=batch_size, size=options.size, build=options.build,
            )  # fmt: skip
            log("counted", network=kind, settings=name, counted=one)
            predicted = one["network"]["predicted"]
            print(f"{what}, {name}: {kind}: predicted {predicted['ms']:.1f} ms", file=sys.stderr)
            del one["network"]["kernels"]
            counted[kind] = one
        result["counted"][name] = counted
    return result


def _settings(what: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    sets: dict[str, Mapping[str, Any]] = dict(TRAINING_SETTINGS)
    if what == "inference":
        sets = {name: of_device["cuda"] for name, of_device in INFERENCE_SETTINGS.items()}
    given = options_of(options.inductor, "--inductor ")
    result = {}
    for name, settings in sets.items():
        kept = {key: value for key, value in settings.items() if key not in NEEDS_THE_GPU}
        # Candidates cannot be timed against each other: the first is taken, and the bytes are those of any.
        one = {"test_configs.max_mm_configs": 1} if kept.get("max_autotune_gemm") else {}
        result[name] = {**kept, **one, **given}
    return result


def _counted(**arguments: Any) -> dict[str, Any]:
    """Count in a process of its own, which is spoilt for anything else."""
    script = Path(__file__).parent / "_count_kernels.py"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise InputError(f"the kernels of {arguments['network']} were not generated ({last[0][:300]})")
    counted: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return counted
