"""Measure inference on a CPU by torch and by the engines that exported files are run by, all in turn."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from _benchmark_inference_contenders import BASE, EXPORTED, Contender, Run, Workshop, contenders
from _benchmark_networks import PLAIN
from _benchmark_options import NETWORKS
from _benchmark_timing import calls_in
from torch._inductor import config as inductor

from seresnet_hub.commands.terminal import tell
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.environment import code_commit, hardware, versions
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import write_json
from seresnet_hub.models.compiling import INFERENCE_SETTINGS, compiler_errors, require_compiler

BATCH_SIZES = (1, 16)
SECONDS = 0.4  # of calls in each turn
NOT_HERE = ("kernels", "target", "build", "inductor", "log")  # options of the benchmark of networks alone
# times[batch size][contender]: the seconds of each call, by round
Times = dict[int, dict[Contender, list[list[float]]]]


def measure_engines(options: argparse.Namespace) -> dict[str, Any]:
    """Time the networks in each engine, in turn in each round, and return latencies, speeds and ratios.

    A turn is one call that does not count, as threads of the engine before may still wait for work, and then calls for
    about `--seconds`. The time of a round is the median of its calls; a ratio is the median over rounds of the ratios
    within each. `times_base` compares with timm's SE network compiled in fp32, `share_of_plain` with the plain network
    in the same engine and precision, exported by this package. What cannot be prepared is named under `left_out`.
    """
    _check(options)
    batch_sizes, seconds = options.batch_size or BATCH_SIZES, SECONDS if options.seconds is None else options.seconds
    with tempfile.TemporaryDirectory() if options.exports is None else nullcontext(options.exports) as folder:
        workshop = Workshop(options, Path(folder))
        wanted = contenders(options, [name for name in NETWORKS if name in (options.network or NETWORKS)])
        images = {
            size: torch.randn(size, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
            for size in batch_sizes
        }
        runs, left_out = _prepared(workshop, wanted, list(images.values()))
        result: dict[str, Any] = {
            "benchmark": "inference_engines", "device": hardware(), "threads": torch.get_num_threads(),
            "commit": code_commit(), "versions": {**versions(), **_engine_versions(options.peer)},
            "model": options.model, "plain": options.plain, "size": options.size,
            "calibrated_on": options.calibrate or "parts of two photographs", "seconds": seconds, "base": str(BASE),
            "rounds": 0, "left_out": left_out, "measurements": [],
        }  # fmt: skip
        times: Times = {size: {contender: [] for contender in runs} for size in images}
        turns = random.Random(0)
        with torch.no_grad():
            for number in range(options.rounds):
                for size, given in images.items():
                    for contender in turns.sample(list(runs), len(runs)):  # so that none always follows the same other
                        times[size][contender].append(_seconds_of_calls(runs[contender], given, seconds))
                result |= {"rounds": number + 1, "measurements": summary(times)}
                if options.output:
                    write_json(options.output, result)
                tell(f"round {number + 1} of {options.rounds} is measured")
    if options.picture:
        from _benchmark_inference_picture import draw_engines

        draw_engines(result, options.picture)
    return result


def _check(options: argparse.Namespace) -> None:
    if options.rounds < 1 or options.size < 32 or min(options.batch_size or [1]) < 1:
        raise InputError("--rounds and --batch-size must be at least 1, --size at least 32")
    if given := [name for name in NOT_HERE if getattr(options, name)]:
        raise InputError(f"--{given[0]} is of torch alone, and does not go with --peer")
    if "tf32" in (options.dtype or ()):
        raise InputError("--dtype tf32 is a precision of NVIDIA's GPUs, and --peer measures CPUs: take fp32 or bf16")
    for engine in options.peer:
        require_package(engine)
    if "compiled" in (options.mode or ("compiled",)):
        require_compiler(torch.device("cpu"))


def _engine_versions(engines: Sequence[str]) -> dict[str, str]:
    return {name: metadata.version(name) for name in [*dict.fromkeys(engines), "nncf"]}


def _prepared(
    workshop: Workshop, wanted: Sequence[Contender], images: Sequence[torch.Tensor]
) -> tuple[dict[Contender, Run], dict[str, str]]:
    """Return what each contender is run by, after one call with each batch, and why the others have none."""
    runs: dict[Contender, Run] = {}
    left_out: dict[str, str] = {}
    # All compiled networks share the code of one class, and torch keeps eight compiled forms of it unless told.
    limit = torch._dynamo.config.patch(recompile_limit=64)
    with torch.no_grad(), inductor.patch(dict(INFERENCE_SETTINGS["default"]["cpu"])), limit, compiler_errors():
        for contender in wanted:
            start = time.perf_counter()
            try:
                run = workshop.run_of(contender)
                for given in images:
                    run(given)
            except InputError as error:
                left_out[str(contender)] = str(error)
                tell(f"{contender}: left out: {error}")
                continue
            runs[contender] = run
            tell(f"{contender}: ready after {time.perf_counter() - start:.0f} s")
    return runs, left_out


def _seconds_of_calls(run: Run, images: torch.Tensor, seconds: float) -> list[float]:
    start = time.perf_counter()
    run(images)
    found = []
    for _ in range(calls_in(seconds, time.perf_counter() - start)):
        start = time.perf_counter()
        run(images)
        found.append(time.perf_counter() - start)
    return found


def summary(times: Times) -> list[dict[str, Any]]:
    """Return the figures of each contender and batch size, from the seconds of its calls by round."""
    measurements = []
    for size, of_size in times.items():
        medians = {one: [statistics.median(calls) for calls in rounds] for one, rounds in of_size.items()}
        for one, rounds in of_size.items():
            calls = sorted(1e3 * call for calls in rounds for call in calls)
            how = one.how if one.engine == BASE.engine else EXPORTED
            plain = Contender(engine=one.engine, how=how, precision=one.precision, network=PLAIN)
            measurements.append({
                "engine": one.engine, "how": one.how, "precision": one.precision, "network": one.network,
                "batch_size": size, "calls": len(calls), "p50_ms": round(statistics.median(calls), 3),
                "p95_ms": round(calls[min(len(calls) - 1, round(0.95 * len(calls)))], 3),
                "images_per_second": round(size / statistics.median(medians[one]), 2),
                "images_per_second_rounds": [round(size / median, 2) for median in medians[one]],
                "times_base": _ratio(medians.get(BASE), medians[one]),
                "share_of_plain": _ratio(medians.get(plain), medians[one]),
            })  # fmt: skip
    return measurements


def _ratio(others: list[float] | None, own: list[float]) -> float | None:
    if others is None:
        return None
    return round(statistics.median(other / one for other, one in zip(others, own, strict=True)), 4)
