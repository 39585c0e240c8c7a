"""The parts of a table that is being written: whole files in a folder beside it, so that a killed run can go on."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import errors_named, read_json, write_json
from seresnet_hub.files.durability import flush_file, flush_folder
from seresnet_hub.files.leftovers import partial_of, sweep
from seresnet_hub.files.locks import LOCK_NAME, Lock, acquire
from seresnet_hub.inference.full_disk import way_out_of_a_full_disk

RECORD_NAME = "work.json"
PART = re.compile(r"rows-(\d+)-(\d+)-([0-9a-f]{8})\.arrow")
# A part is written out after so many rows or seconds, whichever comes first: no more is lost to a kill.
PART_ROWS, PART_SECONDS = 2048, 15.0
# On a file system that machines share, what another one wrote may be seen so much later.
SEEN_SECONDS = 60


class Rows(NamedTuple):
    """The rows from `first` up to, and without, `stop`."""

    first: int
    stop: int


class Parts:
    """The folder `OUTPUT.parts`: what is to be done, as a record, and the parts that are done."""

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, output.with_name(f"{output.name}.parts")
        self._record = self.folder / RECORD_NAME

    def lock(self, say: Callable[[str], None]) -> Lock:
        """Return a lock that no other run on this output gets. Errors: `InputError` where another one has it."""
        return acquire(self.folder / LOCK_NAME, what=str(self.output), say=say)

    def record(self) -> dict[str, Any] | None:
        """Return the record of the work that was begun here, None where none was."""
        return read_json(self._record) if self._record.exists() else None

    def begin(self, record: Mapping[str, Any]) -> None:
        """Begin other work than what was begun here, if any: its parts are removed."""
        with errors_named(self.folder):
            self._record.unlink(missing_ok=True)
            for name in os.listdir(self.folder) if self.folder.exists() else ():
                if PART.fullmatch(name):
                    (self.folder / name).unlink()
        write_json(self._record, record)

    def remove(self) -> None:
        """Remove the folder; a kill meanwhile leaves nothing that looks like work."""
        if self.folder.exists():
            with errors_named(self.folder), partial_of(self.folder) as temporary:
                os.replace(self.folder, temporary)
        sweep(self.folder.parent)

    def work(self) -> str:
        """Return a text for the work that was begun here, which other work does not have.

        Names of parts end with it, so that a process which outlives its run adds nothing to other work.
        """
        with errors_named(self._record, "read"):
            return hashlib.sha256(self._record.read_bytes()).hexdigest()[:8]

    def done(self) -> list[Rows]:
        """Return the rows of each part of the work that was begun, sorted."""
        if not self._record.exists():
            return []
        work = self.work()
        with errors_named(self.folder, "read"):
            found = [PART.fullmatch(name) for name in os.listdir(self.folder)]
        return sorted(Rows(int(match[1]), int(match[2])) for match in found if match and match[3] == work)

    def missing(self, rows: int) -> list[Rows]:
        """Return the stretches of `rows` rows that no part has."""
        found, at = [], 0
        for part in self.done():
            if part.first > at:
                found.append(Rows(at, part.first))
            at = max(at, part.stop)
        return [*found, Rows(at, rows)] if at < rows else found

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all `rows` rows in order, each once, a batch at a time.

        Parts overlap where a process outlived its run and wrote on; then both have the same rows. Errors: `InputError`
        where a part is damaged or missing.
        """
        for _ in range(SEEN_SECONDS):
            if not self.missing(rows):
                break
            time.sleep(1)
        if missing := self.missing(rows):
            first, stop = missing[0]
            raise InputError(f"{self.folder}: rows {first:,} to {stop:,} are missing; run the same command again")
        at, work = 0, self.work()
        for part in self.done():
            if part.stop <= at:
                continue
            path, row = self.path(part, work), part.first
            try:
                # Not mapped into memory, where the pages that were read would count.
                with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
                    for number in range(reader.num_record_batches):
                        batch = reader.get_batch(number)
                        end = row + batch.num_rows
                        if end > at:
                            yield batch.slice(at - row)
                            at = end
                        row = end
            except (OSError, pa.ArrowException) as error:
                raise InputError(
                    f"{path} cannot be read ({error}): remove it, and run the same command again"
                ) from error

    def path(self, rows: Rows, work: str) -> Path:
        """Return the file of a part of some work."""
        return self.folder / f"rows-{rows.first:012d}-{rows.stop:012d}-{work}.arrow"


class PartWriter:
    """Write rows that follow one another as parts; those of a part that ends before its time are kept at `close`."""

    def __init__(self, parts: Parts, *, rows: int = PART_ROWS, seconds: float = PART_SECONDS) -> None:
        self._parts, self._work, self._most_rows, self._most_seconds = parts, parts.work(), rows, seconds
        self._open: ExitStack | None = None
        self._writer: Any = None
        self._temporary = Path()
        self._first = self._rows = 0
        self._since = 0.0

    def write(self, first: int, batch: pa.RecordBatch) -> bool:
        """Add a batch whose first row has the number `first`; return whether a part was completed."""
        if self._open is not None and first != self._first + self._rows:
            self.close()
        try:
            with way_out_of_a_full_disk(self._parts.output), errors_named(self._parts.folder):
                if self._open is None:
                    self._begin(first, batch.schema)
                self._writer.write_batch(batch)
        except (InputError, pa.ArrowException):  # a part of it may be in the file, to which nothing is added then
            if self._open is not None:
                self._open.close()
                self._open = None
            raise
        self._rows += batch.num_rows
        if self._rows < self._most_rows and time.monotonic() - self._since < self._most_seconds:
            return False
        self.close()
        return True

    def _begin(self, first: int, schema: pa.Schema) -> None:
        self._open, self._first, self._rows, self._since = ExitStack(), first, 0, time.monotonic()
        self._temporary = self._open.enter_context(partial_of(self._parts.folder / "rows"))
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(str(self._temporary), schema, options=options)

    def close(self) -> None:
        """Let the part that was begun appear whole under its name."""
        if self._open is None:
            return
        with way_out_of_a_full_disk(self._parts.output), self._open, errors_named(self._parts.folder):
            self._open = None
            self._writer.close()
            flush_file(self._temporary)
            os.replace(self._temporary, self._parts.path(Rows(self._first, self._first + self._rows), self._work))
            flush_folder(self._parts.folder)


def share(missing: Sequence[Rows], *, batch_size: int, rank: int, world_size: int) -> list[Rows]:
    """Return which of the missing rows a process writes: whole batches, one stretch of their row, all about as many."""
    batches = [-(-(rows.stop - rows.first) // batch_size) for rows in missing]
    first, stop = (sum(batches) * number // world_size for number in (rank, rank + 1))
    found, at = [], 0
    for rows, number in zip(missing, batches, strict=True):
        begin, end = max(first - at, 0), min(stop - at, number)
        if begin < end:
            found.append(Rows(rows.first + begin * batch_size, min(rows.first + end * batch_size, rows.stop)))
        at += number
    return found
