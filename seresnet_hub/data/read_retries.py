"""Try again what a bad network may have broken, with growing pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from http.client import IncompleteRead
from typing import TypeVar
from urllib.error import HTTPError

from huggingface_hub.errors import OfflineModeIsEnabled

from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.hub.failures import TOO_MANY_PATIENCE, asked_wait, causes_of, status_of

# A failed read is tried again after 1, 2, 4 … seconds, at most a minute: 4 minutes in all.
ATTEMPTS, OPENING_ATTEMPTS = 9, 4
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
TOO_MANY = 429  # requests
HOPELESS_STATUS = frozenset({400, 401, 403, 404, 410})
HOPELESS = (FileNotFoundError, PermissionError, OfflineModeIsEnabled, MemoryError)
MAY_PASS = (InputError, OSError, IncompleteRead)
# By name, since they load slowly, or not at all: a cut-off answer shows as an error of pyarrow, and which HTTP client
# there is differs between versions of huggingface_hub.
LIBRARIES = ("pyarrow", "httpx", "httpcore", "aiohttp", "requests")

log = PrintableLog(__name__)
Result = TypeVar("Result")


def retrying(what: str, act: Callable[[], Result], *, attempts: int = ATTEMPTS) -> Result:
    """Return `act()`, tried again with growing pauses after a fault of the network; the last error is raised."""
    delay = FIRST_DELAY
    for attempt in range(1, attempts):
        try:
            return act()
        except Exception as error:
            if not _may_pass(error):
                raise
            asked = asked_wait(error) if status_of(error) else None  # by the Hub
            wait = max(delay * random.uniform(0.8, 1.2), min(asked or 0.0, TOO_MANY_PATIENCE))
            log.warning("cannot %s (%s): trying again in %.0f s (%d of %d)", what, error, wait, attempt, attempts - 1)
        time.sleep(wait)
        delay = min(2 * delay, LONGEST_DELAY)
    return act()


def reading(
    what: str, act: Callable[[], Result], *, remote: bool = True, kind: type[InputError] = InputError
) -> Result:
    """Return `act()`, tried again if it is `remote`. Errors: `kind`, which says `what` could not be done, and why."""
    try:
        return retrying(what, act, attempts=ATTEMPTS if remote else 1)
    except Exception as error:  # each library raises its own
        # `datasets` keeps a number in shared memory for each stream.
        way_out = ": make /dev/shm larger (docker run --shm-size=1g)" if "shared memory" in str(error) else ""
        raise kind(f"cannot {what}: {str(error) or type(error).__name__}{way_out}") from error


def _may_pass(error: BaseException) -> bool:
    """Return whether an error may be a fault of the network: not a refusal, and nothing wrong with the data set."""
    chain = list(causes_of(error))
    status, *earlier = [getattr(getattr(one, "response", None), "status_code", None) for one in chain]
    if status == TOO_MANY or (status or 0) >= 500:
        return True  # whatever came before: `datasets` asks for files that may be missing, and goes on after a 404
    statuses = {status, *earlier}
    statuses |= {one.code for one in chain if isinstance(one, HTTPError)}
    if statuses & HOPELESS_STATUS or any(isinstance(one, HOPELESS) for one in chain):
        return False
    if TOO_MANY in statuses and isinstance(error, InputError):
        return False  # `hub.shared_pause` has waited for it already, and says so
    if statuses - {None}:
        return True
    return any(isinstance(one, MAY_PASS) or type(one).__module__.startswith(LIBRARIES) for one in chain)
