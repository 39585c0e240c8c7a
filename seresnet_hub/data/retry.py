"""Try again what a bad network may have broken, with growing pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from http.client import IncompleteRead
from typing import TypeVar
from urllib.error import HTTPError

import pyarrow
from huggingface_hub.errors import OfflineModeIsEnabled

from seresnet_hub.errors import InputError, PrintableLog

# A failed read is tried again after 1, 2, 4 … seconds, at most a minute: 4 minutes in all.
ATTEMPTS, OPENING_ATTEMPTS = 9, 4
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
HOPELESS_STATUS = frozenset({400, 401, 403, 404, 410})
HOPELESS = (FileNotFoundError, PermissionError, OfflineModeIsEnabled, MemoryError)
# A cut-off answer shows as an error of pyarrow. Which HTTP client there is differs between versions of huggingface_hub.
MAY_PASS = (InputError, OSError, IncompleteRead, pyarrow.ArrowException)
HTTP_CLIENTS = ("httpx", "httpcore", "aiohttp", "requests")

log = PrintableLog(__name__)
Result = TypeVar("Result")


def retrying(what: str, act: Callable[[], Result], *, attempts: int = ATTEMPTS) -> Result:
    """Return `act()`, tried again with growing pauses after a fault of the network; the last error is raised."""
    delay = FIRST_DELAY
    for attempt in range(1, attempts + 1):
        try:
            return act()
        except Exception as error:
            if attempt == attempts or not _may_pass(error):
                raise
            log.warning("cannot %s (%s): trying again in %.0f s (%d of %d)", what, error, delay, attempt, attempts - 1)
            time.sleep(delay * random.uniform(0.8, 1.2))
            delay = min(2 * delay, LONGEST_DELAY)
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: BaseException) -> bool:
    """Return whether an error may be a fault of the network: not a refusal, and nothing wrong with the data set."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    statuses = {getattr(getattr(one, "response", None), "status_code", None) for one in chain}
    statuses |= {one.code for one in chain if isinstance(one, HTTPError)}
    if statuses & HOPELESS_STATUS or any(isinstance(one, HOPELESS) for one in chain):
        return False
    if statuses - {None}:
        return True
    return any(isinstance(one, MAY_PASS) or type(one).__module__.startswith(HTTP_CLIENTS) for one in chain)
