"""The undecoded rows that stand in a reader's places of each batch; their units are read ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from seresnet_hub.data.plan import Plan, Reader, Window
from seresnet_hub.data.split import Split
from seresnet_hub.data.units import Row, read_unit


@dataclass
class _OpenWindow:
    """A window whose units are read, and how many of its rows were handed out."""

    window: Window
    units: dict[int, Sequence[Row]]
    done: int = 0


class RowReader:
    """The undecoded rows of one reader, batch after batch; units are read ahead in threads and dropped when used up."""

    def __init__(self, split: Split, plan: Plan, reader: Reader, start: int) -> None:
        self._split = split
        self._windows = plan.windows(reader, start)
        self._uses = plan.unit_uses(reader, start)
        self._upcoming: deque[Window] = deque()
        self._units: dict[int, Future[Sequence[Row]]] = {}
        self._open: list[_OpenWindow] = []
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
        rows = [row for window in self._open for row in _rows_of(window, self.next_batch)]
        self._open = [window for window in self._open if window.done < len(window.window.row)]
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
                    self._units[unit] = self._threads.submit(read_unit, self._split, unit)

    def _opened(self, window: Window) -> _OpenWindow:
        units = {unit: self._units[unit].result() for unit in np.unique(window.unit).tolist()}
        for unit in units:
            self._uses[unit] -= 1
            if not self._uses[unit]:
                del self._units[unit]
        return _OpenWindow(window, units)


def _rows_of(opened: _OpenWindow, batch: int) -> list[tuple[int, Row]]:
    """Return the places and rows of one batch, the next of the window; made now, as a window may be a whole lane."""
    (_, batches, *columns), first = opened.window, opened.done
    opened.done = stop = int(np.searchsorted(batches, batch, side="right"))
    places, units, rows = (column[first:stop].tolist() for column in columns)
    return [(place, opened.units[unit][row]) for place, unit, row in zip(places, units, rows, strict=True)]
