"""Measure predictions of a folder side by side: this package's command, and timm's `inference.py`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import timm
import torch
from _benchmark_options import OURS, TIMM
from timm.models import save_for_hf

from seresnet_hub.environment import code_commit, hardware, usable_cpus, versions
from seresnet_hub.errors import InputError
from seresnet_hub.inference.find_images import found_in

PROCESS = Path(__file__).parent / "_benchmark_predict_process.py"
# Our command lets threads that wait sleep, which leaves the cores to the workers; so timm's script is also run so.
TIMM_PASSIVE, PASSIVE = "timm_passive", {"OMP_WAIT_POLICY": "passive"}
# A run's files: those of its answers, each with the names of the columns of pictures, classes and scores.
COLUMNS = {OURS: ("image", "class_1", "score_1"), TIMM: ("filename", "index_0", "prob_0")}
TOPK = 5
Figures = dict[str, float]


def benchmark_predict(options: argparse.Namespace) -> dict[str, Any]:
    """Let each program predict the same pictures by the same networks, all in turn in each round.

    A round runs each program on all pictures and on the first few of them. The difference of the two is the time of
    the pictures, and the rest is what it takes to start and to end. Decoding alone and the network alone are measured
    in processes of their own. Ratios are medians over rounds of (timm / this package) within a round.
    """
    pictures = _checked(options)
    programs = [OURS, *([TIMM] if options.timm_inference else []), *([TIMM_PASSIVE] if options.timm_passive else [])]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        few = _first_pictures(options.data, pictures[: options.few], scratch / "few")
        for name in options.model or ["seresnet18", "seresnet50"]:
            runs = _Runs(_written(name, scratch), options, scratch, few, len(pictures))
            rounds: dict[str, list[Figures]] = {program: [] for program in programs}
            for number in range(options.rounds):
                for program in programs if number % 2 == 0 else programs[::-1]:
                    rounds[program].append(one := runs.measured(program))
                    speeds = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in one.items())
                    print(f"{name}, round {number + 1}: {program}: {speeds}", file=sys.stderr)
            results[name] = {
                "programs": {program: _summary(rounds[program], rounds[OURS]) for program in programs},
                **(runs.compared() if len(programs) > 1 else {}),
            }
    return {
        "benchmark": "predict", "pictures": len(pictures), "few": options.few, "batch_size": options.batch_size,
        "workers": options.workers, "format": options.format, "rounds": options.rounds, "cores": usable_cpus(),
        "device": hardware(), "commit": code_commit(), "versions": versions(), "networks": results,
    }  # fmt: skip


def _checked(options: argparse.Namespace) -> list[Path]:
    """Return the pictures. Errors: `InputError` where an option cannot be used."""
    if options.rounds < 1 or options.workers < 1:
        raise InputError(f"--rounds {options.rounds} --workers {options.workers}: at least one is needed")
    if options.timm_passive and not options.timm_inference:
        raise InputError("--timm-passive: name timm's script as well, with --timm-inference")
    if options.timm_inference and not options.timm_inference.is_file():
        raise InputError(f"--timm-inference {options.timm_inference}: no such file; it is in timm's repository")
    pictures = [Path(one.path) for one in found_in(str(options.data)) if not one.of_a_model]
    if not 0 < options.few < len(pictures):
        raise InputError(f"--data {options.data}: it must be a folder of more than {options.few} pictures (--few)")
    return pictures


def _first_pictures(folder: Path, pictures: list[Path], output: Path) -> Path:
    """Make a folder of links to some of the pictures, in folders of the same names."""
    for picture in pictures:
        link = output / picture.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(picture.resolve())
    return output


def _written(name: str, scratch: Path) -> Path:
    """Write an architecture of timm's with random weights as a model folder, which both programs load."""
    torch.manual_seed(0)
    save_for_hf(timm.create_model(name), scratch / name, safe_serialization=True)
    return scratch / name


class _Runs:
    """Runs of programs with one model on the same pictures."""

    def __init__(self, model: Path, options: argparse.Namespace, scratch: Path, few: Path, count: int) -> None:
        self._model, self._options, self._scratch, self._few, self._count = model, options, scratch, few, count

    def measured(self, program: str) -> Figures:
        """Return the speeds of a program: of whole runs without their start, of decoding and of the network alone."""
        few, few_cpu = self._timed(program, self._few, self._output(program, "few"))
        all_, all_cpu = self._timed(program, self._options.data, self._output(program, "all"))
        if all_ <= few:
            raise InputError(f"{program}: all pictures took no longer than {self._options.few} of them; give many more")
        pictures = self._count - self._options.few
        return {
            "images_per_second": pictures / (all_ - few),
            "cpu_seconds_per_image": (all_cpu - few_cpu) / pictures,
            "start_seconds": few - self._options.few * (all_ - few) / pictures,
            "whole_seconds": all_,
            "decoding_images_per_second": self._alone("decoding", program),
            "network_images_per_second": self._alone("network", program),
        }

    def compared(self) -> dict[str, float]:
        """Return which share of the pictures has the same first class, and how far its scores are apart at most."""
        ours, theirs = (_answers(self._output(program, "all"), self._options.data, program) for program in (OURS, TIMM))
        if ours.keys() != theirs.keys():
            raise InputError(f"the programs have answers for {len(ours)} and {len(theirs)} pictures, not for the same")
        same = sum(ours[name][0] == theirs[name][0] for name in ours)
        apart = max(abs(ours[name][1] - theirs[name][1]) for name in ours)
        return {"same_class_share": same / len(ours), "largest_score_difference": apart}

    def _output(self, program: str, which: str) -> Path:
        return self._scratch / f"{program}_{which}.{self._options.format}"

    def _timed(self, program: str, pictures: Path, output: Path) -> tuple[float, float]:
        """Return seconds of a run, and CPU seconds of it and its workers."""
        options = self._options
        common = ["--topk", str(TOPK), "--batch-size", str(options.batch_size), "--workers", str(options.workers)]
        if program == OURS:
            output.unlink(missing_ok=True)
            command = ["-m", "seresnet_hub", "predict", str(self._model), str(pictures), "--output", str(output)]
        else:
            command = [
                str(options.timm_inference), "--data-dir", str(pictures), "--model", f"local-dir:{self._model}",
                "--device", "cuda" if torch.cuda.is_available() else "cpu", "--use-train-size", "--fullname",
                "--results-dir", str(output.parent), "--results-file", output.name, "--results-format", options.format,
                "--results-separate-col", "--include-index", "--no-console-results",
            ]  # fmt: skip
        return _run([*command, *common], PASSIVE if program == TIMM_PASSIVE else {})[:2]

    def _alone(self, what: str, program: str) -> float:
        options = self._options
        settings = {"batch_size": options.batch_size, "workers": options.workers, "images": options.alone}
        words = [what, program, str(self._model), str(options.data), json.dumps(settings)]
        settled = {} if program == TIMM else PASSIVE
        return float(json.loads(_run([str(PROCESS), *words], settled)[2].splitlines()[-1]))


def _run(words: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Run Python; return seconds, CPU seconds of it and its children, and its output. Errors: `InputError`."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode != 0:
        raise InputError(f"the measured process {words[:3]} failed: {done.stderr[-600:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu, done.stdout


def _answers(path: Path, folder: Path, program: str) -> dict[str, tuple[int, float]]:
    """Return class and score of each picture, by its path within the folder, from what a program wrote."""
    read: Any = pyarrow.parquet.read_table if path.suffix == ".parquet" else pyarrow.csv.read_csv
    names, classes, scores = (read(path)[column].to_pylist() for column in COLUMNS[program])
    within = [os.path.relpath(name, folder) if program == OURS else name for name in names]
    return dict(zip(within, zip(classes, scores, strict=True), strict=True))


def _summary(rounds: list[Figures], ours: list[Figures]) -> dict[str, Any]:
    found: dict[str, Any] = {key: round(statistics.median(one[key] for one in rounds), 6) for key in rounds[0]}
    speeds = [one["images_per_second"] for one in rounds]
    found["images_per_second_range"] = [round(extreme(speeds), 1) for extreme in (min, max)]
    if rounds is not ours:
        for key in ("images_per_second", "decoding_images_per_second", "network_images_per_second"):
            ratios = [mine[key] / theirs[key] for mine, theirs in zip(ours, rounds, strict=True)]
            found[f"ours_times_{key}"] = round(statistics.median(ratios), 3)
    return found
