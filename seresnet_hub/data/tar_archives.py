"""Count the rows of tar archives, each by its members' headers, and keep each count as soon as it is known.

A row is what `datasets`' `webdataset` makes one of: the members that follow each other with one key.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import fsspec
from datasets.packaged_modules.webdataset.webdataset import base_plus_ext
from tqdm import tqdm

from seresnet_hub.data.read_retries import reading
from seresnet_hub.data.shards import Shard, fingerprint_of, kept_file, read_record, write_record
from seresnet_hub.errors import InputError, printable

AT_ONCE = 8


def rows_of_archives(files: Sequence[str], shards: Sequence[Shard]) -> list[int]:
    """Return the number of rows of each archive; reads no archive again whose count was kept.

    Local archives are read header by header, remote ones whole. Errors: `InputError` where one cannot be read.
    """
    title = f"counting the rows of {len(files)} archives"
    with ThreadPoolExecutor(AT_ONCE) as pool, tqdm(desc=title, total=len(files), delay=1.5, leave=False) as bar:

        def counted(file: str, shard: Shard) -> int:
            rows = _counted_once(file, shard)
            bar.update()
            return rows

        try:
            return list(pool.map(counted, files, shards))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def kept_count(shard: Shard) -> Path:
    """Return where the count of an archive is kept, for as long as that does not change."""
    return kept_file(fingerprint_of([shard]), ".archive.json")


def _counted_once(file: str, shard: Shard) -> int:
    record = read_record(kept_count(shard)) or {}
    rows = record.get("rows")
    if record.get("archive") == list(shard) and type(rows) is int and rows >= 0:
        return rows
    name = printable(file)
    rows = reading(f"count the rows of {name}", partial(_rows_of, file), remote="://" in file)
    with suppress(InputError):  # without a cache folder it is counted again next time
        write_record(kept_count(shard), {"archive": shard, "rows": rows})
    return rows


def _rows_of(file: str) -> int:
    rows, key, fields = 0, None, set[str]()
    for name in _members(file):
        next_key, field = base_plus_ext(name)
        if next_key is None:
            continue
        if next_key != key:
            rows, key, fields = rows + 1, next_key, set()
        if field in fields:
            raise ValueError(f"it has two members for {field!r} of {key!r}")
        fields.add(field)
    return rows


def _members(file: str) -> Iterator[str]:
    """Yield the names of an archive's members that `datasets` reads."""
    if "://" in file:
        try:
            with fsspec.open(file, "rb", block_size=0) as handle, tarfile.open(fileobj=handle, mode="r|*") as archive:
                yield from _regular(archive)
        except tarfile.TarError as error:  # or the answer was cut off
            raise OSError(str(error)) from error
    else:
        with tarfile.open(file) as archive:
            yield from _regular(archive)


def _regular(archive: tarfile.TarFile) -> Iterator[str]:
    while (member := archive.next()) is not None:
        cast(Any, archive).members = []  # which would hold all of them
        if member.isreg() and not os.path.basename(member.name).startswith((".", "__")):
            yield member.name
