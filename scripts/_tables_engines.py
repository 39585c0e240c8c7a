"""The tables of exports: what a precision may change, and how fast the engines run networks, from measured results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _benchmark_options import NETWORKS

from seresnet_hub.cards.markdown import table
from seresnet_hub.exporting.export_proof import LIMITS
from seresnet_hub.files.atomic_writing import read_json

RESULT = "benchmark_inference_cpu_engines.json"  # the kept result of `benchmark.py inference --peer`
PLAIN, SE, OWN = NETWORKS
ENGINES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
Kind = tuple[str, str, str]  # engine, how torch runs it ("" of other engines), precision


def kinds_of(result: Mapping[str, Any]) -> list[Kind]:
    """Return the kinds of measurements of a result, in its order."""
    return list(dict.fromkeys(_kind(one) for one in result["measurements"]))


def _kind(one: Mapping[str, Any]) -> Kind:
    return one["engine"], one["how"] if one["engine"] == "torch" else "", one["precision"]


def measured(result: Mapping[str, Any], kind: Kind, network: str, batch_size: int) -> Mapping[str, Any] | None:
    """Return one measurement; timm's network is exported as usual, the other two by this package."""
    how = kind[1] or ("usual" if network == SE else "export")
    for one in result["measurements"]:
        if (_kind(one), one["how"], one["network"], one["batch_size"]) == (kind, how, network, batch_size):
            return dict(one)
    return None


def engines(measured_in: Path) -> str:
    """Return the table of speeds by engine, precision and batch size; where nothing was measured, it says so."""
    header = ("", "ResNet-50", "SE-ResNet-50, timm", "SE-ResNet-50, here", "timm / ResNet-50", "here / ResNet-50",
              "here / timm compiled, fp32")  # fmt: skip
    if not (measured_in / RESULT).exists():
        return table(header, [("not measured", *[""] * 6)])
    result = read_json(measured_in / RESULT)
    rows = []
    for size in sorted({one["batch_size"] for one in result["measurements"]}):
        for kind in kinds_of(result):
            found = [measured(result, kind, network, size) for network in NETWORKS]
            shares = [_text(one, "share_of_plain") for one in found[1:]]
            rows.append((_name(kind, size), *(_speed(one, size) for one in found), *shares,
                         _text(found[-1], "times_base")))  # fmt: skip
    return table(header, rows)


def tolerances() -> str:
    """Return the table of what each precision may change in an exported file."""
    rows = [(precision, f"{one.tolerance:g}", f"{one.apart:g}") for precision, one in LIMITS.items()]
    return table(("precision", "largest difference", "first class, where the second is further behind than"), rows)


def _name(kind: Kind, size: int) -> str:
    engine, how, precision = kind
    words = [ENGINES[engine], *([how] if how else []), precision, f"batch {size}"]
    return ", ".join(words) + (": ms (95 % of calls within)" if size == 1 else ": images/s")


def _speed(one: Mapping[str, Any] | None, size: int) -> str:
    if one is None:
        return ""
    return f"{one['p50_ms']:.1f} ({one['p95_ms']:.1f})" if size == 1 else f"{one['images_per_second']:.1f}"


def _text(one: Mapping[str, Any] | None, key: str) -> str:
    return "" if one is None or one[key] is None else f"{one[key]:.2f}"
