"""Find out where the Hub's storage has a file, and keep the answer for all processes of the machine.

The Hub answers a request for a large file with an address of its storage, signed for about an hour, that serves any
range of the file without a token. Who asks there spends none of the requests that the Hub counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import cache_folder, replacing
from seresnet_hub.files.locks import one_at_a_time
from seresnet_hub.hub.shared_pause import within_limits
from seresnet_hub.hub.transport import guarded

# Seconds. The Hub hands out addresses that it signed some minutes earlier, for an hour.
KEPT_SECONDS = 1200.0
FORGOTTEN_SECONDS = 24 * 3600.0
MOST_HOPS = 5  # from one address of the Hub to another, as after a repository is renamed


class _Kept(NamedTuple):
    """An address, and the time until which it is used; "" where the Hub sends the file itself."""

    location: str
    until: float

    def serves(self, refused: str) -> bool:
        return time.time() < self.until <= time.time() + KEPT_SECONDS and (not refused or self.location != refused)


NOTHING = _Kept("", 0.0)
_in_this_process: dict[str, _Kept] = {}


def signed_address(url: str, *, refused: str = "") -> str:
    """Return where the storage has the file of a `resolve` address of the Hub, "" where the Hub sends it itself.

    It is asked for once in twenty minutes on this machine, and where the storage has `refused` what is known. Files of
    the cache folder that only the owner can read keep it. Errors: those of the Hub's client, as within `guarded`.
    """
    headers = build_hf_headers()
    key = hashlib.sha256(f"{headers.get('authorization', '')} {url}".encode()).hexdigest()[:32]
    found = _in_this_process.get(key, NOTHING)
    if not found.serves(refused):
        found = within_limits(url, lambda: _known_or_asked(url, headers, key, refused))
        _in_this_process[key] = found
    return found.location


def _known_or_asked(url: str, headers: dict[str, str], key: str, refused: str) -> _Kept:
    file = _folder() / f"{key}.json"
    found = _read(file)
    if found.serves(refused):
        return found
    with one_at_a_time(_folder() / f"{key[:2]}.lock"):
        found = _read(file)  # another process may have asked meanwhile
        if found.serves(refused):
            return found
        found = _Kept(_location(url, headers), time.time() + KEPT_SECONDS)
        if found.location:
            _write(file, found)
        return found


def _location(url: str, headers: dict[str, str]) -> str:
    """Ask the Hub; the token goes to its own host alone."""
    host = urlsplit(url)[:2]
    for _ in range(MOST_HOPS):
        with guarded():
            answer = get_session().head(url, headers=headers, follow_redirects=False)
            hf_raise_for_status(answer)
        if not answer.has_redirect_location:
            return ""
        url = urljoin(url, answer.headers["Location"])
        if urlsplit(url).scheme not in ("http", "https"):
            raise InputError(f"the Hub leads to {url[:60]!r}, which is no address of a storage")
        if urlsplit(url)[:2] != host:
            return url
    raise InputError(f"the Hub leads from {url[:200]} to itself, {MOST_HOPS} times")


def _folder() -> Path:
    return cache_folder() / "signed_addresses"


def _read(file: Path) -> _Kept:
    """Return what is kept; nothing where it is damaged, or others than the owner can have written or read it."""
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as stream:
            state = os.fstat(descriptor)
            if os.name == "posix" and (state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077):
                return NOTHING
            record = json.loads(stream.read(20_000))
        return _Kept(str(record["location"]), float(record["until"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return NOTHING


def _write(file: Path, found: _Kept) -> None:
    with suppress(InputError), replacing(file) as temporary:  # without a cache folder each process asks for itself
        _forget_old_ones()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump(found._asdict(), stream)


@cache
def _forget_old_ones() -> None:
    for file in _folder().glob("*.json"):
        with suppress(OSError):
            if time.time() - file.lstat().st_mtime > FORGOTTEN_SECONDS:
                file.unlink()
