"""The tables of what was measured on a GPU; where nothing was, they say so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _benchmark_options import NETWORK_BENCHMARKS, NETWORKS

from seresnet_hub.cards.markdown import table
from seresnet_hub.files.atomic_writing import read_json

NOT_MEASURED = "not measured"
CUT_OFF = 124  # the exit code of a part whose time was up
TOO_SHORT = "too short"  # a run that has no steady part
HEADER = ("ms, with the predicted ones in brackets", "device", "ResNet-50", "SE-ResNet-50, timm", "SE-ResNet-50, here",
          "here / timm", "here / ResNet-50")  # fmt: skip


def speed(measured: Path) -> str:
    """Return the table of times on a GPU, from a folder of measured results; speeds are compared as images/s."""
    rows: list[tuple[str, ...]] = []
    for benchmark in NETWORK_BENCHMARKS:
        result = _read(measured / f"benchmark_{benchmark}_gpu.json")
        if result:
            rows += [_row(benchmark, result["device"], one) for one in result["measurements"]]
        else:
            rows.append((f"{benchmark}, compiled, bf16, batch 256", NOT_MEASURED, "", "", "", "", ""))
    return table(HEADER, rows)


def _row(benchmark: str, device: str, measurement: Mapping[str, Any]) -> tuple[str, ...]:
    own_name = NETWORKS[-1]  # measurements call it fused or ours
    networks = {name if name in NETWORKS else own_name: one for name, one in measurement["networks"].items()}
    settings = ""
    if measurement["part"] == "epilogue":
        settings = ", `epilogue`"
    elif measurement["part"] == "variants":
        settings = "".join(f", `{setting}`" for setting in measurement["given"])
    what = f"{benchmark}, {measurement['mode']}, {measurement['dtype']}, batch {measurement['batch_size']}{settings}"
    times = (
        _time(networks[name]["ms"], networks[name]["predicted_ms"]) if name in networks else "" for name in NETWORKS
    )
    own = networks.get(own_name, {})
    ratios = (f"{own[key]:.3f}" if own.get(key) else "" for key in ("times_timm", "times_plain"))
    return what, device, *times, *ratios


def _time(measured: float | None, predicted: float | None) -> str:
    parts = ([f"{measured:.2f}"] if measured is not None else []) + ([f"({predicted:.2f})"] if predicted else [])
    return " ".join(parts)


def runs(measured: Path) -> str:
    """Return the table of whole runs on a GPU, from a folder of measured results."""
    found = _read(measured / "benchmark_runs_gpu.json")
    rows = [(what, _cell(found, part, say)) for what, part, say in RUNS]
    rows += [
        (f"`{part.removeprefix('cifar_')}` on CIFAR-10, {facts['epochs']} epochs: top-1",
         _cell(found, part, lambda facts: f"{facts['result']['top1']:.2f}"))
        for part, facts in found.items() if part.startswith("cifar_")
    ]  # fmt: skip
    return table(("on a GPU", found.get("device", "")), rows)


def _same_bits(facts: Mapping[str, Any]) -> str:
    return {True: "yes", False: "no"}.get(facts["same_bits"], "unknown")


def _end_to_end(facts: Mapping[str, Any]) -> str:
    result, profile = facts["result"], facts["result"].get("profile") or {}
    waiting, idle = result.get("waiting_share"), profile.get("idle_share")
    waiting_text = f", waits {100 * waiting:.1f} % for batches" if waiting is not None else ""
    idle_text = f", the GPU idles {100 * idle:.1f} %" if idle is not None else ""
    return f"{_images_a_second(facts)}{waiting_text}{idle_text}"


def _images_a_second(facts: Mapping[str, Any]) -> str:
    speed = facts["result"].get("images_per_second")
    return f"{speed:.0f} images/s" if speed is not None else TOO_SHORT


def _predictions(facts: Mapping[str, Any]) -> str:
    bytes_ = {True: "the same", False: "other"}.get(facts["same_bytes"], "unknown")
    return f"{_images_a_second(facts)}, {bytes_} bytes with {facts['runs'][-1]['workers']} workers"


def _tests(facts: Mapping[str, Any]) -> str:
    """Return pytest's last line; where its time was up before that, how many tests had ended by then."""
    lines = [str(line) for line in facts["result"]]
    if facts["rc"] == CUT_OFF:
        outcomes = {word: sum(f" {word} " in line for line in lines) for word in ("PASSED", "FAILED", "ERROR")}
        return ", ".join(f"{count} {word.lower()}" for word, count in outcomes.items() if count) + ", then time was up"
    return lines[-1].strip("= ") if lines else "nothing was said"


RUNS = (
    ("tests that need a GPU", "tests", _tests),
    ("killed and resumed with `deterministic=true`: the same bits", "smoke_deterministic", _same_bits),
    ("… without it", "smoke_default", _same_bits),
    ("`train.py`, `seresnet50_8xb32_in1k` in bf16, compiled, with `se_blocks`", "e2e", _end_to_end),
    ("`validate.py --fuse --compile --amp bf16`, `seresnet50` at 224 × 224", "evaluation_imagenet", _images_a_second),
    ("… `seresnet20_cifar` on CIFAR-10", "evaluation_cifar10", _images_a_second),
    ("`predict.py --output --fuse --amp bf16`, `seresnet50` at 224 × 224", "predictions", _predictions),
)


def _cell(found: Mapping[str, Any], part: str, say: Any) -> str:
    facts = found.get(part)
    if facts is None:
        return NOT_MEASURED
    if facts.get("failed") or facts.get("skipped"):
        return "failed" if facts.get("failed") else NOT_MEASURED
    # Of pytest's exit codes, 1 is an answer too: some tests failed. A run that its time ended may have been measured.
    cut_off = (CUT_OFF,) if part == "tests" or (part == "e2e" and isinstance(facts["result"], dict)) else ()
    if facts.get("rc") not in ((0, 1) if part == "tests" else (0, None)) + cut_off:
        return f"failed, exit code {facts.get('rc')}"
    return str(say(facts))


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
