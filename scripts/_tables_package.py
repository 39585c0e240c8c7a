"""The tables of what the package has: its public names, and the map of its modules, from their docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import seresnet_hub
from seresnet_hub.cards.markdown import table

PACKAGE = Path(seresnet_hub.__file__).parent


def first_sentence(docstring: str | None) -> str:
    """Return a docstring's first sentence in one line, "" where there is none."""
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0]


def api() -> str:
    """Return the table of the public names."""
    rows = []
    for name in seresnet_hub.__all__:
        value = getattr(seresnet_hub, name)
        meaning = "The installed version." if isinstance(value, str) else first_sentence(value.__doc__)
        called = callable(value) and not isinstance(value, type | ModuleType)
        rows.append((f"`{name}()`" if called else f"`{name}`", meaning))
    return table(("`seresnet_hub.`", ""), rows)


def modules() -> str:
    """Return the map of the package: each folder with what it is for, then each of its modules."""
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")}, key=lambda folder: (folder != PACKAGE, folder))
    return "\n\n".join(_folder(folder) for folder in folders)


def _folder(folder: Path) -> str:
    name = folder.relative_to(PACKAGE.parent).as_posix()
    rows = [(f"`{path.name}`", _docstring(path)) for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    head = f"### `{name}/`" if folder != PACKAGE else f"### `{name}/` itself"
    return f"{head}\n\n{_docstring(folder / '__init__.py')}\n\n{table(('module', 'what it does'), rows)}"


def _docstring(path: Path) -> str:
    return first_sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))
