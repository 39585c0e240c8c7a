"""Measure loaders side by side: images/s, CPU time, memory, time to the first batch, and what a training step waits."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _benchmark_loader_data import WRITTEN_BY_ITSELF, prepare
from _benchmark_loader_remote import REMOTE_PEERS, Remote, require_remote, served
from _benchmark_options import OTHER_DECODERS, OURS, PEERS

from seresnet_hub.errors import InputError

AGAINST = "against"  # this package in another checkout
# Of a measurement that is repeated in rounds; the stall share is measured apart.
Measured = dict[str, list[dict[str, float]]]


def benchmark_loader(options: argparse.Namespace) -> dict[str, Any]:
    """Run every loader over one epoch of the same images, in a process of its own, all in turn in each round.

    Images/s and CPU time count from the first batch on, over the process and its workers.
    Ratios are medians over rounds of (this package / peer) within a round, so that a busy machine weighs on both.
    With `--remote`, images come from a double of the Hub on this machine; requests and bytes are those of a process,
    from its start on. `cold` gives each process empty caches, `cached` those of an epoch that came before.
    """
    peers, pythons = _checked(options)
    names = (OURS, *peers)
    measured: Measured = {name: [] for name in names}
    stalls = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        prepare(scratch, options, peers)
        for name in peers:
            if name in WRITTEN_BY_ITSELF:
                _run(pythons, "write", name, scratch)
        remote = stack.enter_context(served(scratch, options)) if options.remote else None
        run = _Runner(scratch, options, pythons, remote)
        for number in range(options.rounds):
            for name in names:
                one = run(name, step_time=0.0)
                measured[name].append(one)
                print(f"round {number + 1}: {name}: {one['images_per_second']:.0f} images/s", file=sys.stderr)
        if options.step_time:
            stalls = {name: run(name, step_time=options.step_time)["stall_share"] for name in names}
    result = {
        "benchmark": "loader", "images": options.images, "batch_size": options.batch_size, "workers": options.workers,
        "repeats": options.repeats, "rounds": options.rounds, "cores": os.cpu_count(), "step_time": options.step_time,
        "remote": options.remote, "latency_ms": options.latency_ms, "mbit": options.mbit,
        "loaders": {name: _summary(name, measured, stalls) for name in names},
    }  # fmt: skip
    if options.picture:
        _draw(result, measured, options.picture)
    return result


def _checked(options: argparse.Namespace) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the peers and the interpreters of those that have their own."""
    if options.rounds < 1 or options.repeats < 1:
        raise InputError(f"--rounds {options.rounds} --repeats {options.repeats}: at least one is needed")
    if not options.remote and (options.latency_ms or options.mbit is not None):
        raise InputError("--latency-ms and --mbit are of --remote cold or --remote cached")
    if options.latency_ms < 0 or (options.mbit is not None and options.mbit <= 0):
        raise InputError("--latency-ms must not be negative, and --mbit must be positive")
    pythons = {}
    for given in options.peer_python:
        name, _, path = given.partition("=")
        if name not in PEERS or shutil.which(path) is None:
            raise InputError(f"--peer-python {given}: write NAME=PATH, a peer and the Python that has its package")
        pythons[name] = path
    everyone: tuple[str, ...] = REMOTE_PEERS if options.remote else PEERS
    # That one needs an interpreter of its own: its package wants an older huggingface_hub.
    everyone = tuple(name for name in everyone if name != "mosaicml-streaming" or name in pythons)
    peers = everyone if "all" in options.peer else tuple(dict.fromkeys(options.peer))
    if options.remote:
        require_remote(peers)
    if options.repeats > 1 and (others := sorted({*peers} - {*OTHER_DECODERS})):
        raise InputError(f"--repeats {options.repeats}: {', '.join(others)} shows each image once")
    if options.against and options.remote:
        raise InputError("--against measures another checkout without --remote")
    return (*peers, AGAINST) if options.against else peers, pythons


class _Runner:
    """Measures loaders, each in a process of its own."""

    def __init__(
        self, scratch: Path, options: argparse.Namespace, pythons: dict[str, str], remote: Remote | None
    ) -> None:
        self._scratch, self._options, self._pythons, self._remote = scratch, options, pythons, remote
        self._warm: set[str] = set()

    def __call__(self, name: str, *, step_time: float) -> dict[str, float]:
        options, remote = self._options, self._remote
        settings = {
            "batch_size": options.batch_size, "workers": options.workers, "step_time": step_time,
            "remote": remote is not None, "repeats": options.repeats,
        }  # fmt: skip
        if name == AGAINST:
            environment = {**os.environ, "PYTHONPATH": str(options.against)}
            return _run(self._pythons, "measure", OURS, self._scratch, settings, environment)
        if remote is None:
            return _run(self._pythons, "measure", name, self._scratch, settings)
        environment = remote.environment(name)
        if options.remote == "cached" and name not in self._warm:
            _run(self._pythons, "measure", name, self._scratch, {**settings, "step_time": 0.0}, environment)
            self._warm.add(name)
        before = remote.counts()
        one = _run(self._pythons, "measure", name, self._scratch, settings, environment)
        if options.remote == "cold":
            shutil.rmtree(environment["HF_HOME"], ignore_errors=True)
        return {**one, **{key: count - before[key] for key, count in remote.counts().items()}}


def _run(
    pythons: dict[str, str],
    what: str,
    name: str,
    scratch: Path,
    settings: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> dict[str, float]:
    script = Path(__file__).parent / "_benchmark_loader_process.py"
    command = [pythons.get(name, sys.executable), str(script), what, name, str(scratch), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise InputError(f"the measured process {name!r} failed: {done.stderr[-600:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _summary(name: str, measured: Measured, stalls: dict[str, float]) -> dict[str, Any]:
    rounds = measured[name]
    found: dict[str, Any] = {
        key: round(statistics.median(one[key] for one in rounds), 6) for key in rounds[0] if key != "stall_share"
    }
    found["images_per_second_range"] = [
        round(extreme(one["images_per_second"] for one in rounds), 1) for extreme in (min, max)
    ]
    if name in stalls:
        found["stall_share"] = round(stalls[name], 4)
    if name != OURS:
        pairs = list(zip(measured[OURS], rounds, strict=True))
        for key, ratio in RATIOS.items():
            found[key] = round(statistics.median(ratio(ours, theirs) for ours, theirs in pairs), 3)
    return found


Figures = dict[str, float]
RATIOS: dict[str, Callable[[Figures, Figures], float]] = {
    "ours_times_as_fast": lambda a, b: a["images_per_second"] / b["images_per_second"],
    "ours_times_less_cpu": lambda a, b: b["cpu_seconds_per_image"] / a["cpu_seconds_per_image"],
    "ours_share_of_pss": lambda a, b: a["peak_pss_bytes"] / b["peak_pss_bytes"],
    "ours_share_above_imports": lambda a, b: a["peak_above_imports_bytes"] / b["peak_above_imports_bytes"],
    "ours_share_of_rss": lambda a, b: a["peak_rss_bytes"] / b["peak_rss_bytes"],
}


def _place(result: dict[str, Any]) -> str:
    if not result["remote"]:
        return ""
    line = f"{result['mbit']:g} Mbit/s" if result["mbit"] else "no limit of bandwidth"
    return f", {result['remote']} from a Hub at {result['latency_ms']:g} ms, {line}"


def _draw(result: dict[str, Any], measured: Measured, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(measured)
    panels = (
        ("images_per_second", "images/s", 1.0),
        ("cpu_seconds_per_image", "CPU ms per image", 1e3),
        ("peak_pss_bytes", "memory of all processes (PSS), GB", 1e-9),
        ("seconds_to_first_batch", "seconds to the first batch", 1.0),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(14, 0.5 * len(names) + 1.6), sharey=True)
    for axis, (key, label, scale) in zip(axes, panels, strict=True):
        values = [result["loaders"][name][key] * scale for name in names]
        bars = axis.barh(names, values, color=["tab:blue" if name == OURS else "tab:gray" for name in names])
        axis.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=12)
        for number, name in enumerate(names):
            axis.plot([one[key] * scale for one in measured[name]], [number] * len(measured[name]), "k.", markersize=3)
        axis.set_title(label, fontsize=10)
        axis.margins(x=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(
        f"{result['images']:,} images, {result['workers']} workers on {result['cores']} cores, "
        f"batches of {result['batch_size']}{_place(result)}; "
        f"medians of {result['rounds']} interleaved rounds (dots)", fontsize=10,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=110)
