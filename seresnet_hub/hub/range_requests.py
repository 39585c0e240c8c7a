"""Read a range of a remote file in one request."""

from __future__ import annotations

import re

import fsspec

from seresnet_hub.errors import InputError

HUB_FILE = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+(?:/[^/@]+)?)@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+)/(?P<path>.+)"
)


def fetch_range(address: str, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of a remote file, an address of fsspec's. Errors: `InputError`."""
    filesystem, path = fsspec.core.url_to_fs(address)
    data: bytes = filesystem.cat_file(path, start=start, end=stop)
    if len(data) != stop - start:
        raise InputError(f"{address}: it gave {len(data):,} bytes, not {stop - start:,}")
    return data
