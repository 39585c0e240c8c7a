"""Decide which row of a data set is in which place of which batch, before anything is read.

A data set is a row of *units* (row groups), each readable only as a whole. Two wishes pull apart: the global batches
must be the same for any number of ranks and workers, and a rank must not read units for the sake of a few of their
rows. Were batches consecutive rows of one shuffled stream, every rank would need every unit. So the plan has *lanes*:

- The units are permuted, and the rows they hold, laid end to end, are cut into `lanes` stretches of equal length.
- A lane takes the units of its stretch in windows and permutes the rows inside a window.
- Batch k takes the k-th few rows of every lane, lane by lane. So a lane always fills the same places of a batch.
- Ranks divide the *places* of a batch among them, consecutive ones each, and the workers of a rank divide its places.

Lanes, not ranks, define the order, so ranks and workers do not change it. Where ranks × workers divides both the lanes
and the batch, each reader has whole lanes, that is, one stretch of units, and shares at most the two units at its ends
with a neighbour. Otherwise neighbours both read the lane at their boundary, each for some of its rows: with no more
readers than places, a unit is read up to 1 + readers / lanes times. That costs bytes and memory, but no decoding.

Where the workers do not divide the places of their rank, their boundaries move from batch to batch, by less than a
place. Over some batches every worker then has equally many rows, also where a rank has more workers than rows of a
batch. The boundaries of ranks that do not divide the batch move in the same way.

More lanes divide among more readers and mix more, but each has a window in memory: with 24 lanes and ImageNet's row
groups of 100 pictures, 2,400 undecoded pictures over all readers.

Every second lane is walked backwards. Then the two lanes that share a unit both begin with it or both end with it, and
one reader of both reads it once.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

# Streams of random numbers, apart from that of the order of the units.
UNIT, WINDOW = 1, 2

Numbers = TypeVar("Numbers", int, np.ndarray)


class Order(NamedTuple):
    """What an epoch's order depends on; a window holds at least `window` rows over all lanes, or a unit a lane."""

    seed: int
    epoch: int
    window: int


class Reader(NamedTuple):
    """One of those that divide each batch: worker `worker` of `workers` on rank `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1


class Window(NamedTuple):
    """The rows that one reader takes out of a window of a lane: arrays of equal length, row by row, in rising batches.

    `first_batch` is the batch where the window begins. No later window of the reader needs the `finished` units.
    """

    first_batch: int
    batch: np.ndarray
    place: np.ndarray
    unit: np.ndarray
    row: np.ndarray
    finished: tuple[int, ...]


class _Piece(NamedTuple):
    """Rows `start` to `stop` of a unit, in the unit's own order."""

    unit: int
    start: int
    stop: int


class _LaneWindow(NamedTuple):
    """A window of a lane, from row `position` of the lane on, before the order of its rows is drawn."""

    first_batch: int
    lane: int
    number: int
    position: int
    pieces: list[_Piece]


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

    def rows_until(self, batch: int) -> int:
        """Return how many rows the batches before one have over all readers."""
        return min(batch, self.full_batches) * self.batch_size + (self.rest if batch > self.full_batches else 0)

    def places(self, batch: int, reader: Reader) -> tuple[int, int]:
        """Return the places of a batch that a reader fills, first and one past the last."""
        return self._places(batch, self.batch_rows(batch), reader)

    def _places(self, batch: Numbers, rows: Numbers, reader: Reader) -> tuple[Numbers, Numbers]:
        rank, world_size, worker, workers = reader
        # The last, incomplete batch is no turn: where ranks divide the others, nothing moves from epoch to epoch.
        rank_turn = batch * (batch < self.full_batches)
        low, high = (_cut(rows, number, world_size, rank_turn) for number in (rank, rank + 1))
        # After `period` batches the ranks' boundaries are the same again. The workers' must not be, or one worker would
        # always divide its rank's larger parts, and another the smaller ones.
        period = world_size // math.gcd(self.batch_size, world_size)
        turn = batch + batch // math.lcm(period, workers) % math.gcd(period, workers)
        first, last = (_cut(high - low, number, workers, turn) for number in (worker, worker + 1))
        return low + first, low + last

    def share(self, batch: int, world_size: int) -> int:
        """Return the length of every rank's part of a batch; ranks with a row less have a padded one."""
        return -(-self.batch_rows(batch) // world_size)

    def readings(self, world_size: int, workers: int) -> float:
        """Return how many readers have rows of a lane, on average: so often a unit is read."""
        ends = [_cut(self.batch_size, lane, self.lanes) for lane in range(self.lanes + 1)]
        lanes = [(low, high) for low, high in pairwise(ends) if low < high]
        spans = [
            self._span(Reader(rank, world_size, worker, workers))
            for rank in range(world_size)
            for worker in range(workers)
        ]
        return sum(_overlap(lane, span) for lane in lanes for span in spans) / max(len(lanes), 1)

    def windows(self, reader: Reader, start: int = 0) -> Iterator[Window]:
        """Yield what a reader needs from batch `start` on, in the order in which batches need it."""
        unit_order = lru_cache(maxsize=1)(self._unit_order)  # lanes that share a unit come one after the other
        left: dict[int, int] = {}  # windows to come that need a unit which lanes share
        finished: list[int] = []
        span = self._span(reader)
        lanes = [self._lane_windows(lane, reader, span, start) for lane in range(self.lanes)]
        for window in heapq.merge(*lanes, key=lambda window: window.first_batch):
            for piece in window.pieces:
                if piece.unit not in left:
                    left[piece.unit] = self._uses(piece.unit, reader, span, start) if self._is_cut(piece) else 1
                left[piece.unit] -= 1
                if not left[piece.unit]:
                    finished.append(piece.unit)
                    del left[piece.unit]
            mine = self._rows_of(window, reader, start)
            if len(mine[0]):
                unit, row = self._shuffled(window, unit_order)
                batch, place, at = mine
                yield Window(window.first_batch, batch, place, unit[at], row[at], tuple(finished))
                finished.clear()

    def needs(self, unit: int, reader: Reader, start: int = 0) -> bool:
        """Return whether a reader may need rows of a unit from batch `start` on."""
        return self._uses(unit, reader, self._span(reader), start) > 0

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
        some = slice(int(np.searchsorted(starts, first, side="right")) - 1, int(np.searchsorted(starts, last)))
        begins, ends = np.maximum(first - starts[some], 0), np.minimum(last, starts[1:][some]) - starts[some]
        columns = (column.tolist() for column in (units[some], begins, ends))
        pieces = [_Piece(unit, begin, end) for unit, begin, end in zip(*columns, strict=True) if begin < end]
        return pieces[::-1] if lane % 2 else pieces

    def _is_cut(self, piece: _Piece) -> bool:
        return piece.stop - piece.start < self.unit_rows[piece.unit]

    def _lane_places(self, lane: int, rows: int) -> tuple[int, int]:
        """Return the places that a lane fills in a batch of so many rows, first and one past the last."""
        return _cut(rows, lane, self.lanes), _cut(rows, lane + 1, self.lanes)

    def _span(self, reader: Reader) -> tuple[int, int]:
        """Return the places that a reader fills in any full batch, first and one past the last."""
        batch = np.arange(min(self.full_batches, reader.world_size * reader.workers))  # after these they repeat
        low, high = self._places(batch, np.full_like(batch, self.batch_size), reader)
        some = low < high
        return (int(low[some].min()), int(high[some].max())) if some.any() else (0, 0)

    def _lane_windows(self, lane: int, reader: Reader, span: tuple[int, int], start: int) -> Iterator[_LaneWindow]:
        """Yield the windows of a lane from batch `start` on that may have rows of a reader of such a span."""
        places, rest = (self._lane_places(lane, rows) for rows in (self.batch_size, self.rest))
        has_full = _overlap(places, span)
        if not has_full and not _overlap(rest, self.places(self.full_batches, reader)):
            return
        width = places[1] - places[0]
        in_full = self.full_batches * width  # the lane's rows that full batches take; those after are for the rest
        end = 0
        for number, pieces in enumerate(_gathered(self._lane_pieces(lane), self._window_rows)):
            position, end = end, end + sum(piece.stop - piece.start for piece in pieces)
            first, last = (row // width if row < in_full else self.full_batches for row in (position, end - 1))
            if first >= self.steps:
                return
            if last >= start and (has_full or end > in_full):
                yield _LaneWindow(max(first, start), lane, number, position, pieces)

    def _uses(self, unit: int, reader: Reader, span: tuple[int, int], start: int) -> int:
        """Return how many windows may have rows of a unit: one at most of each lane that it is cut into."""
        units, starts = self._units
        position = int(np.flatnonzero(units == unit)[0])
        lanes = (
            self._lane_windows(lane, reader, span, start) for lane in range(self.lanes)
            if _overlap((self._lane_start(lane), self._lane_start(lane + 1)), starts[position : position + 2].tolist())
        )  # fmt: skip
        return sum(any(unit in (piece.unit for piece in window.pieces) for window in windows) for windows in lanes)

    def _rows_of(self, window: _LaneWindow, reader: Reader, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a reader's rows of a window from batch `start` on: batch, place, and number within the window."""
        (first, last), (first_rest, _) = (self._lane_places(window.lane, rows) for rows in (self.batch_size, self.rest))
        width = last - first
        in_full = self.full_batches * width
        at = np.arange(sum(piece.stop - piece.start for piece in window.pieces))
        row = at + window.position
        batch = np.where(row < in_full, row // max(width, 1), self.full_batches)
        place = np.where(row < in_full, first + row - batch * width, first_rest + row - in_full)
        batches = np.arange(batch[0], batch[-1] + 1)
        rows = np.where(batches < self.full_batches, self.batch_size, self.rest)
        low, high = (bounds[batch - batch[0]] for bounds in self._places(batches, rows, reader))
        mine = (low <= place) & (place < high) & (start <= batch) & (batch < self.steps)
        return batch[mine], place[mine], at[mine]

    @property
    def _window_rows(self) -> int:
        return 1 if self.order is None else self.order.window // self.lanes

    def _shuffled(self, window: _LaneWindow, unit_order: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the unit and the row within it of each row of a window."""
        unit = np.concatenate([np.full(piece.stop - piece.start, piece.unit) for piece in window.pieces])
        row = np.concatenate([
            unit_order(piece.unit)[piece.start : piece.stop]
            if self.order is not None and self._is_cut(piece)  # a whole unit is permuted with its window
            else np.arange(piece.start, piece.stop)
            for piece in window.pieces
        ])  # fmt: skip
        if self.order is None:
            return unit, row
        permutation = self._random(WINDOW, window.lane, window.number).permutation(len(row))
        return unit[permutation], row[permutation]

    def _unit_order(self, unit: int) -> np.ndarray:
        """Return a random order of a unit's rows, which the lanes that share it divide."""
        return self._random(UNIT, unit).permutation(self.unit_rows[unit])


def _cut(count: Numbers, number: int, of: int, turn: Numbers | int = 0) -> Numbers:
    """Return where the share `number` begins when `count` things are divided, for the `turn`-th time.

    In turn 0, cuts at n of m and 2n of 2m agree. Over `of` turns every share has had `count` things (Hermite's
    identity). Where `of` divides `count`, all turns are the same.
    """
    return -((count * turn % of - count * number) // of)


def _overlap(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two spans, each given by its first number and one past its last, have a number in common."""
    return max(one[0], other[0]) < min(one[1], other[1])


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
