"""Name the way out where the disk is full, for work that the same command continues."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from seresnet_hub.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def way_out_of_a_full_disk(output: Path) -> Iterator[None]:
    """Make an error of a full disk, or of a quota that is used up, an `InputError` that says how to go on.

    For what writes and does nothing else: loader workers have such an error where /dev/shm is full.
    """
    try:
        yield
    except (InputError, OSError, pa.ArrowException) as error:
        number = _number(error)
        if number is None:
            raise
        raise InputError(
            f"cannot write {output}: {os.strerror(number)}; make room, and run the same command again: it goes on"
        ) from error


def _number(error: BaseException | None) -> int | None:
    """Return which of the numbers in `FULL` an error or its causes have; pyarrow's may have it in their text alone."""
    while error is not None:
        for number in FULL:
            if getattr(error, "errno", None) == number or f"[errno {number}]" in str(error).lower():
                return number
        error = error.__cause__
    return None
