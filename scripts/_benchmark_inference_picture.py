"""Draw what a benchmark of engines measured: bars of the three networks by engine and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _benchmark_networks import OWN, PLAIN, SE
from _tables_engines import ENGINES, kinds_of, measured
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {PLAIN: "tab:gray", SE: "tab:orange", OWN: "tab:blue"}
WIDTH = 0.27


def draw_engines(result: dict[str, Any], path: Path) -> None:
    """Draw images/s into a PNG, one diagram for each batch size, with ratios to the base and to the plain network."""
    sizes = sorted({one["batch_size"] for one in result["measurements"]})
    kinds = kinds_of(result)
    figure = Figure(figsize=(1.5 + 1.15 * len(kinds), 3.1 * len(sizes) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    labels = {PLAIN: result["plain"], SE: f"{result['model']}, timm", OWN: f"{result['model']}, here"}
    for axes, size in zip(figure.subplots(len(sizes), 1, squeeze=False)[:, 0], sizes, strict=True):
        for place, network in enumerate(COLOURS):
            found = {kind: measured(result, kind, network, size) for kind in kinds}
            shown = [(number, one) for number, one in enumerate(found.values()) if one]
            places = [number + (place - 1) * WIDTH for number, _ in shown]
            speeds = [one["images_per_second"] for _, one in shown]
            bars = axes.bar(places, speeds, WIDTH, color=COLOURS[network], label=labels[network])
            for position, (_, one) in zip(places, shown, strict=True):
                rounds = one["images_per_second_rounds"]
                axes.plot([position] * len(rounds), rounds, "k.", markersize=2)
            if network == OWN:
                ratios = [f"{_text(one['times_base'], ' ×')}\n{_text(one['share_of_plain'])}" for _, one in shown]
                axes.bar_label(bars, ratios, fontsize=8, padding=4)
        names = [f"{ENGINES[engine]}\n{precision if engine != 'torch' else f'{how}, {precision}'}"
                 for engine, how, precision in kinds]  # fmt: skip
        axes.set_xticks(range(len(kinds)), names, fontsize=8)
        axes.set(ylabel="images/s", title=f"batch {size}")
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    figure.suptitle(
        f"{result['device']}: medians of {result['rounds']} interleaved rounds (dots)\nabove the bars: × timm's "
        "compiled in fp32, and the share of the plain network's speed", fontsize=9,
    )  # fmt: skip
    figure.savefig(path, format="png", dpi=110)


def _text(ratio: float | None, unit: str = "") -> str:
    return "" if ratio is None else f"{ratio:.2f}{unit}"
