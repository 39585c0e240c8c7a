"""Render the tables of the Markdown pages from the tables of facts."""

from __future__ import annotations

import seresnet_hub_command  # noqa: F401  # isort: skip

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import command
from seresnet_hub.commands.result_or_error import start


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, example="python scripts/tables.py --check")
    parser.add_argument(
        "pages", nargs="*", type=Path, metavar="PAGE", help="Markdown file (default: all that have tables)"
    )
    parser.add_argument(
        "--measured", default="model_cards", type=Path, metavar="DIR",
        help="folder of measured results (default: model_cards)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is stale")
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from _tables import PAGES, fill, marks

    from seresnet_hub.errors import InputError
    from seresnet_hub.files.atomic_writing import write_text

    pages = options.pages or [Path(page) for page in PAGES]
    tables: list[str] = []
    rendered: dict[Path, str] = {}
    for page in pages:
        try:
            text = page.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{page}: {error.strerror}") from error
        tables += marks(text)
        current = fill(text, options.measured)
        if current != text:
            rendered[page] = current
    if options.check and rendered:
        raise InputError(f"the tables in {', '.join(map(str, rendered))} are stale: run python scripts/tables.py")
    for page, current in rendered.items():
        write_text(page, current)
    return {"pages": list(map(str, pages)), "tables": tables, "changed": list(map(str, rendered))}


if __name__ == "__main__":
    start(parser(), main)
