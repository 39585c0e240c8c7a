"""Repeat calls of the Hub that may succeed later, for minutes and not for ever.

Source: what the client does of itself when the Hub fails was measured with huggingface_hub 1.33 and 2.4: it repeats
neither a commit nor most other calls. Within `guarded` it waits for nothing, so that all waiting is here.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from seresnet_hub.errors import InputError, printable
from seresnet_hub.hub import failures
from seresnet_hub.hub.download_limits import LARGEST_ANSWER
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.transport import guarded

LONGEST_USUAL_WAIT = 60.0
MOST_UNREADABLE, MOST_UNANSWERED = 3, 2  # tries, where answers are none of the Hub's, and where nothing answers at all

Answer = TypeVar("Answer")


class Overtaken(InputError):
    """What was asked for has not been done, and cannot be: somebody else did something first."""


@dataclass
class Patience:
    """How long one call has waited and failed, of what it may; `tried` counts the tries."""

    spent: float = 0.0
    tried: int = 0

    def next_wait(self, error: Exception) -> float | None:
        """Return the seconds to wait before the next try after this error, None where there is none."""
        self.tried += 1
        if not failures.may_pass(error):
            return None
        if failures.is_unreadable(error) and self.tried >= MOST_UNREADABLE:
            return None
        if failures.no_network(error) and self.tried >= MOST_UNANSWERED:
            return None
        usual = min(2.0 ** (self.tried - 1), LONGEST_USUAL_WAIT)
        wait = max(failures.asked_wait(error) or usual, 1.0)
        if self.spent + wait > failures.patience_with(error):
            return None
        self.spent += wait
        return wait


def patiently(
    work: Callable[[], Answer],
    what: str,
    *,
    happened: Callable[[], Answer | None] | None = None,
    let_through: tuple[type[Exception], ...] = (),
    once: bool = False,
    most_bytes: int = LARGEST_ANSWER,
) -> Answer:
    """Return `work()`, trying again after transient errors; `happened` finds out whether a try succeeded.

    With `once`, a transient error is raised at once, so that the caller can fall back to the cache. `most_bytes` is the
    most that an answer may hold. Errors: `InputError` in plain words; the types in `let_through` and, with `happened`,
    `HfHubHTTPError` of status 412 as they are.
    """
    patience = Patience()
    while True:
        start = time.monotonic()
        try:
            with guarded(most_bytes):
                return work()
        except InputError as error:
            if happened is None:
                raise
            failure: Exception = error
        except Exception as error:
            overtaken = happened is not None and failures.status_of(error) == 412
            if overtaken or isinstance(error, let_through) or (once and failures.may_pass(error)):
                raise
            failure = error
        patience.spent += min(time.monotonic() - start, LONGEST_USUAL_WAIT)
        wait = patience.next_wait(failure)
        if wait is not None:
            _wait(wait, f"{what}: {failures.short_reason(failure)}")
        if happened and not failures.is_refusal(failure) and (found := _looked_up(happened, failure, what)) is not None:
            say(f"{what}: it had happened, only the answer was lost")
            return found
        if wait is None:
            raise failure if isinstance(failure, InputError) else failures.explained(failure, what) from failure


def _looked_up(happened: Callable[[], Answer | None], failure: Exception, what: str) -> Answer | None:
    try:
        return patiently(happened, f"{what}: looking whether it happened")
    except Overtaken:
        raise
    except InputError as error:
        raise InputError(
            f"{what}: {failures.short_reason(failure)}; whether it was done cannot be found out ({error}): run the "
            "same again, which looks first"
        ) from failure


def _wait(seconds: float, line: str) -> None:
    """Wait, and say how much longer: by the second on a terminal, else once."""
    if not sys.stderr.isatty():
        say(f"{line}; trying again in {seconds:g} s")
        time.sleep(seconds)
        return
    left = math.ceil(seconds)
    while left > 0:
        print(f"\r\x1b[K{printable(line)}; trying again in {left} s", end="", file=sys.stderr, flush=True)
        time.sleep(1)
        left -= 1
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
