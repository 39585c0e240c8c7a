"""Keep on this machine's disk what is read of remote shards, so that each byte is fetched once.

What is fetched goes into a partial file (`partial_file`) beside the place of the whole one. For data sets on the Hub
that is the Hub's own cache: once all bytes of a shard are there, and have the hash that the Hub names, the file takes
its place there, as if `hf download` had fetched it. Of other remote files, which name no such hash, the partial file
stays what is read. All processes of the machine share what is kept, and what one of them fetches the others wait for.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from seresnet_hub.data.partial_file import PartialFile, Range
from seresnet_hub.data.shards import Shard
from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.files.atomic_writing import cache_folder
from seresnet_hub.files.durability import flush_file, flush_folder
from seresnet_hub.files.locks import one_at_a_time
from seresnet_hub.hub.client import hash_like
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.range_requests import HUB_FILE, fetch_range
from seresnet_hub.hub.revisions import is_hash

COMMIT = re.compile(r"[0-9a-f]{40}")
# With cache_gb=none, what stays free of the disk: this share of it, and these bytes.
FREE_SHARE, FREE_BYTES = 0.1, 10e9
LEAST_FREE = 1e9  # with a number, too: other programs need the disk as well
LARGEST_REQUEST = 2**25  # bytes, where one request fetches several row groups; a single one may be larger
LOCKS = 4096  # files, so that two row groups seldom have the same
PATIENCE = 120.0  # seconds in which another process fetches what is wanted, before it is fetched twice
SECONDS_BETWEEN = 60.0  # two lines that say how much is kept

log = PrintableLog(__name__)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class _Place(NamedTuple):
    """Where a remote shard is kept: its partial file, and the whole one (None: it never is one) with its pointer.

    `pointer` is the name in the Hub's cache by which its client finds the file, in the snapshot of a commit.
    """

    partial: PartialFile
    whole: Path | None
    pointer: Path | None
    folder: Path


class ShardCache:
    """What is kept of the remote `files`, which `shards` describes; the loader's workers are forked from its process.

    `cache_gb` limits it: the first shards that fit are kept. None keeps as many as the disk holds with room to spare, 0
    none. Errors: `InputError` where the disk cannot hold what is asked for.
    """

    def __init__(self, files: Sequence[str], shards: Sequence[Shard], cache_gb: float | None = None) -> None:
        self._files, self._shards = files, shards
        self._places: dict[int, _Place | None] = {}
        self._looked_at: set[int] = set()
        # Shared with the workers: which shards came with other bytes than the Hub says, and whether the disk is full.
        self._wrong = mmap.mmap(-1, len(files) + 1)
        self.size = sum(shard.size for shard in shards)
        self._least_free = LEAST_FREE
        self._room = self._found_room(cache_gb) if any("://" in file for file in files) else self.size
        self._kept = self._fitting()
        self._next_line, self._said = time.monotonic() + SECONDS_BETWEEN if self.is_filling else math.inf, 0

    # ------------------------------------------------------------------ how much is kept

    def _found_room(self, cache_gb: float | None) -> float:
        """Return how many bytes may be kept."""
        if cache_gb == 0:
            return 0
        try:
            disk = shutil.disk_usage(_existing(self._folder()))
        except OSError:
            return 0
        if not os.access(_existing(self._folder()), os.W_OK) and not self.is_whole:
            self._wrong[len(self._files)] = 1  # `summary` says so, once for all splits
        had = self.kept_bytes()
        if cache_gb is None:
            self._least_free = max(FREE_SHARE * disk.total, FREE_BYTES)
            return had + max(disk.free - self._least_free, 0)
        if min(cache_gb * 1e9, self.size) - had > disk.free:
            raise InputError(
                f"cache_gb={cache_gb:g}: {self._folder()} has {disk.free / 1e9:.1f} GB free, and {had / 1e9:.1f} GB "
                "of the data set are there already; set a smaller one, or HF_HUB_CACHE to a folder on another disk"
            )
        return cache_gb * 1e9

    def _fitting(self) -> int:
        """Return how many shards, the first ones, fit into the room there is."""
        left = self._room
        for number, shard in enumerate(self._shards):
            left -= shard.size
            if left < 0:
                return number
        return len(self._shards)

    def share_room_with(self, other: ShardCache) -> None:
        """Leave so much room as another split of the data set needs."""
        self._room -= sum(shard.size for shard in other._shards[: other._kept])
        self._kept = self._fitting()

    def kept_bytes(self) -> int:
        """Return how many bytes of the shards are on this machine's disk."""
        found = 0
        for number, shard in enumerate(self._shards):
            place = self._place(number)
            found += shard.size if self.whole(number) else place.partial.bytes_on_disk() if place else 0
        return min(found, self.size)

    def summary(self) -> str:
        """Say where and how much is kept."""
        if self.is_whole:
            return f"all {_gb(self.size)} are in {self._folder()} already"
        keeps = sum(shard.size for shard in self._shards[: self._kept])
        if self._full:
            more = ", which cannot be written: the rest is fetched in each epoch"
        elif keeps == self.size:
            more = "; the rest is kept there as it is read"
        elif keeps == 0:
            more = "; no more is kept, so the rest is fetched in each epoch"
        else:
            more = f"; {_gb(keeps)} are kept there as they are read, {_gb(self.size - keeps)} are fetched in each epoch"
        return f"{_gb(self.kept_bytes())} of {_gb(self.size)} are in {self._folder()}{more}"

    def say_now_and_then(self) -> None:
        """Say how much is kept, at most once a minute, and only where it has become more."""
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN if self.is_filling else math.inf
            if (kept := self.kept_bytes()) > self._said:
                say(f"{_gb(kept)} of {_gb(self.size)} of the data set are on this machine")
            self._said = kept

    @property
    def is_filling(self) -> bool:
        """Whether shards are still to be kept."""
        return not self._full and any(self.whole(number) is None for number in range(self._kept))

    def _folder(self) -> Path:
        place = next((place for k in range(len(self._files)) if (place := self._place(k)) is not None), None)
        return place.folder if place else cache_folder() / "shards"

    @property
    def _full(self) -> bool:
        return bool(self._wrong[len(self._files)])

    def _stop(self, why: str) -> None:
        """Keep no more, in this process and its workers; says so once."""
        if not self._full:
            self._wrong[len(self._files)] = 1
            log.warning(
                "no more of the data set is kept in %s (%s): the rest is fetched in each epoch", self._folder(), why
            )

    # ------------------------------------------------------------------ places

    def _place(self, number: int) -> _Place | None:
        """Return where a shard is kept, None of a local one and one of which nothing tells what it holds."""
        if number not in self._places:
            file, shard = self._files[number], self._shards[number]
            remote = "://" in file and shard.size > 0 and shard.etag != ""
            self._places[number] = (_on_the_hub(file, shard) or _elsewhere(file, shard)) if remote else None
        return self._places[number]

    def whole(self, number: int) -> str | None:
        """Return the path of a shard that is on this machine's disk as a whole, None of another."""
        file, place = self._files[number], self._place(number)
        if "://" not in file:
            return file
        if place is None or place.whole is None:
            return None
        for path in (place.whole, place.pointer):
            with suppress(OSError):
                if path is not None and path.stat().st_size == self._shards[number].size:
                    return str(path)
        return None

    @property
    def keeps_all(self) -> bool:
        """Whether each byte is fetched once, if at all."""
        return self.is_whole or (self._kept == len(self._files) and not self._full)

    @property
    def is_whole(self) -> bool:
        """Whether all shards are on this machine's disk as whole files."""
        return all(self.whole(number) is not None for number in range(len(self._files)))

    # ------------------------------------------------------------------ reading

    def read(
        self, number: int, wanted: Range, *, cuts: Sequence[int] = (), following: Sequence[Range] = ()
    ) -> memoryview:
        """Return bytes of a remote shard: from what is kept, else fetched by one request, and kept.

        They are kept as ranges of their own between the `cuts`. Of the ranges that follow, those that are not kept yet
        are fetched in the same request, in their order and up to `LARGEST_REQUEST`. Errors: those of `fetch_range`.
        """
        fetch = partial(fetch_range, self._files[number])
        place = self._place(number)
        if place is None:
            return memoryview(fetch(*wanted))
        if number not in self._looked_at:  # its last bytes may have come just before a process was killed
            self._looked_at.add(number)
            self.complete(number)
        if (found := place.partial.read(*wanted)) is not None:
            return found
        if (path := self.whole(number)) is not None:
            return _read_file(path, wanted)
        if not self._may_keep(number):
            return memoryview(fetch(*wanted))
        with ExitStack() as locks:
            is_alone = locks.enter_context(_locked(place, wanted, PATIENCE))
            if (found := place.partial.read(*wanted)) is not None:  # another process has fetched it meanwhile
                return found
            if (path := self.whole(number)) is not None:
                return _read_file(path, wanted)
            # None where its bytes are damaged, and another thread has not noticed yet.
            gaps = place.partial.missing(*wanted)
            start, stop = (gaps[0][0], gaps[-1][1]) if gaps else wanted
            for one in following if stop == wanted[1] else ():
                gaps = place.partial.missing(*one)
                if len(gaps) != 1 or gaps[0][0] != stop or gaps[0][1] - start > LARGEST_REQUEST:
                    break
                if not locks.enter_context(_locked(place, one)):
                    break
                stop = gaps[0][1]
            data = memoryview(fetch(start, stop))
            if is_alone:  # who writes without the lock might write into a file that has just been compared as a whole
                self._keep(place, start, data, cuts)
            is_all = start <= wanted[0] and wanted[1] <= stop
            found = data[wanted[0] - start : wanted[1] - start] if is_all else place.partial.read(*wanted)
        self.complete(number)
        return memoryview(fetch(*wanted)) if found is None else found

    def _may_keep(self, number: int) -> bool:
        return number < self._kept and not self._wrong[number] and not self._full

    def _keep(self, place: _Place, start: int, data: memoryview, cuts: Sequence[int]) -> None:
        try:
            for folder in {place.partial.path.parent, place.folder / "snapshots" if place.whole else place.folder}:
                folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(place.folder).free - len(data) < self._least_free:
                self._stop(f"less than {self._least_free / 1e9:.0f} GB are free")
                return
            place.partial.write(start, data, cuts)
        except OSError as error:
            self._stop(error.strerror or str(error))

    # ------------------------------------------------------------------ whole files

    def complete(self, number: int) -> None:
        """Give a shard of the Hub its place in the Hub's cache, where all its bytes are here; does nothing otherwise.

        Where they are not what the Hub says they are, they are thrown away, and the shard is fetched in each epoch.
        """
        place, size = self._place(number), self._shards[number].size
        if place is None or place.whole is None or not self._may_keep(number):
            return
        if place.partial.missing(0, size):
            return
        try:
            with _locked(place, (0, size)) as is_free:
                if not is_free or self.whole(number) is not None:
                    return
                if place.partial.is_sound(size):  # else its damaged ranges are fetched again when they are read
                    self._put_in_place(number, place, place.whole)
        except OSError as error:
            if self.whole(number) is None:  # else another process was faster, where files cannot be locked
                self._stop(error.strerror or str(error))

    def _put_in_place(self, number: int, place: _Place, whole: Path) -> None:
        etag = self._shards[number].etag
        if hash_like(place.partial.path, etag) != etag:
            self._wrong[number] = 1
            place.partial.remove()
            log.warning(
                "%s arrived with other bytes than the Hub says it has: it is not kept, but fetched in each epoch",
                self._files[number],
            )
            return
        flush_file(place.partial.path)
        os.replace(place.partial.path, whole)
        flush_folder(whole.parent)
        place.partial.remove()
        _point(place)


def folder_in_hub_cache(repo: str) -> Path:
    """Return where the Hub's client keeps a data set. Errors: `ValueError` of the client where it is no name of one."""
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="dataset"))


def _on_the_hub(file: str, shard: Shard) -> _Place | None:
    """Return the place of a file of a data set's commit in the Hub's cache, None of any other file.

    Its layout is documented: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    found = HUB_FILE.fullmatch(file)
    if found is None or not COMMIT.fullmatch(found["revision"]) or not is_hash(shard.etag):
        return None
    if {"", ".", ".."} & {*found["path"].split("/")}:
        return None
    folder = folder_in_hub_cache(found["repo"])
    whole = folder / "blobs" / shard.etag
    partial_file = PartialFile(whole.with_name(f"{shard.etag}.seresnet-hub.incomplete"), shard.etag)
    return _Place(partial_file, whole, folder / "snapshots" / found["revision"] / found["path"], folder)


def _elsewhere(file: str, shard: Shard) -> _Place:
    key = hashlib.sha256(f"{file} {shard.size} {shard.etag}".encode()).hexdigest()[:32]
    folder = cache_folder() / "shards" / "files"
    return _Place(PartialFile(folder / f"{key}.incomplete", key), None, None, folder)


def _point(place: _Place) -> None:
    """Name a whole file in the snapshot of its commit, as the Hub's client does; asks the Hub nothing."""
    assert place.whole is not None
    assert place.pointer is not None
    if os.path.lexists(place.pointer):
        return
    place.pointer.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.pointer.symlink_to(os.path.relpath(place.whole, place.pointer.parent))
    except FileExistsError:
        pass  # another process was faster
    except OSError:  # without links the snapshot holds the file itself
        os.replace(place.whole, place.pointer)


def _lock_of(place: _Place, wanted: Range) -> Path:
    key = hashlib.sha256(f"{place.partial.path.name} {wanted}".encode()).digest()
    folder = place.folder.parent / ".locks" / place.folder.name  # where the Hub's client has its own
    return folder / f"seresnet-hub-{int.from_bytes(key[:4]) % LOCKS:04}.lock"


def _locked(place: _Place, wanted: Range, patience: float = 0.0) -> AbstractContextManager[bool]:
    # A cache that several users share is theirs all, and so are its locks.
    return one_at_a_time(_lock_of(place, wanted), patience=patience, private=False)


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _read_file(path: str, wanted: Range) -> memoryview:
    with open(path, "rb") as file:  # buffered, since one call of the system reads two gigabytes at most
        file.seek(wanted[0])
        return memoryview(file.read(wanted[1] - wanted[0]))
