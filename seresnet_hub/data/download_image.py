"""Fetch the bytes of a picture from an address that a person named: by http and https alone, within bounds."""

from __future__ import annotations

import time
import urllib.request as requests
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import quote

from seresnet_hub.data.read_image import MOST_BYTES, OUT_OF_RESOURCES, OutOfResourcesError
from seresnet_hub.data.read_retries import OPENING_ATTEMPTS, retrying
from seresnet_hub.errors import InputError

SCHEMES = ("http", "https")
SILENCE, LONGEST = 30.0, 300.0  # seconds: without a byte, and of one try
MOST_AT_ONCE = 2**20  # bytes
# Sites refuse Python's own name, which many abuse.
HEADERS = {"User-Agent": "seresnet_hub", "Accept": "image/*, */*;q=0.1"}


def fetch_picture(url: str) -> bytes:
    """Return what lies at an address, whatever type the answer says it has.

    What may be a fault of the network is tried again. Errors: `InputError` that does not name the address: where it is
    none of http or https or leads to one that is not, nothing can be fetched, or there is more than `MOST_BYTES`;
    its kind `OutOfResourcesError` where this machine cannot open a connection.
    """
    if url.partition(":")[0].lower() not in SCHEMES:
        raise InputError(f"only addresses of {' and '.join(SCHEMES)} are fetched")
    try:
        data = retrying(f"fetch {url}", lambda: _fetched(url), attempts=OPENING_ATTEMPTS)
    except HTTPError as error:
        reason = " ".join(str(error.reason).split())
        raise InputError(f"cannot be fetched (the server answered {error.code}: {reason})") from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what is no address
        why: object = getattr(error, "reason", error)
        kind = OutOfResourcesError if getattr(why, "errno", None) in OUT_OF_RESOURCES else InputError
        raise kind(f"cannot be fetched ({why})") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"too large a picture (more than {MOST_BYTES:,} bytes)")
    return data


def _fetched(url: str) -> bytes:
    """Return the bytes at an address, at most one more than a picture may have."""
    # Not urllib's usual opener, which reads file: and ftp: too, also where an answer leads there.
    opener = requests.OpenerDirector()
    for kind in (
        requests.ProxyHandler, requests.HTTPHandler, requests.HTTPSHandler, requests.HTTPRedirectHandler,
        requests.HTTPDefaultErrorHandler, requests.HTTPErrorProcessor, requests.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(kind())
    address = quote(url, safe="!#$%&'()*+,/:;=?@[]~")  # a name with a space or an umlaut, as a browser takes it
    end = time.monotonic() + LONGEST
    data = bytearray()
    try:
        answer = opener.open(requests.Request(address, headers=HEADERS), timeout=SILENCE)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
    with answer:
        announced = answer.length or 0
        while len(data) <= MOST_BYTES and (more := answer.read1(MOST_AT_ONCE)):
            data += more
            if time.monotonic() > end:
                raise TimeoutError(f"{len(data):,} bytes came in {LONGEST:.0f} s")
    if len(data) < min(announced, MOST_BYTES + 1):
        raise ConnectionError(f"the connection ended after {len(data):,} of {announced:,} bytes")
    return bytes(data)
