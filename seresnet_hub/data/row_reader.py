"""The undecoded rows that stand in a reader's places of each batch; their units are read ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from seresnet_hub.data.plan import Plan, Reader, Window
from seresnet_hub.data.split import Split
from seresnet_hub.data.units import Row, read_unit


class _OpenWindow:
    """A window whose batches are being made; rows are taken out of its units when their batch is asked for."""

    def __init__(self, window: Window, units: Mapping[int, Sequence[Row]]) -> None:
        self._window, self._units, self._taken = window, units, 0

    @property
    def used_up(self) -> bool:
        return self._taken == len(self._window.batch)

    def take(self, batch: int) -> Iterator[tuple[int, Row]]:
        """Yield the places and rows of a batch; earlier ones have been taken."""
        some = slice(self._taken, int(np.searchsorted(self._window.batch, batch + 1)))
        self._taken = some.stop
        columns = (column[some].tolist() for column in (self._window.place, self._window.unit, self._window.row))
        for place, unit, row in zip(*columns, strict=True):
            yield place, self._units[unit][row]


class RowReader:
    """The undecoded rows of one reader, batch after batch.

    In memory are the units of its windows, one window of each lane that it has rows of, and those of the next windows
    to come: one, or four where the data is fetched over a network.
    """

    def __init__(self, split: Split, plan: Plan, reader: Reader, start: int) -> None:
        self._split, self._plan, self._reader = split, plan, reader
        self._windows = plan.windows(reader, start)
        self._upcoming: deque[Window] = deque()
        self._open: list[_OpenWindow] = []
        self._units: dict[int, Future[Sequence[Row]]] = {}
        self._ahead = 4 if split.is_far else 1
        self._threads = ThreadPoolExecutor(self._ahead, thread_name_prefix="reading")
        self.next_batch = start
        self.has_begun_all = False  # whether no unit is left that is not being read or was

    def next_rows(self) -> list[tuple[int, Row]]:
        """Return the places and rows of the next batch."""
        self.read_ahead()
        while self._upcoming and self._upcoming[0].first_batch <= self.next_batch:
            window = self._upcoming.popleft()
            self.read_ahead()
            self._open.append(self._opened(window))
        rows = [row for window in self._open for row in window.take(self.next_batch)]
        self._open = [window for window in self._open if not window.used_up]
        self.next_batch += 1
        return rows

    def read_ahead(self) -> None:
        """Begin to read the units that are needed next, as many as are read at a time."""
        while len(self._upcoming) <= self._ahead:
            window = next(self._windows, None)
            if window is None:
                self.has_begun_all = True
                return
            self._upcoming.append(window)
            for unit in np.unique(window.unit).tolist():
                if unit not in self._units:
                    self._units[unit] = self._threads.submit(read_unit, self._split, unit, self._is_needed)

    def _is_needed(self, unit: int) -> bool:
        return unit not in self._units and self._plan.needs(unit, self._reader, self.next_batch)

    def _opened(self, window: Window) -> _OpenWindow:
        units = {unit: self._units[unit].result() for unit in np.unique(window.unit).tolist()}
        for unit in window.finished:
            self._units.pop(unit, None)
        return _OpenWindow(window, units)
