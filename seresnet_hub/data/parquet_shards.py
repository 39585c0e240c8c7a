"""Read the row groups of parquet shards; of remote ones, the footer and the bytes that are wanted are fetched."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import xxhash
from datasets import Features
from datasets.table import table_cast

from seresnet_hub.data.partial_file import Range
from seresnet_hub.data.read_image import read_file
from seresnet_hub.data.read_retries import reading
from seresnet_hub.data.shard_cache import ShardCache
from seresnet_hub.data.shards import Shard, counted_once, fingerprint_of, keep_shards, kept_shards
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import cache_folder, replacing

TAIL = 2**17  # bytes that are fetched first of a shard's end: most footers have fewer
MOST_FOOTER = 2**30
ENDING = 8  # bytes after the footer: its length, and "PAR1"
FOOTERS_HELD = 4  # parsed ones, in each process: one may take a megabyte, and parsing it half a millisecond
# A row group is fetched as a whole where the columns that nobody reads are at most this share of it.
MOST_UNREAD = 0.1
MOST_TOGETHER = 16  # row groups in one request: for each, a lock is an open file


@dataclass(frozen=True)
class Footer:
    """What a shard of `size` bytes says of itself."""

    metadata: pyarrow.parquet.FileMetaData
    size: int

    @property
    def rows(self) -> list[int]:
        """The rows of each row group."""
        return [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]

    @cached_property
    def chunks(self) -> list[list[Chunk]]:
        """The column chunks of each row group, in the order of their bytes; together they are the whole shard."""
        found = []
        for group in range(self.metadata.num_row_groups):
            for column in range(self.metadata.num_columns):
                chunk = self.metadata.row_group(group).column(column)
                offsets = [chunk.data_page_offset, chunk.dictionary_page_offset]
                start = min(offset for offset in offsets if offset)  # old writers mean by 0 that there is none
                found.append(
                    (start, start + chunk.total_compressed_size, group, chunk.path_in_schema.partition(".")[0])
                )
        found.sort()
        groups: list[list[Chunk]] = [[] for _ in range(self.metadata.num_row_groups)]
        for k, (start, stop, group, column) in enumerate(found):
            following = found[k + 1][0] if k + 1 < len(found) else self.size
            groups[group].append(Chunk(column, start if k else 0, max(stop, following)))
        return groups


class Chunk(NamedTuple):
    """The bytes [start, stop) of a column (of a nested one, its first name), with what lies before the next one."""

    column: str
    start: int
    stop: int


class ParquetShards:
    """The parquet shards of a split, at the addresses `files`, and what is kept of the remote ones."""

    def __init__(self, files: Sequence[str], shards: Sequence[Shard], cache_gb: float | None = None) -> None:
        """Errors: `InputError` where the disk cannot hold `cache_gb` (see `ShardCache`)."""
        self._files, self._shards = files, shards
        self.cache = ShardCache(files, shards, cache_gb)
        self._held: dict[int, Footer] = {}  # the last ones that were used
        self._unkept: dict[int, bytes] = {}  # footers that could not be written to the cache folder

    def row_groups(self) -> list[list[int]]:
        """Return the rows of each row group of each shard, which their footers say."""

        def read_footers() -> list[list[int]]:
            with ThreadPoolExecutor(16) as pool:
                return list(pool.map(self._rows, range(len(self._files))))

        if any("://" in file for file in self._files):
            return counted_once(self._shards, len(self._files), read_footers)
        # Reading local footers takes no longer than it would to know that what was kept of them is right.
        groups = read_footers()
        if kept_shards(fingerprint_of(self._shards)) != list(self._shards):
            keep_shards(self._shards, groups)
        return groups

    def _rows(self, number: int) -> list[int]:
        file = self._files[number]
        return reading(f"read parquet shard {file}", lambda: self.footer(number).rows, remote="://" in file)

    def footer(self, number: int) -> Footer:
        """Return a shard's footer, which is fetched once, kept in the cache folder, and parsed where it is needed."""
        if (held := self._held.get(number)) is not None:
            return held
        path = self.cache.whole(number)
        if path is not None:
            metadata = pyarrow.parquet.read_metadata(path)
        else:
            metadata = pyarrow.parquet.read_metadata(pyarrow.BufferReader(self._tail(number)))
        footer = Footer(metadata, self._shards[number].size)
        for old in list(self._held)[: 1 - FOOTERS_HELD]:
            self._held.pop(old, None)
        self._held[number] = footer
        return footer

    def read(
        self,
        number: int,
        group: int,
        features: Features,
        *,
        needed: Callable[[int], bool] = lambda _: False,
    ) -> pyarrow.Table:
        """Return the columns `features` of a row group, as the data set declares them.

        Of a remote shard that is kept, the row groups that follow and are `needed` later may be fetched as well.
        """
        # Arrow keeps the memory of row groups that were used up, in a worker more than it holds of them. To give it back
        # takes half a millisecond a row group.
        pyarrow.default_memory_pool().release_unused()
        footer = self.footer(number)
        source: str | _Source | None = self.cache.whole(number)
        if source is None:
            parts = self._fetched(number, group, footer.chunks, set(features), needed)
            source = _Source(self._shards[number].size, parts, partial(self.cache.read, number))
        with pyarrow.parquet.ParquetFile(source, metadata=footer.metadata, pre_buffer=False) as file:
            table = file.read_row_group(group, columns=list(features), use_threads=False)
        return table if table.schema.equals(features.arrow_schema) else table_cast(table, features.arrow_schema)

    def _fetched(
        self, number: int, group: int, chunks: list[list[Chunk]], columns: set[str], needed: Callable[[int], bool]
    ) -> list[tuple[int, memoryview]]:
        """Return the bytes of a row group, in one piece where most of it is wanted, else column by column."""
        first, own = chunks[group][0].start, chunks[group]
        unread = sum(chunk.stop - chunk.start for chunk in own if chunk.column not in columns)
        if unread > MOST_UNREAD * (own[-1].stop - first):
            spans: list[Range] = []
            for chunk in own:
                if chunk.column in columns:
                    start = spans.pop()[0] if spans and spans[-1][1] == chunk.start else chunk.start
                    spans.append((start, chunk.stop))
            return [(span[0], self.cache.read(number, span)) for span in spans]
        following = list(takewhile(needed, range(group + 1, min(group + MOST_TOGETHER, len(chunks)))))
        cuts = [chunk.start for later in (group, *following) for chunk in chunks[later]]
        spans = [(chunks[later][0].start, chunks[later][-1].stop) for later in (group, *following)]
        return [(first, self.cache.read(number, spans[0], cuts=cuts, following=spans[1:]))]

    # ------------------------------------------------------------------ footers

    def _tail(self, number: int) -> bytes:
        """Return the end of a remote shard, from its footer on."""
        kept, shard = self._kept_tail(number), self._shards[number]
        if number in self._unkept:
            return self._unkept[number]
        with suppress(InputError):
            data = read_file(kept, most=MOST_FOOTER)
            if data[:8] == xxhash.xxh3_64_digest(data[8:]):
                return data[8:]
        if not shard.size:
            raise InputError("its server does not say how long it is")
        start = max(shard.size - TAIL, 0)
        tail = bytes(self.cache.read(number, (start, shard.size)))
        length = int.from_bytes(tail[-ENDING:-4], "little") + ENDING
        if tail[-4:] != b"PAR1" or length > min(shard.size, MOST_FOOTER):
            raise InputError("it is no parquet file")
        if length > len(tail):
            tail = bytes(self.cache.read(number, (shard.size - length, start))) + tail
        tail = tail[-length:]
        try:
            with replacing(kept) as temporary:
                temporary.write_bytes(xxhash.xxh3_64_digest(tail) + tail)
        except InputError:
            self._unkept[number] = tail
        return tail

    def _kept_tail(self, number: int) -> Path:
        name = f"{self._files[number]} {self._shards[number]}"
        return cache_folder() / "shards" / "footers" / xxhash.xxh3_128_hexdigest(name.encode())


class _Source(io.RawIOBase):
    """A remote file of which some parts are here; the others are fetched when they are asked for."""

    def __init__(
        self, size: int, parts: Sequence[tuple[int, memoryview]], fetch: Callable[[Range], memoryview]
    ) -> None:
        self._size, self._parts, self._fetch, self._at = size, parts, fetch, 0

    def read(self, size: int = -1) -> memoryview:  # pyarrow takes it, and copies nothing
        start, stop = self._at, self._size if size < 0 else min(self._at + size, self._size)
        self._at = stop
        for first, data in self._parts:
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        return self._fetch((start, stop)) if start < stop else memoryview(b"")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
