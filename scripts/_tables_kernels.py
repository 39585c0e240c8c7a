"""The tables of Inductor's kernels for a GPU, counted without one, and of the times they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _benchmark_options import NETWORK_BENCHMARKS, NETWORKS

from seresnet_hub.cards.markdown import table
from seresnet_hub.files.atomic_writing import read_json

COLUMNS = ("ResNet-50", "SE-ResNet-50, timm", "SE-ResNet-50, here")


def passes(measured: Path) -> str:
    """Return the table of the passes over a block's wide maps and of all bytes it moves, from a folder of results."""
    rows = []
    for benchmark in NETWORK_BENCHMARKS:
        for settings, counted in _settings(measured, benchmark).items():
            for graph in counted["plain"]["block"]["graphs"]:
                cells = (_moved(counted[network]["block"]["graphs"][graph]) for network in NETWORKS)
                rows.append((f"{benchmark}{_after_comma(settings)}, {graph}", *cells))
    return table(("wide maps read + written, and all that is moved", *COLUMNS), rows)


def predicted(measured: Path) -> str:
    """Return the table of predicted times of a whole network, in ms, from a folder of results."""
    rows = []
    for benchmark in NETWORK_BENCHMARKS:
        found = _settings(measured, benchmark)
        times = {
            settings: [counted[network]["network"]["predicted"] for network in NETWORKS]
            for settings, counted in found.items()
        }
        rows += [
            _times_row(f"{benchmark}{_after_comma(settings)}", of_settings) for settings, of_settings in times.items()
        ]
        best = [min(of_network, key=lambda one: one["ms"]) for of_network in zip(*times.values(), strict=True)]
        if best and best not in times.values():
            rows.append(_times_row(f"{benchmark}, each network with its best settings", best))
    return table(("*predicted* ms (cautiously)", *COLUMNS, "here / timm", "here / ResNet-50"), rows)


def _times_row(what: str, times: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    plain, timms, own = times
    shown = (f"{one['ms']:.2f} ({one['cautious_ms']:.2f})" for one in times)
    ratios = (
        f"{other['ms'] / own['ms']:.3f} ({other['cautious_ms'] / own['cautious_ms']:.3f})" for other in (timms, plain)
    )
    return (what, *shown, *ratios)


def predicted_times(measured: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the predicted ms of each benchmark by settings and network ("plain", "timm", "own")."""
    return {
        benchmark: {
            settings: {network: counted[network]["network"]["predicted"]["ms"] for network in NETWORKS}
            for settings, counted in _settings(measured, benchmark).items()
        }
        for benchmark in NETWORK_BENCHMARKS
    }


def _settings(measured: Path, benchmark: str) -> Mapping[str, Any]:
    path = measured / f"benchmark_{benchmark}_predicted.json"
    found: Mapping[str, Any] = read_json(path)["counted"] if path.exists() else {}
    return found


def _after_comma(settings: str) -> str:
    return "" if settings == "default" else f", `{settings}`"


def _moved(graph: Mapping[str, Any]) -> str:
    total = sum(graph[kind]["bytes"] for kind in ("library", "product", "elementwise"))
    return f"{graph['wide_reads']} + {graph['wide_writes']}, {total / 1e6:,.0f} MB"
