"""Ask a host nothing for as long as it says that there were too many requests: no process of the machine does.

The Hub counts the requests of an account, not of a process, so a process that goes on asking takes the next window from
all others. A small file for each host in the cache folder holds the time before which nobody asks. It holds nothing
else, so a process that is killed meanwhile leaves nothing to repair.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from huggingface_hub.errors import HfHubHTTPError

from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.files.atomic_writing import cache_folder, replacing
from seresnet_hub.files.locks import one_at_a_time
from seresnet_hub.hub import failures

# Seconds. The Hub's windows have 300. What asks for more, or a file that says so, is not believed.
USUAL_PAUSE, LONGEST_PAUSE = 15.0, 600.0
# Each process waits so much longer than asked, at random: a tenth of the pause and at most these seconds.
LONGEST_JITTER = 10.0

log = PrintableLog(__name__)
Answer = TypeVar("Answer")
_ends: dict[str, float] = {}  # what this process knows of pauses, which may have no cache folder
_waited: dict[str, float] = {}  # seconds that this process has told of having waited for each host, in all
_told: set[str] = set()  # hosts of whose pause a thread of this process tells until it ends
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_told.clear)


def within_limits(url: str, ask: Callable[[], Answer]) -> Answer:
    """Return `ask()`, a request to the host of `url`, made when nobody has to wait for that host, and again after 429.

    Errors: what `ask` raises; the client's error of status 429 after ten minutes of waiting.
    """
    host, spent, begun = urlsplit(url).netloc, 0.0, False
    while True:
        spent += _wait(host, begun)
        try:
            return ask()
        except HfHubHTTPError as error:
            if failures.status_of(error) != 429 or spent >= failures.TOO_MANY_PATIENCE:
                raise
            begun = _begin(host, failures.asked_wait(error) or USUAL_PAUSE)
            if begun:
                seconds = _left(host)
                log.warning(
                    "%s: %s: no process of this machine asks it for %.0f s", host, failures.short_reason(error), seconds
                )


def _wait(host: str, begun: bool) -> float:
    """Wait until the host may be asked; return the seconds. One thread of a process says so at the end.

    In a loader worker that is one which has `begun` the pause. In a main process another says when it finds one.
    """
    seconds, tells = 0.0, False
    may_tell = begun or multiprocessing.parent_process() is None
    while seconds < LONGEST_PAUSE and (left := _left(host)) > 0:
        if may_tell and not tells and host not in _told and (begun or left > LONGEST_JITTER):
            tells = True
            _told.add(host)
            if not begun:
                log.warning("%s had too many requests: waiting %.0f s, as all processes of this machine do", host, left)
        left += random.uniform(0.0, min(left / 10, LONGEST_JITTER))
        time.sleep(left)
        seconds += left
    if tells:
        _told.discard(host)
        _waited[host] = _waited.get(host, 0.0) + seconds
        log.warning("%s: going on after waiting %.0f s, %.0f s in all", host, seconds, _waited[host])
    return seconds


def _begin(host: str, seconds: float) -> bool:
    """Let all processes wait so long from now; return whether they did not do so already."""
    end = time.time() + min(max(seconds, 1.0), LONGEST_PAUSE)
    file = _file(host)
    with one_at_a_time(file.with_suffix(".lock")):
        known = _left(host)
        if end > time.time() + known:
            _ends[host] = end
            with suppress(InputError), replacing(file) as temporary:
                temporary.write_text(json.dumps({"nobody_asks_before": end}))
    return known <= 0


def _left(host: str) -> float:
    """Return how many seconds nobody asks the host; 0 where it may be asked, or what is known makes no sense."""
    now = time.time()
    ends = [_ends.get(host, 0.0)]
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        ends.append(float(json.loads(_file(host).read_text()[:1000])["nobody_asks_before"]))
    # One that is farther away than any pause was written by a clock that has been set back since.
    return max((end - now for end in ends if now < end <= now + LONGEST_PAUSE), default=0.0)


def _file(host: str) -> Path:
    return cache_folder() / "pauses" / f"{quote(host, safe='')[:150]}.json"
