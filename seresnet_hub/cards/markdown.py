"""Write the pieces of Markdown that cards and tables are made of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from seresnet_hub.errors import printable

# What begins markup within a line, or a list or heading with it; a low line does so only at the ends of a word.
MARKUP = re.compile(r"[\\`*<>\[\]&$~]|(?<![^\W_])_|_(?![^\W_])|^[#+-]")
COMMAND_WIDTH = 78  # columns that a page shows of a code block without scrolling


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def plain(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, on one line; `table` sees to vertical bars.

    Nothing in it becomes HTML, a picture, a formula, or a change of the direction of what follows.
    """
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def code(text: str) -> str:
    """Return `text` as code within a line, whatever it holds; `table` sees to vertical bars."""
    shown = printable(" ".join(text.split()))
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", shown))))
    return f"{fence} {shown} {fence}"


def prose(text: str) -> str:
    """Return a sentence that has markup of its own on one line, without HTML and without what is no character."""
    return printable(" ".join(text.split())).replace("<", "&lt;")


def shell_block(command: str) -> str:
    """Return a shell command as a code block whose lines are continued where they would be wider than a page.

    A line begins with an option where it can, so that options and their values stay together.
    """
    groups: list[list[str]] = []
    for word in (shlex.quote(printable(word)) for word in shlex.split(command)):
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
