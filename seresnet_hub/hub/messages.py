"""Say on standard error what a person who waits for the Hub should know."""

from __future__ import annotations

import sys

from tqdm import tqdm

from seresnet_hub.errors import printable


def say(line: str) -> None:
    """Show a line above all progress bars."""
    try:
        tqdm.write(printable(line), file=sys.stderr)
    except RuntimeError:  # tqdm looks through its bars first, and one of another thread began or ended meanwhile
        print(printable(line), file=sys.stderr)
