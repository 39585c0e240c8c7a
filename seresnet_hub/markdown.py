"""Write the pieces of Markdown that cards and tables are made of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

COMMAND_WIDTH = 78  # columns that a page shows of a code block without scrolling


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def plain(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, on one line; `table` sees to vertical bars."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def shell_block(command: str) -> str:
    """Return a shell command as a code block whose lines are continued where they would be wider than a page.

    A line begins with an option where it can, so that options and their values stay together.
    """
    groups: list[list[str]] = []
    for word in map(shlex.quote, shlex.split(command)):
        if word.startswith("-") or not groups:
            groups.append([])
        groups[-1].append(word)
    lines: list[str] = []
    for group in groups:
        whole = " ".join(group)
        for piece in [whole] if len(whole) <= COMMAND_WIDTH else group:
            if lines and len(lines[-1]) + 1 + len(piece) <= COMMAND_WIDTH:
                lines[-1] += f" {piece}"
            else:
                lines.append(f"  {piece}" if lines else piece)
    return "```bash\n" + " \\\n".join(lines) + "\n```"
