"""Render the README's tables from the tables of facts; --check only says whether they are current."""

from __future__ import annotations

import seresnet_hub_command  # noqa: F401  # isort: skip

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import command
from seresnet_hub.commands.run import start


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, example="python scripts/tables.py --check")
    parser.add_argument("file", nargs="?", default="README.md", type=Path, help="Markdown file (default: README.md)")
    parser.add_argument(
        "--measured", default="model_cards", type=Path, help="folder of measured results (default: model_cards)"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is stale")
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from _tables import MEASURED_TABLES, TABLES, fill

    from seresnet_hub.errors import InputError
    from seresnet_hub.files.writing import write_text

    try:
        text = options.file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{options.file}: {error.strerror}") from error
    current = fill(text, options.measured)
    if options.check and current != text:
        raise InputError(f"the tables in {options.file} are stale: run python scripts/tables.py")
    if current != text:
        write_text(options.file, current)
    return {"file": str(options.file), "tables": [*TABLES, *MEASURED_TABLES], "changed": current != text}


if __name__ == "__main__":
    start(parser(), main)
