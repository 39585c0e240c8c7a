"""The tables of measured loaders, from a folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _benchmark_loader import AGAINST
from _benchmark_options import OURS

from seresnet_hub.cards.markdown import table
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import read_json

# The kept results of `benchmark.py loader`, and where the images came from.
LOCAL, REMOTE = (
    "benchmark_loader.json",
    {"cold": "benchmark_loader_cold.json", "cached": "benchmark_loader_cached.json"},
)
NAMES = {
    OURS: "this package", "region": "this package, `decoder=region`", "pil": "this package, `decoder=pil`",
    AGAINST: "this package before",
}  # fmt: skip


def loaders(measured: Path) -> str:
    """Return the table of loaders that read from the disk: speed, CPU time and memory, and ratios within rounds."""
    rows = []
    for name, one in _loaders(measured, LOCAL).items():
        low, high = one["images_per_second_range"]
        rows.append((
            NAMES.get(name, f"`{name}`"), f"{one['images_per_second']:,.0f} ({low:,.0f}–{high:,.0f})",
            f"{1e3 * one['cpu_seconds_per_image']:.2f}", f"{one['peak_pss_bytes'] / 1e9:.2f}",
            *(f"{one[key]:.2f}" if key in one else "" for key in ("ours_times_as_fast", "ours_share_of_pss")),
        ))  # fmt: skip
    return table(
        ("loader", "images/s (lowest–highest)", "CPU ms an image", "GB of memory", "this package is … × as fast",
         "and takes … × its memory"), rows,
    )  # fmt: skip


def remote_loaders(measured: Path) -> str:
    """Return the table of loaders that read from a double of the Hub, with empty and with filled caches."""
    found = {kind: _loaders(measured, file) for kind, file in REMOTE.items()}
    rows = []
    for name in found["cold"]:
        cells: list[str] = []
        for kind in REMOTE:
            one = found[kind][name]
            requests = one["resolver_requests"] + one["storage_requests"]
            cells += [f"{one['images_per_second']:,.0f}", f"{requests:,.0f}", f"{one['file_bytes'] / 1e6:,.0f}"]
        rows.append((NAMES.get(name, f"`{name}`"), *cells))
    heads = [f"{kind}: {what}" for kind in REMOTE for what in ("images/s", "requests", "MB fetched")]
    return table(("loader", *heads), rows)


def _loaders(measured: Path, file: str) -> dict[str, dict[str, Any]]:
    found = read_json(measured / file).get("loaders")
    if not isinstance(found, dict):
        raise InputError(f"{measured / file}: it holds no result of scripts/benchmark.py loader")
    return found
