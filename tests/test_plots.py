"""A picture must open, and be readable: a grid where the classes are few, a summary where they are many."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seresnet_hub import plots as pictures
from seresnet_hub.plots import axes_as_svg, draw_accuracies, draw_axes, draw_confusion, draw_curves, draw_reliability


@pytest.mark.parametrize(
    ("classes", "kind"), [(1, "_grid"), (2, "_grid"), (20, "_grid"), (21, "_overview"), (1000, "_overview")]
)
def test_confusion(classes: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_numbers = np.random.default_rng(classes)
    confusion = random_numbers.poisson(20 * np.eye(classes) + 1 / classes)
    confusion[-1] = 0  # a class of which there are no images
    confusion[0, 0] += 1
    drawn = []
    for name in ("_grid", "_overview"):
        original = getattr(pictures, name)

        def spy(*arguments: object, name: str = name, original: object = original) -> object:
            drawn.append(name)
            return original(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(pictures, name, spy)
    names = ["tench, Tinca tinca", "a $name$ with signs", "n" * 100, *map(str, range(classes))][:classes]
    draw_confusion(confusion, names, tmp_path / "confusion.png")
    assert drawn == [kind]
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert max(image.size) < 2000
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_without_a_mistake(tmp_path: Path) -> None:
    draw_confusion(np.eye(30, dtype=np.int64), [str(number) for number in range(30)], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000


BINS = np.array([0, 5, 100]), np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 0.25, 0.875])


def test_reliability(tmp_path: Path) -> None:
    """A bar of three bins is as high as it must be: the pixels of the rightmost, which all images strengthen."""
    draw_axes(draw_reliability, *BINS, path=tmp_path / "reliability.png")
    with Image.open(tmp_path / "reliability.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = abs(pixels - np.array([31, 119, 180])).sum(axis=-1) < 30  # matplotlib's tab:blue
    column = blue[:, int(np.flatnonzero(blue.sum(axis=0) > 50).mean())]
    axis = np.flatnonzero((pixels.sum(axis=-1) < 30).sum(axis=1) > 200)  # its upper and lower edges
    assert column.sum() / (axis.max() - axis.min()) == pytest.approx(0.875, abs=0.04)


@pytest.mark.parametrize(("draw", "values"), [(draw_reliability, BINS), (draw_accuracies, (np.eye(30, dtype=int),))])
def test_diagrams_of_a_page_follow_its_colours(draw: object, values: tuple[np.ndarray, ...]) -> None:
    svg = axes_as_svg(draw, *values)  # type: ignore[arg-type]
    assert svg == axes_as_svg(draw, *values)  # type: ignore[arg-type]
    assert xml.etree.ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert all(variable in svg for variable in ("currentColor", "var(--bars)", "var(--lines)"))
    assert not re.findall(r"#[0-9a-f]{6}", svg.replace("#b0b0b0", ""))  # of the grid, which both themes show


@pytest.mark.parametrize("epochs", [1, 2, 90])
def test_curves(epochs: int, tmp_path: Path) -> None:
    rows = [
        {"epoch": n, "train_loss": 2 / n, "eval_loss": 3 / n, "top1": 90 - 50 / n, "top5": 99.0}
        for n in range(1, epochs + 1)
    ]
    draw_curves(rows, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 20)}
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # each of matplotlib's colours of the lines
        assert colours.get(colour, 0) > 20


def test_curves_have_no_top5_where_it_says_nothing(tmp_path: Path) -> None:
    history = [
        {"epoch": k, "train_loss": 1.0, "eval_loss": 1.0, "top1": 50.0 + 10 * k, "top5": 100.0} for k in range(1, 4)
    ]
    green = []
    for top5 in (True, False):
        draw_curves(history, tmp_path / "curves.png", top5=top5)
        with Image.open(tmp_path / "curves.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        green.append(int((abs(pixels - np.array([44, 160, 44])).sum(axis=-1) < 10).sum()))  # matplotlib's tab:green
    assert green[0] > 0
    assert green[1] == 0
