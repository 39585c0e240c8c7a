"""Read the files that rows name before they are decoded, where each is on another machine."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor

from seresnet_hub.data.row_reader import RowReader
from seresnet_hub.data.split import Split
from seresnet_hub.data.units import Row, picture_bytes

AT_ONCE = 8  # files
AHEAD = 32  # files, and the rest of their batch


class FilesAhead:
    """The rows of a reader, whose files are being read: `image["bytes"]` is the `Future` of them."""

    def __init__(self, reader: RowReader, split: Split, steps: int) -> None:
        self._reader, self._split, self._steps = reader, split, steps
        self._coming: deque[list[tuple[int, Row]]] = deque()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="files")
        self.next_batch = reader.next_batch

    @property
    def has_begun_all(self) -> bool:
        """Whether nothing is left that is not being read or was."""
        return self._reader.has_begun_all and self._reader.next_batch >= self._steps

    def next_rows(self) -> list[tuple[int, Row]]:
        """Return the places and rows of the next batch."""
        self.read_ahead()
        rows = self._coming.popleft() if self._coming else []
        self.next_batch += 1
        self.read_ahead()
        return rows

    def read_ahead(self) -> None:
        """Begin to read the files of the next batch, and of as many more as are read ahead."""
        while self._reader.next_batch < self._steps and sum(map(len, self._coming)) < AHEAD:
            self._coming.append([(place, self._started(row)) for place, row in self._reader.next_rows()])

    def _started(self, row: Row) -> Row:
        if row.image is None or row.image.get("path") is None or row.image.get("bytes") is not None:
            return row
        data = self._threads.submit(picture_bytes, self._split, row.image)
        return row._replace(image={**row.image, "bytes": data})
