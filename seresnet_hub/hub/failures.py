"""What an error of the Hub's client means: whether it may pass, how long to wait, and what to tell a person.

Source: the headers are those of draft-ietf-httpapi-ratelimit-headers-09, of which the Hub sends `"api";r=0;t=55`, and
RFC 9110's.
"""

from __future__ import annotations

import errno
import json
import re
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # the transport's own, whichever library the client's version uses
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from seresnet_hub.errors import InputError
from seresnet_hub.hub.transport import TRANSIENT

# Seconds that one call may take with all its tries: where the Hub says that there were too many requests, and where it
# fails. Its limits count requests in windows of 300 s. Of a try itself at most the longest wait is counted, so that
# large files on slow lines are tried again, too.
TOO_MANY_PATIENCE, FAILING_PATIENCE = 600.0, 180.0


class Conflict(OSError):
    """A reason to wait and try again that the client has no error for."""


def causes_of(error: BaseException | None, *, named: bool = False) -> Iterator[BaseException]:
    """Yield the error and what led to it, each once; with `named`, only what `raise … from` names."""
    seen: set[int] = set()  # causes may lead back to an error that they caused
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if named else error.__context__)


def status_of(error: BaseException) -> int | None:
    for cause in causes_of(error):
        if isinstance(cause, HfHubHTTPError):
            response = getattr(cause, "response", None)
            return None if response is None else int(response.status_code)
    return None


def is_transient(error: Exception) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    return any(isinstance(cause, (HTTPError, ConnectionError, TimeoutError, Conflict)) for cause in causes_of(error))


def patience_with(error: BaseException) -> float:
    return TOO_MANY_PATIENCE if status_of(error) == 429 else FAILING_PATIENCE


def may_pass(error: Exception) -> bool:
    """Return whether another try, or the cache, may help: an answer may also be none of the Hub's."""
    return is_transient(error) or is_unreadable(error)


def is_refusal(error: BaseException) -> bool:
    """Return whether the Hub has answered that it did nothing."""
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in (408, 425)


def is_unreadable(error: BaseException) -> bool:
    """Return whether what came is no answer of the Hub's, as a login page is, or not the file that was announced.

    The client then stumbles over what it does not find.
    """
    if status_of(error) is not None:
        return False
    return any(
        isinstance(cause, (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError))
        or (isinstance(cause, OSError) and str(cause).startswith("Consistency check failed"))
        for cause in causes_of(error, named=True)
    )


def no_network(error: BaseException) -> bool:
    """Return whether nothing answers at all: a name does not resolve, a connection is refused, or Hub use is off.

    Waiting rarely helps then.
    """
    causes = list(causes_of(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return True
    if status_of(error) is not None:
        return False
    return any(isinstance(cause, (socket.gaierror, ConnectionRefusedError)) for cause in causes) or any(
        isinstance(cause, OSError) and cause.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH) for cause in causes
    )


def asked_wait(error: BaseException) -> float | None:
    """Return the seconds that the Hub asks to wait, by `Retry-After` or, where requests were too many, `RateLimit`."""
    for cause in causes_of(error):
        response = getattr(cause, "response", None)
        if response is not None:
            waits = [_retry_after(response.headers)]
            if response.status_code == 429:
                waits.append(_window_left(response.headers))
            return max((wait for wait in waits if wait is not None), default=None)
    return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a `Retry-After`: a number, or a date that counts from the answer's own."""
    asked = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", asked):
        return float(asked)
    then, now = _date(asked), _date(headers.get("Date", "")) or datetime.now(UTC)
    return max((then - now).total_seconds(), 0.0) if then else None


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _window_left(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until the windows end in which no request is left, rounded up as the Hub rounds them."""
    ends = []
    for policy in headers.get("RateLimit", "").split(","):
        values = dict(re.findall(r";\s*([rt])\s*=\s*(\d{1,9})\b", policy))
        if values.get("r") == "0" and "t" in values:
            ends.append(float(values["t"]) + 1)
    return max(ends, default=None)


def _limit(error: BaseException) -> str:
    """Return in words the limit that the answer's `RateLimit-Policy` names, "" where it names none."""
    answers = [getattr(cause, "response", None) for cause in causes_of(error)]
    policies = [answer.headers.get("RateLimit-Policy", "") for answer in answers if answer is not None]
    values = dict(re.findall(r";\s*([qw])\s*=\s*(\d{1,9})\b", "".join(policies[:1]).split(",")[0]))
    return f" (its limit is {values['q']} requests in {values['w']} s)" if {"q", "w"} <= values.keys() else ""


def short_reason(error: BaseException) -> str:
    """Return in a few words what went wrong."""
    status = status_of(error)
    if status is not None:
        return f"the Hub answered {status}{_limit(error) if status == 429 else ''}"
    if is_unreadable(error):
        return "what came is no answer of the Hub's"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def explained(error: Exception, what: str) -> InputError:
    """Return an error of the Hub's or its client's as one line that says what to do."""
    status = status_of(error)
    causes = list(causes_of(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set, and it is not all in the cache: fetch it once with a network"
    elif caused_by(GatedRepoError):
        reason = "access to it must be asked for on its page first"
    elif caused_by(RepositoryNotFoundError):
        reason = "there is no such repository, or it is private and your token does not open it"
    elif status == 401 or caused_by(LocalTokenNotFoundError):
        reason = "the Hub does not accept your token, or there is none: it may have expired; run 'hf auth login'"
    elif status == 403:
        reason = "your token may not do this: use one with write access to that namespace ('hf auth login')"
    elif caused_by(RevisionNotFoundError):
        reason = "it has no such branch, tag or commit"
    elif status is not None:
        server = next(
            (getattr(cause, "server_message", None) for cause in causes if isinstance(cause, HfHubHTTPError)), None
        )
        reason = f"{short_reason(error)}{f' ({server[:300]})' if server else ''}" + _advice(error, status)
    elif is_unreadable(error):
        reason = f"{short_reason(error)}: is there a proxy or a login page between?"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = f"{short_reason(error)}: is there a network?" if is_transient(error) else short_reason(error)
    return InputError(f"{what}: {reason}")


def _advice(error: Exception, status: int) -> str:
    if status not in TRANSIENT:
        return ""
    asked = asked_wait(error)
    if asked is not None and asked > patience_with(error):
        return f": nothing was changed; it asks to wait {asked / 60:.0f} minutes"
    return ": nothing was changed; try again later"
