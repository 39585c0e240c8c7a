"""Show a script's result to a person: a table where a program reading a pipe gets JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seresnet_hub.errors import printable


def as_table(result: Mapping[str, Any]) -> str:
    """Return a result as text: one line a value, then a table for each list of records; what is None is left out."""
    single = {key: value for key, value in result.items() if not _records(value) and value is not None}
    width = max(map(len, single), default=0)
    blocks = ["\n".join(f"{key:{width}}  {_cell(value)}" for key, value in single.items())]
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
    rows = [names, *([_cell(record.get(name)) for name in names] for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if {"name", "score"} <= value.keys():  # a class that a picture may show
            return f"{printable(value['name'])} {100 * value['score']:.1f} %"
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return printable(str(value))
