"""Fonts for captions in any script: matplotlib's own, and where that lacks characters, one of the system's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

OWN_FOLDER = Path(matplotlib.get_data_path())
OWN = OWN_FOLDER / "fonts" / "ttf" / "DejaVuSans.ttf"


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font, `size` pixels high, with the most of the text's characters: matplotlib's own where it has all."""
    wanted = frozenset(ord(one) for one in text if not one.isspace())
    return _loaded(OWN if wanted <= _characters(OWN) else _best(wanted - _characters(OWN), wanted), size)


@cache
def _loaded(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


@cache
def _best(missing: frozenset[int], wanted: frozenset[int]) -> Path:
    """Return the font with the most of the `wanted` characters among those that have some of the `missing` ones."""
    best, most = OWN, len(wanted - missing)
    for path in _of_the_system():
        has = len(wanted & _characters(path)) if missing & _characters(path) else 0
        if has > most:
            best, most = path, has
        if most == len(wanted):
            break
    return best


@cache
def _characters(path: Path) -> frozenset[int]:
    """Return the characters that a font draws, none where it cannot be used."""
    try:
        _loaded(path, 12)
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):  # a format that one of the two libraries does not read
        return frozenset()


def _of_the_system() -> Iterator[Path]:
    """Yield the upright, regular fonts of the system, those without serifs first.

    Not the others that come with matplotlib: they are for formulas, and one draws a box for every character there is.
    """
    from matplotlib.font_manager import fontManager  # lists all fonts when it is imported first, which takes seconds

    usual = [one for one in fontManager.ttflist if one.style == "normal" and one.weight in (400, "normal", "regular")]
    paths = (Path(one.fname) for one in sorted(usual, key=lambda one: ("Sans" not in one.name, one.fname)))
    yield from (path for path in paths if not path.is_relative_to(OWN_FOLDER))
