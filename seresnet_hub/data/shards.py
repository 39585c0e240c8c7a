"""The files of a data set: their sizes and hashes, as they are now and as they were, and what is kept of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import fsspec

from seresnet_hub.data.read_image import read_file
from seresnet_hub.data.row_files import folder_of
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import cache_folder, replacing

# fsspec reads this many bytes more than it is asked for, by default five million: bytes of the next row group.
READ_AHEAD = 1
OF_A_COMMIT = re.compile(r"hf://datasets/[^@]+@[0-9a-f]{40}(/|$)")
_of_commits: dict[str, dict[str, Mapping[str, Any]]] = {}  # folders of commits, which never change
LARGEST_RECORD = 2**28  # bytes; ten million row groups have less


class Shard(NamedTuple):
    """A file of a data set, as it was when the data set was opened: two equal ones hold the same bytes."""

    name: str
    size: int
    etag: str


def shard_states(files: Sequence[str]) -> tuple[Shard, ...]:
    """Return name, size and etag of each file as they are now.

    The etag of a local parquet shard is the hash of its end, where it says what it holds, so that a copy is the same
    shard; of other local files it is the time of the last change.
    """
    common = len(folder_of(files)) + 1
    with ThreadPoolExecutor(16) as pool:
        folders = {file.rpartition("/")[0] for file in files if file.startswith("hf://")}
        listed = {key: info for infos in pool.map(_hub_folder, folders) for key, info in infos.items()}
        return tuple(pool.map(lambda file: Shard(file[common:], *_size_and_etag(file, listed)), files))


def fingerprint_of(shards: Sequence[Shard]) -> int:
    """Return a number that other shards do not have."""
    return int(hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:15], 16)


def _hub_folder(folder: str) -> dict[str, Mapping[str, Any]]:
    if not OF_A_COMMIT.match(folder):
        return _listed(folder)
    if folder not in _of_commits:
        _of_commits[folder] = _listed(folder)
    return _of_commits[folder]


def _listed(folder: str) -> dict[str, Mapping[str, Any]]:
    filesystem, path = fsspec.core.url_to_fs(folder)
    return {info["name"]: info for info in filesystem.ls(path, detail=True, refresh=True)}


def _size_and_etag(file: str, listed: Mapping[str, Mapping[str, Any]]) -> tuple[int, str]:
    if "::" in file:  # a member of an archive: it changes with the archive
        return 0, file
    if "://" not in file:
        state = os.stat(file)
        if not file.endswith(".parquet"):
            return state.st_size, str(state.st_mtime_ns)
        with open(file, "rb") as handle:
            handle.seek(max(state.st_size - 65536, 0))
            return state.st_size, hashlib.sha256(handle.read()).hexdigest()
    filesystem, path = fsspec.core.url_to_fs(file)
    info = listed.get(path) or filesystem.info(path)
    lfs = info.get("lfs") or {}
    etag = lfs.get("sha256") or info.get("blob_id") or info.get("ETag") or info.get("mtime") or ""
    return int(info.get("size") or 0), str(etag)


def require_unchanged(source: str, before: Sequence[Shard], now: Sequence[Shard]) -> None:
    """Raise `InputError` that names the shards which are not what they were."""
    new = {shard.name: shard for shard in now}
    changed = [
        f"{shard.name} (was {shard.size:,} bytes, etag {shard.etag[:20]}; "
        + (f"now {found.size:,} bytes, etag {found.etag[:20]})" if (found := new.get(shard.name)) else "now missing)")
        for shard in before
        if new.get(shard.name) != shard
    ]
    known = {shard.name for shard in before}
    changed += [f"{shard.name} (new)" for shard in now if shard.name not in known]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise InputError(
            f"the shards of {source} have changed, so the run cannot go on as the same run: "
            f"{'; '.join(changed[:5])}{more}"
        )


def counted_once(shards: Sequence[Shard], number: int, count: Callable[[], list[list[int]]]) -> list[list[int]]:
    """Return `count()`, `number` lists, which is kept in the cache folder for as long as the shards do not change.

    What is kept is believed where it is whole, and made anew where it is damaged.
    """
    kept = kept_file(fingerprint_of(shards))
    found = (read_record(kept) or {}).get("row_groups") if shards else None
    if _are_counts(found, number):
        return cast(list[list[int]], found)
    groups = count()
    keep_shards(shards, groups)
    return groups


def keep_shards(shards: Sequence[Shard], groups: list[list[int]]) -> None:
    """Keep what the shards are, to name those that change."""
    with suppress(InputError):  # without a cache folder they are read again next time
        write_record(kept_file(fingerprint_of(shards)), {"shards": shards, "row_groups": groups})


def kept_shards(fingerprint: int) -> list[Shard]:
    """Return the shards that had this fingerprint, as far as they were read here."""
    found = (read_record(kept_file(fingerprint)) or {}).get("shards")
    try:
        return [Shard(str(name), int(size), str(etag)) for name, size, etag in found or ()]
    except (TypeError, ValueError):
        return []


def kept_file(fingerprint: int, suffix: str = ".rows.json") -> Path:
    """Return where it is kept what shards of this fingerprint hold."""
    return cache_folder() / "shards" / f"{fingerprint}{suffix}"


def _are_counts(found: Any, number: int) -> bool:
    """Return whether these are lists of numbers of rows, one for each shard."""
    return (
        isinstance(found, list)
        and len(found) == number
        and all(isinstance(counts, list) for counts in found)
        and all(type(count) is int and count >= 0 for counts in found for count in counts)
    )


def write_record(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON with their hash. Errors: `InputError` where the folder cannot be written."""
    text = json.dumps(facts, sort_keys=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "facts": text}))


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what `write_record` wrote, `None` where there is nothing or it is damaged."""
    try:
        record = json.loads(read_file(path, most=LARGEST_RECORD))
        text = record["facts"]
        if record["sha256"] != hashlib.sha256(text.encode()).hexdigest():
            return None
        facts = json.loads(text)
    except (InputError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def are_parquet(files: Sequence[str]) -> bool:
    """Return whether all files are parquet shards, by their names."""
    return all(file.endswith(".parquet") for file in files)
