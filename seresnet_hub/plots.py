"""Draw what people would rather look at than read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MOST_IN_GRID = 20  # classes whose names and numbers can still be read
MOST_PAIRS = 20
LONGEST_NAME = 28
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2, "frameon": False}
BARS, LINES = "tab:blue", "tab:orange"
# Colours that are drawn into a page's SVG, and what they become there: variables of its style sheet.
TEXT = "#102030"
OF_THE_PAGE = {TEXT: "currentColor", "#1f77b4": "var(--bars)", "#ff7f0e": "var(--lines)"}


def draw_curves(history: Sequence[Mapping[str, float]], file: Path | BytesIO, *, top5: bool = True) -> None:
    """Draw losses and accuracies over epochs into a PNG; `history` has timm's names for them, and `epoch`.

    Without `top5`, the top-5 accuracy is left out.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    for name, label, colour in (("train_loss", "training", "tab:blue"), ("eval_loss", "evaluation", "tab:orange")):
        _plot(loss, history, name, label=label, color=colour)
    loss.set(xlabel="epoch", ylabel="loss")
    loss.legend(loc="upper right")
    for name, label, colour in (("top1", "top-1", "tab:orange"), ("top5", "top-5", "tab:green"))[: 1 + top5]:
        _plot(accuracy, history, name, label=label, color=colour)
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    accuracy.legend(loc="lower right")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=110)


def _plot(axes: Axes, history: Sequence[Mapping[str, float]], name: str, **style: Any) -> None:
    """Draw a value over the epochs in which it was measured."""
    points = [(row["epoch"], row[name]) for row in history if name in row]
    axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 3 else "", **style)


def draw_confusion(confusion: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw which classes are taken for which into a PNG; `confusion` counts images by class and prediction.

    Up to 20 classes are a grid of shares of each class's images. Of more, one half has their accuracies in order, the
    other the 20 pairs where the largest share of a class is taken for another.
    """
    short = [_shortened(name) for name in names]
    figure = _grid(confusion, short) if len(names) <= MOST_IN_GRID else _overview(confusion, short)
    figure.savefig(path, format="png", dpi=110)


def _grid(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1), 1)[:, None]
    side = 3 + 0.42 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="class")
    for row, column in zip(*np.nonzero(shares), strict=True):
        share = shares[row, column]
        colour = "white" if share > 50 else "black"
        text = f"{share:.0f}" if share >= 1 else "<1"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(picture, label="% of the class's images", shrink=0.8)
    return figure


def _overview(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    ordered, mistakes = figure.subplots(1, 2, width_ratios=(1, 1.2))
    draw_accuracies(ordered, confusion)
    images = confusion.sum(axis=1)
    rows, columns = np.nonzero(confusion)
    rows, columns = rows[rows != columns], columns[rows != columns]
    counts = confusion[rows, columns]
    shares = 100 * counts / images[rows]
    worst = np.lexsort((-counts, -shares))[:MOST_PAIRS]
    pairs = [f"{names[row]} → {names[column]}" for row, column in zip(rows[worst], columns[worst], strict=True)]
    mistakes.barh(range(len(worst)), shares[worst], color=BARS)
    mistakes.set_yticks(range(len(worst)), pairs, fontsize=8, parse_math=False)
    mistakes.invert_yaxis()
    mistakes.set(xlabel="% of the class's images", title="class → predicted")
    mistakes.grid(alpha=0.3, axis="x")
    return figure


def draw_accuracies(axes: Axes, confusion: np.ndarray) -> None:
    """Draw the accuracies of the classes that have images, worst first."""
    images = confusion.sum(axis=1)
    accuracies = np.sort(100 * confusion.diagonal()[images > 0] / images[images > 0])
    axes.fill_between(np.arange(len(accuracies) + 1), [*accuracies, accuracies[-1]], step="post", color=BARS)
    axes.axhline(accuracies.mean(), color=LINES, label=f"mean {accuracies.mean():.1f} %")
    axes.set(xlim=(0, len(accuracies)), ylim=(0, 100), xlabel="classes, worst first", ylabel="accuracy (%)")
    axes.legend(**ABOVE)
    axes.grid(alpha=0.3)


def draw_reliability(axes: Axes, images: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray) -> None:
    """Draw how often images are right beside how sure the model is of them, by bins of the score.

    `images`, mean `confidence` and `accuracy` are those of bins of equal width, from 0 to 1, `(bins,)` each; bins
    without images have none. The fewer images a bin has, the paler is its bar.
    """
    edges, seen = np.linspace(0, 100, len(images) + 1), images > 0
    width = edges[1]
    strength = 0.25 + 0.75 * np.sqrt(images / images.max())
    for edge, height, alpha in zip(edges[:-1][seen], 100 * accuracy[seen], strength[seen], strict=True):
        axes.bar(edge, height, width, align="edge", color=BARS, alpha=alpha, edgecolor=BARS)
    axes.plot((0, 100), (0, 100), color=LINES, linestyle="--", label="as often right as it says")
    axes.plot(100 * confidence[seen], 100 * accuracy[seen], "o", color=LINES, label="measured", clip_on=False)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="score of the best prediction (%)", ylabel="of these, right (%)")
    axes.set_aspect("equal")
    axes.legend(**ABOVE)
    axes.grid(alpha=0.3)


def draw_axes(draw: Callable[..., None], *values: np.ndarray, path: Path) -> None:
    """Have `draw` draw one diagram of `values` into a PNG."""
    _figure_of(draw, *values).savefig(path, format="png", dpi=110)


def axes_as_svg(draw: Callable[..., None], *values: np.ndarray) -> str:
    """Return one diagram as an SVG element for a page, whose style sheet says its colours: see `OF_THE_PAGE`."""
    style = {f"{part}.color": TEXT for part in ("text", "xtick", "ytick")} | {
        "axes.edgecolor": TEXT, "axes.labelcolor": TEXT, "svg.fonttype": "none", "svg.hashsalt": draw.__name__,
    }  # fmt: skip
    text = StringIO()
    with matplotlib.rc_context(style):
        nothing_of_the_moment = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        _figure_of(draw, *values).savefig(text, format="svg", transparent=True, metadata=nothing_of_the_moment)
    svg = text.getvalue()
    for colour, variable in OF_THE_PAGE.items():
        svg = svg.replace(colour, variable)
    return svg[svg.index("<svg") :]


def _figure_of(draw: Callable[..., None], *values: np.ndarray) -> Figure:
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots(), *values)
    return figure


def _shortened(name: str) -> str:
    """Return the first of a class's several words, cut to what fits."""
    first = name.partition(",")[0].strip()
    return first if len(first) <= LONGEST_NAME else f"{first[: LONGEST_NAME - 1]}…"
