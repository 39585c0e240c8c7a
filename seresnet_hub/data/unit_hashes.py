"""Notice that a unit of a data set holds other bytes than when it was last read.

A shard's size and end say what it should hold, and a hash of all its bytes would take a whole reading of the data set.
So each unit's pictures and labels are hashed when they are read, at gigabytes a second, and compared at each reading.
"""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import xxhash

from seresnet_hub.data.shards import kept_file, read_record, write_record
from seresnet_hub.errors import InputError

SUFFIX = ".contents.json"
SECONDS_BETWEEN = 60.0  # two savings


class UnitHashes:
    """A 64-bit hash of what was read of each of `units` units, in memory that loader workers share; 0 is unknown.

    The hash (XXH3) tells damage and changes, not an attacker who looks for another unit of the same hash.
    """

    def __init__(self, units: int, *, columns: Sequence[str] = (), folder: str = "") -> None:
        """`columns` are read from the shards, which lie in `folder`; paths below it are hashed relative to it."""
        self._columns, self._folder = json.dumps(columns), f"{folder}/" if folder else ""
        self.hashes = np.frombuffer(mmap.mmap(-1, max(8 * units, 1)), np.uint64, units)
        self._saved = np.zeros(units, np.uint64)
        self._next_save = time.monotonic() + SECONDS_BETWEEN

    def match(self, unit: int, rows: Iterable[tuple[dict[str, Any] | None, Any]]) -> bool:
        """Return whether a unit's rows (image and label) are those of the last reading; true at the first one."""
        state, lengths = xxhash.xxh3_64(), []
        for image, label in rows:
            data, path = (image.get("bytes"), image.get("path")) if image is not None else (None, None)
            if data is not None:
                state.update(data)
            if path is not None and self._folder:
                path = path.replace(self._folder, "")  # a data set that was moved or copied is the same
            lengths.append((None if data is None else len(data), path, label))
        state.update(repr(lengths).encode())
        found = np.uint64(state.intdigest() or 1)
        known = self.hashes[unit]
        if known == 0:
            self.hashes[unit] = found
        return bool(known in (0, found))

    def load(self, fingerprint: int) -> None:
        """Take over the hashes that were saved for shards with this fingerprint; this process's own stay."""
        before = self._read(fingerprint)
        self.hashes[self.hashes == 0] = before[self.hashes == 0]
        self._saved = before

    def save(self, fingerprint: int, *, now: bool = False) -> None:
        """Save the hashes in the cache folder if there are new ones, at most once a minute unless `now`."""
        if not now and time.monotonic() < self._next_save:
            return
        self._next_save = time.monotonic() + SECONDS_BETWEEN
        if (self.hashes == self._saved).all():
            return
        before = self._read(fingerprint)  # another process of the run reads other units
        known = np.where(self.hashes == 0, before, self.hashes)
        with suppress(InputError):  # without a cache folder they are known to this run alone
            if not np.array_equal(known, before):
                path = kept_file(fingerprint, SUFFIX)
                others = read_record(path) or {}
                write_record(path, {**others, self._columns: [f"{number:x}" for number in known.tolist()]})
            self._saved = self.hashes.copy()

    def _read(self, fingerprint: int) -> np.ndarray:
        nothing = np.zeros(len(self.hashes), np.uint64)
        found = (read_record(kept_file(fingerprint, SUFFIX)) or {}).get(self._columns)
        if not isinstance(found, list) or len(found) != len(nothing):
            return nothing
        try:
            return np.array([int(number, 16) for number in found], np.uint64)
        except (TypeError, ValueError, OverflowError):
            return nothing
