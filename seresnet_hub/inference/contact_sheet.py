"""Draw many small pictures with captions as one: rows of tiles, of which the first in each row stands apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from seresnet_hub.errors import printable
from seresnet_hub.inference.fonts import font_for
from seresnet_hub.inference.thumbnails import thumbnail

# In pixels; the first tile of a row is followed by a wider gap with a line in it.
SIDE, MARGIN, GAP, WIDE_GAP, ROW_GAP = 176, 24, 14, 44, 22
TEXT_SIZE, LINE = 14, 20
# A grey box in the place of a picture has the name of the file in so many lines.
MOST_LINES = 5
PAPER, INK, PALE_INK, BOX, RULE = "white", "#1a1a1a", "#6b6b6b", "#e4e4e4", "#d0d0d0"


class Tile(NamedTuple):
    """A picture with two lines under it; without a picture, `name` stands in a grey box in its place."""

    picture: Image.Image | None
    title: str
    detail: str = ""
    name: str = ""


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Return the rows of tiles as one picture; texts that are too long for a tile are shortened in their middle."""
    columns = max(map(len, rows), default=0)
    width = 2 * MARGIN + columns * SIDE + max(columns - 2, 0) * GAP + (WIDE_GAP if columns > 1 else 0)
    height = 2 * MARGIN + len(rows) * (SIDE + 2 * LINE + 4) + max(len(rows) - 1, 0) * ROW_GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for row in rows:
        x = MARGIN
        for number, tile in enumerate(row):
            _draw_tile(sheet, draw, tile, x, y)
            x += SIDE + (GAP if number else WIDE_GAP)
        y += SIDE + 2 * LINE + 4 + ROW_GAP
    if columns > 1:
        middle = MARGIN + SIDE + WIDE_GAP // 2
        draw.line([(middle, MARGIN), (middle, height - MARGIN)], fill=RULE)
    return sheet


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    if tile.picture is None:
        draw.rectangle([x, y, x + SIDE - 1, y + SIDE - 1], fill=BOX)
        lines = textwrap.wrap(printable(tile.name), width=SIDE // (TEXT_SIZE - 5), break_on_hyphens=False) or [
            "no picture"
        ]
        if len(lines) > MOST_LINES:
            lines = [*lines[: MOST_LINES - 2], "…", lines[-1]]
        top = y + (SIDE - len(lines) * LINE) // 2
        for number, line in enumerate(lines):
            _draw_line(draw, line, x, top + number * LINE, PALE_INK)
    else:
        small = thumbnail(tile.picture, SIDE)
        # On the ground of their captions, so that pictures of one row stand on one line.
        sheet.paste(small, (x + (SIDE - small.width) // 2, y + SIDE - small.height))
    _draw_line(draw, printable(tile.title), x, y + SIDE + 4, INK)
    _draw_line(draw, printable(tile.detail), x, y + SIDE + 4 + LINE, PALE_INK)


def _draw_line(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, colour: str) -> None:
    """Draw one line in the middle of a tile's width, from `y` down."""
    if not text:
        return
    font = font_for(text, TEXT_SIZE)
    shown, kept = text, len(text)
    while draw.textlength(shown, font=font) > SIDE and kept > 1:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
    # By the line that letters stand on, so that letters without descenders do not sink.
    draw.text((x + SIDE / 2, y + TEXT_SIZE), shown, font=font, fill=colour, anchor="ms")
