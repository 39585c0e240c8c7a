"""Make the project's figures of what the kit brought back from a GPU machine: benchmark_*_gpu.json and a picture."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import seresnet_hub_command  # noqa: F401  # isort: skip

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from seresnet_hub.commands.parser import command
from seresnet_hub.commands.result_or_error import start

# The parts of each benchmark, and what else goes with it.
MEASURED_PARTS = {"training": ("training", "variants"), "inference": ("inference", "epilogue")}
RUNS = (
    "tests", "smoke_deterministic", "smoke_default", "e2e", "evaluation_imagenet", "evaluation_cifar10", "predictions",
)  # fmt: skip
OWN = "own"  # what predictions call this package's network, in training and in inference


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, example="python scripts/gpu/collect.py results")
    parser.add_argument("folder", type=Path, nargs="+", metavar="FOLDER", help="with a results.jsonl, of one GPU")
    parser.add_argument(
        "--output", type=Path, default=Path("model_cards"), metavar="DIR",
        help="where the figures go, beside the predicted ones (default: model_cards)",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from _tables_kernels import predicted_times

    from seresnet_hub.errors import InputError
    from seresnet_hub.files.atomic_writing import replacing, write_json

    if not options.output.is_dir():
        raise InputError(f"{options.output} is not a folder")
    predicted = predicted_times(options.output)
    lines = [line for folder in options.folder for line in read_lines(folder)]
    machine = machine_of(lines)
    files: dict[str, dict[str, Any]] = {}
    for name, parts in MEASURED_PARTS.items():
        measurements = measurements_of(lines, parts, predicted.get(name, {}))
        kernels = [line["result"].get("kernels") for line in finished(lines, f"kernels_{name}")]
        if measurements or kernels:
            files[f"benchmark_{name}_gpu.json"] = {
                "benchmark": name, **machine, "measurements": measurements, "kernels": kernels[-1] if kernels else None,
            }  # fmt: skip
    runs = runs_of(lines)
    if runs:
        files["benchmark_runs_gpu.json"] = {**machine, **runs}
    if not files:
        raise InputError("no part has brought results")
    for file, facts in files.items():
        write_json(options.output / file, facts)
    written = list(files)
    measured = [one for facts in files.values() for one in facts.get("measurements", ())]
    if measured:
        with replacing(options.output / "benchmark_gpu.png") as temporary:
            draw(measured, machine["device"], temporary)
        written.append("benchmark_gpu.png")
    return {"output": str(options.output), "device": machine["device"], "files": written}


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a folder's results. Errors: `InputError` where there are none, or they are a try's."""
    from seresnet_hub.errors import InputError

    file = folder / "results.jsonl"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    lines: list[dict[str, Any]] = []
    for number, written in enumerate(text.splitlines(), 1):
        try:
            lines.append(json.loads(written))
        except ValueError as error:
            if number < len(text.splitlines()):  # the last one may be cut off
                raise InputError(f"{file}, line {number}: {error}") from error
    if any(line.get("part") == "kit" and line["small"] for line in lines):
        raise InputError(f"{file} is of a try at tiny sizes (KIT_SMALL=1), which says nothing of a GPU's speed")
    return lines


def finished(lines: Sequence[Mapping[str, Any]], part: str) -> list[Any]:
    """Return the lines of a part that went well, in order."""
    return [line for line in lines if line.get("part") == part and line.get("rc") == 0]


def machine_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `device, versions, commit, ceilings`. Errors: `InputError` where it is not one GPU, torch, CUDA."""
    from seresnet_hub.errors import InputError

    machines = [line["result"] for line in finished(lines, "env")]
    devices = sorted({str(one.get("device")) for one in machines})
    if len(devices) != 1 or devices == ["None"]:
        raise InputError(f"the results must be of one GPU, named by the part env; here: {', '.join(devices) or 'none'}")
    last = machines[-1]
    for name, kinds in {
        "torch": {str(one["versions"].get("torch")) for one in machines}, "CUDA": {str(one["cuda"]) for one in machines}
    }.items():  # fmt: skip
        if len(kinds) > 1:
            raise InputError(f"the results must be of one version of {name}; here: {', '.join(sorted(kinds))}")
    ceilings = {key: last[key] for key in last if "_per_s" in key}
    commits = sorted({line["commit"] for line in lines if line.get("part") == "kit" and line.get("commit")})
    return {
        "device": last["device"], "versions": {"python": last["python"], "cuda": last["cuda"], **last["versions"]},
        "commit": ", ".join(commits) or None, "ceilings": ceilings,
    }  # fmt: skip


def measurements_of(
    lines: Sequence[Mapping[str, Any]], parts: Sequence[str], predicted: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return what the parts of one benchmark measured, each figure beside the predicted one where there is one.

    A part that did not come to its end counts with what its benchmark had written down by then.
    """
    found: list[dict[str, Any]] = []
    events: list[Mapping[str, Any]] = []  # since the last part's line
    for line in [*lines, {"part": "unknown"}]:
        if "event" in line:
            events.append(line)
            continue
        if line.get("part") in parts:
            whole = line.get("rc") == 0
            given = line.get("given", [])
            for one in line["result"]["measurements"] if whole else from_events(events):
                found.append({"part": line["part"], "given": given, "complete": whole, **one})
        events = []
    for one in found:
        chosen = predicted_for(one, predicted)
        for name, network in one["networks"].items():
            network["ms"] = round(1e3 * one["batch_size"] / network["images_per_second"], 3)
            network["predicted_ms"] = chosen.get(name if name in ("plain", "timm") else OWN)
    return found


def from_events(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return measurements from a benchmark's log: those that were made, else the single calls before them."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for event in events:
        key = event["mode"], event["dtype"], event["batch_size"]
        one = found.setdefault(key, dict(zip(("mode", "dtype", "batch_size"), key, strict=True), networks={}))
        if event["event"] == "ready":
            facts = {"images_per_second": round(1e3 * event["batch_size"] / event["call_ms"], 2)}
        else:
            facts = {name: event[name] for name in event if name.startswith(("images_", "times_"))}
        one["networks"].setdefault(event["network"], {}).update(facts, peak_bytes=event["peak_bytes"])
    return list(found.values())


def predicted_for(measurement: Mapping[str, Any], predicted: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the predicted milliseconds by network of a measurement; predictions are of bf16, compiled, batch 256.

    `predicted` has them by the name of settings: default, epilogue, or Inductor's own as `key=value,…`.
    """
    if (measurement["mode"], measurement["dtype"], measurement["batch_size"]) != ("compiled", "bf16", 256):
        return {}
    name = "epilogue" if measurement["part"] == "epilogue" else ",".join(measurement["given"]) or "default"
    chosen: Mapping[str, Any] = predicted.get(name, {})
    return chosen


def runs_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of runs: the last line of each part, with what pytest and the runs themselves said."""
    runs: dict[str, Any] = {}
    for line in lines:
        part = line.get("part", "")
        if part in RUNS or part.startswith("cifar_"):
            facts = {key: value for key, value in line.items() if key not in ("part", "at")}
            runs[part] = facts
    return runs


def draw(measurements: Sequence[Mapping[str, Any]], device: str, path: Path) -> None:
    """Draw milliseconds by network, one panel a measurement, with a black line where they were predicted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.1 + 1.5 * len(measurements)), layout="constrained")
    FigureCanvasAgg(figure)
    colours = {"plain": "tab:gray", "timm": "tab:orange"}
    labels = {"plain": "ResNet-50", "timm": "SE-ResNet-50, timm"}
    for axes, one in zip(figure.subplots(len(measurements), 1, squeeze=False)[:, 0], measurements, strict=True):
        networks = one["networks"]
        shown = [labels.get(name, "SE-ResNet-50, here") for name in networks]
        bars = axes.barh(shown, [networks[name]["ms"] for name in networks],
                         color=[colours.get(name, "tab:blue") for name in networks])  # fmt: skip
        axes.bar_label(bars, [f"{networks[name]['ms']:.2f}" for name in networks], label_type="center", color="white")
        for number, network in enumerate(networks.values()):
            if network["predicted_ms"] is not None:
                axes.plot([network["predicted_ms"]] * 2, [number - 0.4, number + 0.4], color="black")
        title = (one["part"], one["dtype"], f"batch {one['batch_size']}", *one["given"])
        axes.set_title(", ".join(title), fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel("ms a step" if one["part"] in MEASURED_PARTS["training"] else "ms")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{device}; black: predicted", fontsize=10)
    figure.savefig(path, format="png", dpi=110)


if __name__ == "__main__":
    start(parser(), main)
