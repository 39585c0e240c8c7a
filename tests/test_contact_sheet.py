"""A contact sheet must show each picture in its place, a grey box where there is none, and texts within their tiles."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from seresnet_hub.inference import fonts
from seresnet_hub.inference.contact_sheet import BOX, GAP, LINE, MARGIN, ROW_GAP, SIDE, WIDE_GAP, Tile, contact_sheet
from seresnet_hub.inference.fonts import OWN, font_for

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]


def test_each_picture_is_in_its_place() -> None:
    first, second, third, fourth = (Image.new("RGB", (9, 9), colour) for colour in COLOURS)
    gone = Tile(None, "b", name="gone.png")
    rows = [[Tile(first, "query"), Tile(second, "a", "0.9")], [Tile(third, ""), gone, Tile(fourth, "c")]]
    sheet = contact_sheet(rows)
    middle = SIDE // 2
    columns = [MARGIN + middle, MARGIN + SIDE + WIDE_GAP + middle, MARGIN + 2 * SIDE + WIDE_GAP + GAP + middle]
    heights = [MARGIN + middle, MARGIN + SIDE + 2 * LINE + 4 + ROW_GAP + middle]
    assert sheet.getpixel((columns[0], heights[0])) == COLOURS[0]
    assert sheet.getpixel((columns[1], heights[0])) == COLOURS[1]
    assert sheet.getpixel((columns[0], heights[1])) == COLOURS[2]
    assert sheet.getpixel((columns[2], heights[1])) == COLOURS[3]
    box = sheet.crop((columns[1] - middle, heights[1] - middle, columns[1] + middle, heights[1] + middle))
    assert box.getpixel((2, 2)) == box.getpixel((SIDE - 3, SIDE - 3)) == Image.new("RGB", (1, 1), BOX).getpixel((0, 0))
    assert len(box.getcolors(10_000) or ()) > 2  # the name is written in it
    assert sheet.size == (columns[2] + middle + MARGIN, heights[1] + middle + 2 * LINE + 4 + MARGIN)


@pytest.mark.parametrize(
    "text", ["W" * 300, "a/long/path of words " * 20, "\x1b[31mred\n", "i" * 1000, "крот " * 50, "\udcff"]
)
def test_long_names_stay_in_their_tile(text: str) -> None:
    empty = np.asarray(contact_sheet([[Tile(None, "", "", name="x")] * 3]))
    sheet = np.asarray(
        contact_sheet([[Tile(None, "", "", name="x"), Tile(None, text, text, name=text), Tile(None, "", "", name="x")]])
    )
    left = MARGIN + SIDE + WIDE_GAP
    changed = np.flatnonzero((sheet != empty).any(axis=(0, 2)))
    assert len(changed)
    assert changed.min() >= left - 1
    assert changed.max() <= left + SIDE
    assert (sheet[-MARGIN + 4 :] == 255).all()
    assert (sheet[: MARGIN - 2] == 255).all()


def test_no_tiles_make_an_empty_sheet() -> None:
    assert contact_sheet([]).size == (2 * MARGIN, 2 * MARGIN)
    assert contact_sheet([[Tile(None, "alone")]]).size[0] == 2 * MARGIN + SIDE


def test_text_in_any_script_is_drawn_by_a_font_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib's font lacks some letters; the first font of the system that has all of them draws the text."""
    stix, symbols = (OWN.parent / name for name in ("STIXGeneral.ttf", "cmsy10.ttf"))
    letters = [chr(one) for one in fonts._characters(stix) - fonts._characters(OWN)]
    assert letters
    fonts._best.cache_clear()
    monkeypatch.setattr(fonts, "_of_the_system", lambda: iter([OWN.parent / "missing.ttf", symbols, stix]))
    assert font_for("plain Ελληνικά кириллица عربي", 12).path == str(OWN)
    assert font_for(f"a{letters[0]}", 12).path == str(stix)
    assert isinstance(font_for(f"a{letters[0]}", 12), ImageFont.FreeTypeFont)
    monkeypatch.setattr(fonts, "_of_the_system", lambda: iter([]))
    fonts._best.cache_clear()
    assert font_for(f"a{letters[0]}", 12).path == str(OWN)  # a box for each letter it lacks
