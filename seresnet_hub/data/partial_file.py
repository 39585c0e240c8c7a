"""Keep some ranges of a remote file in a sparse local one, so that neither a killed process nor a loss of power harms.

Beside the bytes lies an index of the ranges that are there, to which records are only ever appended, after the bytes
they speak of. Nothing is flushed: a record that is torn fails its own check, and bytes that never reached the disk fail
the hash in their record, so they are as if they had not been fetched.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

# Start, stop, hash of the bytes, hash of the record; its length divides that of a page, so no page ends within one.
RECORD = struct.Struct("<QQQQ")
NOTHING = np.zeros((0, 3), np.uint64)
Range = tuple[int, int]  # bytes [start, stop)


class _Known(NamedTuple):
    """What was read of an index: `ranges`, of start, stop and hash, out of its first `read_to` bytes."""

    ranges: np.ndarray = NOTHING
    read_to: int = 0
    inode: int = 0


class PartialFile:
    """The ranges of one remote file that are kept here; any number of processes read and write them."""

    def __init__(self, path: Path, name: str) -> None:
        """`path` ends in `.incomplete`; `name` tells the remote file's content from any other, as its etag does."""
        self.path, self.index = path, path.with_name(path.name.removesuffix("incomplete") + "ranges.incomplete")
        self._seed = xxhash.xxh3_64_intdigest(name.encode())
        self._known = _Known()

    def read(self, start: int, stop: int) -> memoryview | None:
        """Return bytes [start, stop), `None` where not all of them are here as they were fetched."""
        ranges = self._look()
        found, gaps = _cover(ranges, start, stop)
        if gaps:
            return None
        first, last = int(found[0][0]), max(int(record[1]) for record in found)
        try:
            with self.path.open("rb") as file:  # buffered, since one call of the system reads two gigabytes at most
                file.seek(first)
                data = memoryview(file.read(last - first))
        except OSError:
            return None
        for record in found:
            low, high, digest = (int(number) for number in record)
            if len(data) < high - first or xxhash.xxh3_64_intdigest(data[low - first : high - first]) != digest:
                self._known = self._known._replace(ranges=ranges[(ranges != record).any(axis=1)])
                return None
        return data[start - first : stop - first]

    def missing(self, start: int, stop: int) -> list[Range]:
        """Return which of the bytes [start, stop) are not here."""
        return _cover(self._look(), start, stop)[1]

    def is_sound(self, size: int) -> bool:
        """Return whether all `size` bytes of the file are here as they were fetched; reads them."""
        found, gaps = _cover(self._look(), 0, size)
        return not gaps and all(self.read(int(record[0]), int(record[1])) is not None for record in found)

    def write(self, start: int, data: memoryview, cuts: Sequence[int]) -> None:
        """Keep `data`, the bytes from `start` on, as ranges of their own between the `cuts`. Errors: `OSError`."""
        stop = start + len(data)
        ends = sorted({start, stop, *(cut for cut in cuts if start < cut < stop)})
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0) as file:
            file.seek(start)
            written = 0
            while written < len(data):
                written += file.write(data[written:])
        records = b"".join(
            self._record(low, high, xxhash.xxh3_64_intdigest(data[low - start : high - start]))
            for low, high in pairwise(ends)
        )
        with self.index.open("ab", buffering=0) as file:
            file.write(bytes(-file.tell() % RECORD.size) + records)  # after a torn record, at the next whole place

    def remove(self) -> None:
        """Remove what is kept, the index first."""
        for path in (self.index, self.path):
            with suppress(OSError):
                path.unlink()

    def bytes_on_disk(self) -> int:
        """Return how much room the file takes, holes left out."""
        try:
            state = self.path.stat()
        except OSError:
            return 0
        return 512 * state.st_blocks if hasattr(state, "st_blocks") else state.st_size

    def _record(self, start: int, stop: int, digest: int) -> bytes:
        numbers = struct.pack("<QQQ", start, stop, digest)
        return numbers + struct.pack("<Q", xxhash.xxh3_64_intdigest(numbers, self._seed))

    def _look(self) -> np.ndarray:
        """Return the ranges in the index, of which what was appended since the last look is read."""
        known = self._known  # replaced as a whole, since the threads of a process share it
        try:
            with self.index.open("rb", buffering=0) as file:
                state = os.fstat(file.fileno())
                if state.st_ino != known.inode or state.st_size < known.read_to:  # it is another file by now
                    known = _Known(inode=state.st_ino)
                file.seek(known.read_to)
                data = file.read(max(state.st_size - known.read_to, 0)) or b""
        except OSError:
            known, data = _Known(), b""
        data = data[: len(data) // RECORD.size * RECORD.size]
        if data:
            records = [
                record[:3] for record in RECORD.iter_unpack(data) if self._record(*record[:3]) == RECORD.pack(*record)
            ]
            new = np.array([record for record in records if record[0] < record[1]], np.uint64).reshape(-1, 3)
            known = known._replace(ranges=np.concatenate([known.ranges, new]), read_to=known.read_to + len(data))
        self._known = known
        return known.ranges


def _cover(ranges: np.ndarray, start: int, stop: int) -> tuple[list[np.ndarray], list[Range]]:
    """Return the ranges that together hold [start, stop), newer ones first choice, and the gaps between them."""
    found: list[np.ndarray] = []
    gaps: list[Range] = []
    starts, stops = ranges[:, 0], ranges[:, 1]
    at = start
    while at < stop:
        inside = np.flatnonzero((starts <= at) & (stops > at))
        if len(inside):
            found.append(ranges[inside[-1]])
            at = int(found[-1][1])
        else:
            end = min(int(starts[starts > at].min(initial=stop)), stop)
            gaps.append((at, end))
            at = end
    return found, gaps
