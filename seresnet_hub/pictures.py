"""Draw what people would rather look at than read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw training loss and accuracy over epochs into a PNG; `history` has `epoch`, `train_loss`, `top1`, `top5`."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    mark = "o" if len(history) < 3 else ""
    loss.plot(epochs, [row["train_loss"] for row in history], color="tab:blue", marker=mark)
    loss.set(xlabel="epoch", ylabel="training loss")
    for name, label, colour in (("top1", "top-1", "tab:orange"), ("top5", "top-5", "tab:green")):
        accuracy.plot(epochs, [row[name] for row in history], label=label, color=colour, marker=mark)
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    accuracy.legend(loc="lower right")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110)
