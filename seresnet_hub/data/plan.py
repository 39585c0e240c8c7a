"""Decide which row of a data set is in which place of which batch, before anything is read.

A data set is a row of *units* (row groups), each readable only as a whole. Two wishes pull apart: the global batches
must be the same for any number of ranks and workers, and a rank must not read units for the sake of a few of their
rows. Were batches consecutive rows of one shuffled stream, every rank would need every unit. So the plan has *lanes*:

- The units are permuted, and the rows they hold, laid end to end, are cut into `lanes` stretches of equal length.
- A lane takes the units of its stretch in windows and permutes the rows inside a window.
- Batch k takes the k-th few rows of every lane, lane by lane. So a lane always fills the same places of a batch.
- Ranks, and the workers of a rank, divide the *places* of a batch among them, consecutive ones each.

Lanes, not ranks, define the order, so ranks and workers do not change it. Where ranks × workers divides the number of
lanes, each reader has whole lanes, that is, one stretch of units, and shares at most the two units at its ends with a
neighbour. Otherwise (5 ranks, 24 lanes) a reader also shares a lane at each end, which costs at most 2 / lanes of the
data set, and nothing but bytes. More lanes divide among more readers and mix more, but each has a window in memory:
with 24 lanes and ImageNet's row groups of 100 pictures, 2,400 undecoded pictures over all readers.

Every second lane is walked backwards. Then the two lanes that share a unit both begin with it or both end with it, and
one reader of both reads it once.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

# Streams of random numbers, apart from that of the order of the units.
UNIT, WINDOW = 1, 2


class Order(NamedTuple):
    """What an epoch's order depends on; a window holds at least `window` rows over all lanes, or a unit a lane."""

    seed: int
    epoch: int
    window: int


class Reader(NamedTuple):
    """One of the `readers` that divide each batch: worker w of n on rank r of m is number r·n + w of m·n."""

    number: int = 0
    readers: int = 1


class Window(NamedTuple):
    """The rows that one reader takes out of a window of a lane: arrays of equal length, row by row.

    `first_batch` is the batch where the window begins.
    """

    first_batch: int
    batch: np.ndarray
    place: np.ndarray
    unit: np.ndarray
    row: np.ndarray


class _Piece(NamedTuple):
    """Rows `start` to `stop` of a unit, in the unit's own order."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of an epoch: each row exactly once, `order=None` without any shuffling.

    The last batch may be smaller, or with `drop_last` is left out. `max_steps` ends the epoch early.
    """

    unit_rows: tuple[int, ...]
    batch_size: int
    lanes: int = 24
    order: Order | None
    drop_last: bool = False
    max_steps: int | None = None

    @cached_property
    def rows(self) -> int:
        """The rows of all units."""
        return sum(self.unit_rows)

    @property
    def full_batches(self) -> int:
        """The number of batches with `batch_size` rows."""
        return self.rows // self.batch_size

    @property
    def rest(self) -> int:
        """The rows of the last, incomplete batch; 0 where there is none."""
        return 0 if self.drop_last else self.rows % self.batch_size

    @property
    def steps(self) -> int:
        """The number of batches."""
        steps = self.full_batches + (self.rest > 0)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def batch_rows(self, batch: int) -> int:
        """Return how many rows a batch has over all readers."""
        return self.batch_size if batch < self.full_batches else self.rest

    def places(self, batch: int, reader: Reader) -> tuple[int, int]:
        """Return the places of a batch that a reader fills, first and one past the last."""
        rows = self.batch_rows(batch)
        return _cut(rows, *reader), _cut(rows, reader.number + 1, reader.readers)

    def share(self, batch: int, world_size: int) -> int:
        """Return the length of every rank's part of a batch; ranks with a row less have a padded one."""
        return -(-self.batch_rows(batch) // world_size)

    def workers_in_use(self, world_size: int, workers: int) -> int:
        """Return how many of a rank's workers divide its places: as many as have whole lanes, else a lane each."""
        whole = [n for n in range(1, workers + 1) if self.lanes % (world_size * n) == 0]
        return max(whole, default=min(workers, max(1, self.lanes // world_size)))

    def windows(self, reader: Reader, start: int = 0) -> Iterator[Window]:
        """Yield what a reader needs from batch `start` on, in the order in which batches need it."""
        lanes = [self._lane_windows(lane, reader, start) for lane in range(self.lanes)]
        return heapq.merge(*lanes, key=lambda window: window.first_batch)

    def unit_uses(self, reader: Reader, start: int = 0) -> Counter[int]:
        """Return how many of a reader's windows take rows from each unit."""
        return Counter(unit for window in self.windows(reader, start) for unit in set(window.unit.tolist()))

    # ------------------------------------------------------------------ lanes

    @cached_property
    def _units(self) -> tuple[np.ndarray, np.ndarray]:
        """The units in the epoch's order, and where each begins in the row of all rows (with the end of the last)."""
        count = len(self.unit_rows)
        units = np.arange(count) if self.order is None else self._random().permutation(count)
        rows = np.asarray(self.unit_rows, dtype=np.int64)[units]
        return units, np.concatenate([[0], np.cumsum(rows)])

    def _random(self, *stream: int) -> np.random.Generator:
        assert self.order is not None
        return np.random.default_rng([self.order.seed, self.order.epoch, *stream])

    def _lane_start(self, lane: int) -> int:
        return self.full_batches * _cut(self.batch_size, lane, self.lanes) + _cut(self.rest, lane, self.lanes)

    def _lane_pieces(self, lane: int) -> list[_Piece]:
        first, last = self._lane_start(lane), self._lane_start(lane + 1)
        units, starts = self._units
        pieces = []
        for k in range(int(np.searchsorted(starts, first, side="right")) - 1, len(units)):
            if starts[k] >= last:
                break
            begin, end = max(first - int(starts[k]), 0), min(last, int(starts[k + 1])) - int(starts[k])
            if begin < end:
                pieces.append(_Piece(int(units[k]), begin, end))
        return pieces[::-1] if lane % 2 else pieces

    def _lane_windows(self, lane: int, reader: Reader, start: int) -> Iterator[Window]:
        first_place, first_rest = (_cut(rows, lane, self.lanes) for rows in (self.batch_size, self.rest))
        places = _cut(self.batch_size, lane + 1, self.lanes) - first_place
        low, high = _cut(self.batch_size, *reader), _cut(self.batch_size, reader.number + 1, reader.readers)
        low_rest, high_rest = _cut(self.rest, *reader), _cut(self.rest, reader.number + 1, reader.readers)
        if max(low, first_place) >= min(high, first_place + places) and not self.rest:
            return
        in_full = self.full_batches * places  # the lane's rows that full batches take; those after are for the rest
        position = 0
        for number, pieces in enumerate(_gathered(self._lane_pieces(lane), self._window_rows)):
            length = sum(piece.stop - piece.start for piece in pieces)
            at = np.arange(position, position + length)
            position += length
            batch = np.where(at < in_full, at // max(places, 1), self.full_batches)
            if batch[-1] < start:
                continue
            if batch[0] >= self.steps:
                return
            place = np.where(at < in_full, first_place + at - batch * places, first_rest + at - in_full)
            mine = np.where(at < in_full, (low <= place) & (place < high), (low_rest <= place) & (place < high_rest))
            mine &= (start <= batch) & (batch < self.steps)
            if not mine.any():
                continue
            unit, row = self._shuffled(pieces, lane, number)
            yield Window(max(int(batch[0]), start), batch[mine], place[mine], unit[mine], row[mine])

    @property
    def _window_rows(self) -> int:
        return 1 if self.order is None else self.order.window // self.lanes

    def _shuffled(self, pieces: Sequence[_Piece], lane: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        unit = np.concatenate([np.full(piece.stop - piece.start, piece.unit) for piece in pieces])
        row = np.concatenate([self._unit_order(piece)[piece.start : piece.stop] for piece in pieces])
        if self.order is None:
            return unit, row
        permutation = self._random(WINDOW, lane, number).permutation(len(row))
        return unit[permutation], row[permutation]

    def _unit_order(self, piece: _Piece) -> np.ndarray:
        rows = self.unit_rows[piece.unit]
        if self.order is None or piece.stop - piece.start == rows:  # a whole unit is permuted with its window
            return np.arange(rows)
        return self._random(UNIT, piece.unit).permutation(rows)


def _cut(count: int, number: int, of: int) -> int:
    """Return where the share `number` begins when `count` things are divided; cuts at n of m and 2n of 2m agree."""
    return -(-count * number // of)


def _gathered(pieces: Sequence[_Piece], rows: int) -> Iterator[list[_Piece]]:
    window: list[_Piece] = []
    held = 0
    for piece in pieces:
        window.append(piece)
        held += piece.stop - piece.start
        if held >= rows:
            yield window
            window, held = [], 0
    if window:
        yield window
