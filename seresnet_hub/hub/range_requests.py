"""Read a range of a remote file in one request: of a data set on the Hub, straight from its storage.

The Hub's limits count requests to its resolver, which are saved here: one a file and twenty minutes, not one a range.
Tried against a double of the Hub, not against the Hub itself: that an address which a HEAD request was given serves
ranges (the Hub's client relies on the first, and the Hub's redirects name no range), also of files that are kept by
Xet; which statuses the storage answers once an address has expired; and what the storage's own limits are.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import fsspec
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError  # the transport's own, whichever library the client's version uses
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from seresnet_hub.errors import InputError
from seresnet_hub.hub import failures
from seresnet_hub.hub.shared_pause import within_limits
from seresnet_hub.hub.signed_addresses import signed_address
from seresnet_hub.hub.transport import guarded

HUB_FILE = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+(?:/[^/@]+)?)@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+)/(?P<path>.+)"
)
REFUSALS = frozenset({401, 403, 404, 410})  # what a storage may answer to an address that has expired


def fetch_range(address: str, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of a remote file, an address of fsspec's, by one request.

    `hf://datasets/NAMESPACE/NAME@REVISION/PATH` is read through the Hub's client, with its endpoint and token, which
    does not reach the storage. Waits where there were too many requests, as all processes of the machine do, and tries
    nothing else twice: call it within `read_retries.reading`. Errors: `InputError`, with the cause, where the file
    cannot be had, or the answer is not exactly the range; those of the libraries that read other addresses.
    """
    if not 0 <= start < stop:
        raise ValueError(f"no range of bytes: {start} to {stop}")
    found = HUB_FILE.fullmatch(address)
    what = f"{address}, bytes {start:,} to {stop:,}"
    try:
        if found is None:
            filesystem, path = fsspec.core.url_to_fs(address)
            data = filesystem.cat_file(path, start=start, end=stop)
            _require(len(data) == stop - start, f"it gave {len(data):,} bytes: does the server know ranges?")
            return bytes(data)
        revision, path = (quote(unquote(found["revision"]), safe=""), quote(found["path"]))
        return _of_the_hub(f"{constants.ENDPOINT}/datasets/{found['repo']}/resolve/{revision}/{path}", start, stop)
    except (InputError, OSError, HTTPError) as error:
        raise _explained(error, what) from error


def _explained(error: Exception, what: str) -> InputError:
    """Return the error as one line; of what is tried again, only what happened."""
    status, reason = failures.status_of(error), failures.short_reason(error)
    if status == 429:
        way_out = "the account has no requests left: start again later, or with the token of one that has more"
        return InputError(f"{what}: {reason} for {failures.TOO_MANY_PATIENCE / 60:.0f} minutes: {way_out}")
    url = getattr(getattr(error, "response", None), "url", "")
    if status in REFUSALS and (host := urlsplit(str(url)).netloc) != urlsplit(constants.ENDPOINT).netloc:
        return InputError(f"{what}: {host} refuses ({status}) an address that the Hub has just signed")
    if isinstance(error, InputError) or failures.may_pass(error):
        return InputError(f"{what}: {reason}")
    return failures.explained(error, what)


def _of_the_hub(url: str, start: int, stop: int) -> bytes:
    location = signed_address(url)
    for address in (location, None):
        if address is None:  # it has expired
            address = signed_address(url, refused=location)
        if not address:
            break
        try:
            return _asked(address, {}, start, stop)
        except HTTPError as error:
            if failures.status_of(error) not in REFUSALS:
                raise
    # The Hub sends the file itself, or its storage refuses new addresses too: then each range asks the Hub, whose
    # client leads the request on to the storage without the token.
    return _asked(url, build_hf_headers(), start, stop)


def _asked(url: str, headers: dict[str, str], start: int, stop: int) -> bytes:
    headers = {**build_hf_headers(token=False), **headers, "Range": f"bytes={start}-{stop - 1}"}

    def ask() -> bytes:
        # The client is asked for each time: a forked process has another one than its parent.
        with guarded(stop - start), get_session().stream("GET", url, headers=headers, follow_redirects=True) as answer:
            hf_raise_for_status(answer)
            _require_range(answer, start, stop)
            data: bytes = answer.read()
        _require(len(data) == stop - start, f"{len(data):,} bytes came, not {stop - start:,}")
        return data

    return within_limits(url, ask)


def _require_range(answer: Any, start: int, stop: int) -> None:
    """Raise `InputError` before the body is read where it is not the range, as a whole file is not."""
    given = answer.headers.get("Content-Range", "")
    host = answer.request.url.host
    _require(answer.status_code == 206, f"{host} answered {answer.status_code}, not a range: is there a proxy?")
    _require(
        re.fullmatch(rf"bytes {start}-{stop - 1}/(\d+|\*)", given) is not None,
        f"{host} answered with the range {given[:60]!r}: is there a proxy?",
    )


def _require(is_right: bool, otherwise: str) -> None:
    if not is_right:
        raise InputError(otherwise)
