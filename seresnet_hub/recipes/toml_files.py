"""Recipes as TOML files: a file holds the fields in which it differs from the file that it names as its `base`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seresnet_hub.errors import InputError, printable
from seresnet_hub.recipes.field_types import closest, declarations, require_field, typed, written

FOLDER = Path(__file__).parent
# The recipes of this package, `NAME.toml` beside this module, in the order of lists.
NAMES = (
    "digits", "cifar10", "cifar10_paper", "seresnet50_8xb32_in1k", "seresnet101_8xb32_in1k", "senet_paper", "rsb_a1",
    "rsb_a2", "rsb_a3", "ra2", "seresnet101_modern", "finetune",
)  # fmt: skip


class RecipeFile(NamedTuple):
    """What a file says together with its bases: fields, the file that each comes from, and its own summary."""

    values: dict[str, Any]
    origins: dict[str, str]
    summary: str


def path_of(recipe: str, folder: Path = Path()) -> Path:
    """Return a recipe's file: a text that ends in .toml is a path relative to `folder`, any other a name of ours.

    Errors: `InputError` lists the names where it is none.
    """
    if recipe.endswith(".toml"):
        return folder / recipe
    if recipe not in NAMES:
        near, known = closest(recipe, NAMES), ", ".join(sorted(NAMES))
        raise InputError(f"no recipe {recipe!r}{near}; there are: {known}; a file of your own ends in .toml")
    return FOLDER / f"{recipe}.toml"


def read(path: Path, kind: type) -> RecipeFile:
    """Return the fields of the dataclass `kind` that a file and its bases set, where it has precedence over them.

    Errors: `InputError` names the file, and the key of what is no field or no value of it.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    tables = _tables(path)
    for file, table in reversed(tables.items()):
        name = _name(file)
        for key, value in table.items():
            if key in ("base", "summary"):
                continue
            try:
                require_field(key, kind)
                values[key] = typed(value, declarations(kind)[key])
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
            except ValueError as error:
                raise InputError(f"{name}: {key} = {_quoted(value)}: {error}") from None
            origins[key] = name
    return RecipeFile(values, origins, tables[path].get("summary", ""))


def _tables(path: Path) -> dict[Path, dict[str, Any]]:
    """Return what a file holds, what its base holds, and so on."""
    tables: dict[Path, dict[str, Any]] = {}
    while True:
        tables[path] = table = _table(path)
        if "base" not in table:
            return tables
        try:
            base = path_of(table["base"], path.parent)
        except InputError as error:
            raise InputError(f"{_name(path)}: base: {error}") from None
        if base.resolve() in {file.resolve() for file in tables}:
            circle = " → ".join(map(_name, [*tables, base]))
            raise InputError(f"{_name(path)}: base: the bases go round in a circle: {circle}")
        path = base


def _table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no TOML file: {error}") from error
    for key in ("base", "summary"):
        if not isinstance(table.get(key, ""), str):
            raise InputError(f"{_name(path)}: {key} = {_quoted(table[key])}: expected a text")
    return table


def _name(path: Path) -> str:
    return path.name if path.parent == FOLDER else str(path)


def _quoted(value: Any) -> str:
    """Return a value as TOML has it, or nearly so for dates and tables, which no field takes."""
    return json.dumps(value, ensure_ascii=False, default=str)


def as_toml(recipe: Any, origins: Mapping[str, str]) -> str:
    """Return a recipe as a file that says the same, with each value's origin as a comment."""
    lines = []
    for name, declared in declarations(type(recipe)).items():
        if name != "name":
            value = getattr(recipe, name)
            text = _toml(written(None, declared.word) if value is None else value)
            lines.append(f"{name} = {text}  # {printable(origins[name])}\n")
    return "".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
    return written(value)
