"""The undecoded rows that stand in a reader's places of each batch; their units are read ahead in threads."""

from __future__ import annotations

from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from seresnet_hub.data.plan import Plan, Reader, Window
from seresnet_hub.data.split import Split
from seresnet_hub.data.units import Row, read_unit


class RowReader:
    """The undecoded rows of one reader, batch after batch; units are read ahead in threads and dropped when used up."""

    def __init__(self, split: Split, plan: Plan, reader: Reader, start: int) -> None:
        self._split = split
        self._windows = plan.windows(reader, start)
        self._uses = plan.unit_uses(reader, start)
        self._upcoming: deque[Window] = deque()
        self._units: dict[int, Future[list[Row]]] = {}
        self._rows: dict[int, list[tuple[int, Row]]] = defaultdict(list)
        self._ahead = 4 if split.streamed else 1
        self._threads = ThreadPoolExecutor(self._ahead, thread_name_prefix="reading")
        self.next_batch = start
        self.has_begun_all = False  # whether no unit is left that is not being read or was

    def next_rows(self) -> list[tuple[int, Row]]:
        """Return the places and rows of the next batch."""
        self.read_ahead()
        while self._upcoming and self._upcoming[0].first_batch <= self.next_batch:
            window = self._upcoming.popleft()
            self.read_ahead()
            self._distribute(window)
        self.next_batch += 1
        return self._rows.pop(self.next_batch - 1, [])

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
        return unit in self._uses and unit not in self._units

    def _distribute(self, window: Window) -> None:
        units = {unit: self._units[unit].result() for unit in np.unique(window.unit).tolist()}
        columns = (window.batch, window.place, window.unit, window.row)
        for batch, place, unit, row in zip(*(column.tolist() for column in columns), strict=True):
            self._rows[batch].append((place, units[unit][row]))
        for unit in units:
            self._uses[unit] -= 1
            if not self._uses[unit]:
                del self._units[unit]
