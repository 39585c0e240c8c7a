"""Read JSON that a stranger may have written: not too large, and no key in it twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seresnet_hub.checkpoints.safetensors_file import distinct
from seresnet_hub.errors import InputError, message_of


def checked_json(
    path: Path,
    *,
    most_bytes: int,
    most_entries: int | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """Return what a file of JSON in UTF-8 holds; `parse_constant` is told of NaN and infinities.

    Errors: `InputError` where it cannot be read, is larger than `most_bytes`, has more than `most_entries`, or has a
    key twice.
    """
    try:
        with path.open("rb") as file:
            text = file.read(most_bytes + 1)
        if len(text) > most_bytes:
            raise ValueError(f"it has more than {most_bytes:,} bytes")
        # Before millions of lists are made of them.
        if most_entries is not None and sum(map(text.count, (b",", b"[", b"{"))) > most_entries:
            raise ValueError(f"it has more than {most_entries:,} entries")
        return json.loads(text.decode("utf-8"), object_pairs_hook=distinct, parse_constant=parse_constant)
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise InputError(f"cannot read {path}: {message_of(error)}") from error
