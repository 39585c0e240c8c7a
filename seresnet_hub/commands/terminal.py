"""Show a command's result to a person: a table, where a program that reads a pipe gets JSON."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from seresnet_hub.errors import printable

# Of longer lists, such as names of tensors, the first few are shown; JSON has all of them.
MOST_LISTED = 10


def tell(line: str) -> None:
    """Print one line for a person on standard error, with escapes for what is no character."""
    print(printable(line), file=sys.stderr, flush=True)


def as_table(result: Mapping[str, Any]) -> str:
    """Return a result as text: one line a value, then a table for each list of records; what is None is left out.

    A result with "toml" is that file's text.
    """
    if "toml" in result:
        return str(result["toml"]).rstrip()
    single = {key: value for key, value in result.items() if not _records(value) and value is not None}
    width = max(map(len, single), default=0)
    blocks = ["\n".join(f"{printable(key):{width}}  {_cell(value)}" for key, value in single.items())]
    for key, value in result.items():
        if records := _records(value):
            blocks.append(f"{key}:\n{_columns(records)}")
    return "\n\n".join(block for block in blocks if block)


def _records(value: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a table, if `value` is one: a list of mappings, or a mapping of mappings by name."""
    if isinstance(value, Mapping) and value and all(isinstance(inner, Mapping) for inner in value.values()):
        return [{"name": name, **inner} for name, inner in value.items()]
    if isinstance(value, list) and value and all(isinstance(inner, Mapping) for inner in value):
        return value
    return []


def _columns(records: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [[printable(name) for name in names], *([_cell(record.get(name)) for name in names] for record in records)]
    return aligned(rows, width=shutil.get_terminal_size((120, 24)).columns)


def aligned(rows: Sequence[Sequence[str]], *, width: int) -> str:
    """Return rows of texts as lines with aligned columns, the cells wrapped so that lines have about `width`.

    Words are not broken, so a longer path makes a longer line.
    """
    columns = list(zip(*rows, strict=True))
    too_wide = sum(max(map(len, column)) + 2 for column in columns) > width
    most = max(width // 4, 20)
    wrapped = [[_wrapped(cell, most if too_wide else width) for cell in column] for column in columns[:-1]]
    widths = [max(len(line) for cell in column for line in cell) for column in wrapped]
    wrapped.append([_wrapped(cell, max(width - sum(widths) - 2 * len(widths), 30)) for cell in columns[-1]])
    lines = []
    for cells in zip(*wrapped, strict=True):
        for texts in zip_longest(*cells, fillvalue=""):
            padded = [text.ljust(size) for text, size in zip(texts, widths, strict=False)]
            lines.append("  ".join([*padded, texts[-1]]).rstrip())
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if {"name", "score"} <= value.keys():  # a class that a picture may show
            return f"{printable(str(value['name']))} {100 * value['score']:.1f} %"
        known = {key: inner for key, inner in value.items() if inner is not None and inner != []}
        return ", ".join(f"{printable(str(key))} {_cell(inner)}" for key, inner in known.items())
    if isinstance(value, list | tuple):
        more = f", … ({len(value):,} in all)" if len(value) > MOST_LISTED else ""
        between = "; " if value and isinstance(value[0], Mapping) and "score" not in value[0] else ", "
        return between.join(map(_cell, value[: MOST_LISTED - 2 if more else None])) + more
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return printable(str(value))
