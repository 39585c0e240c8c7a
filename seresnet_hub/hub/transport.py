"""Keep each call of the Hub's client within bounds: of time, of bytes, of requests, and of what an answer may name.

The client itself waits for ever for most answers (its transport has no timeout but for downloads), sleeps as long as a
`Retry-After` says without an end, reads whatever an answer holds into memory, and names files in the cache after
headers. Hooks of its transport, which are part of that library's interface, see each request and answer of a call made
within `guarded`; other calls of the same client stay as they are. Files that the library moves by Xet (`hf_xet`) go
past its transport: of those, only the size in the listing and the hash afterwards are checked.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from seresnet_hub.errors import InputError
from seresnet_hub.hub.download_limits import LARGEST_ANSWER, MOST_REQUESTS
from seresnet_hub.hub.revisions import check_commit, is_hash

# Status codes that may pass.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
# Seconds without a byte, where the client's own limit is not shorter: to connect, and for an answer. What sends gets
# longer, as the Hub may have to work before it answers.
CONNECT, ANSWER, ANSWER_TO_SENT = 10.0, 30.0, 60.0
# An answer that drips, so that no timeout ever passes, is given up where it is slower than this after a minute.
SLOWEST, SLOW_AFTER = 1_000.0, 60.0  # bytes a second, seconds
LARGEST_ERROR = 10**6  # bytes: what is answered instead of a small file may be larger than it
RESENT = 100 * 10**6  # bytes that may come twice where a connection breaks, besides once the whole file


class TooSlowError(TimeoutError):
    """An answer comes so slowly that it would take hours."""


@dataclass
class _Call:
    """What one call may still take."""

    most_bytes: int
    bytes_left: int
    requests_left: int = MOST_REQUESTS


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextmanager
def guarded(most_bytes: int = LARGEST_ANSWER) -> Iterator[None]:
    """Bound the client's requests of this thread within the block; `most_bytes` is the most an answer may hold.

    Errors, out of the client's calls: `InputError` where an answer is larger, encoded though no encoding was asked for,
    or names no commit or hash where it must; the client's `HfHubHTTPError` at once for each status of `TRANSIENT`,
    instead of its own waiting; `TooSlowError`; the transport's own errors for silence.
    """
    hooks = get_session().event_hooks
    for kind, hook in (("request", bound_request), ("response", bound_answer)):
        if hook not in hooks[kind]:
            hooks[kind].append(hook)
    most = max(most_bytes, LARGEST_ERROR)
    token = _CALL.set(_Call(most_bytes=most, bytes_left=2 * most + RESENT))
    try:
        yield
    finally:
        _CALL.reset(token)


def bound_request(request: Any) -> None:
    call = _CALL.get()
    if call is None:
        return
    call.requests_left -= 1
    if call.requests_left < 0:
        raise InputError(f"the Hub leads from one request to the next, {MOST_REQUESTS} times so far: given up")
    limits = request.extensions.setdefault("timeout", {})
    answer = ANSWER if request.method in ("GET", "HEAD") else ANSWER_TO_SENT
    answer = max(answer, constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)  # a person may set these
    for kind, most in (("connect", CONNECT), ("pool", CONNECT), ("read", answer), ("write", answer)):
        given = limits.get(kind)
        limits[kind] = most if given is None else min(given, most)
    request.headers["Accept-Encoding"] = "identity"  # so that what is counted is what arrives on the disk


def bound_answer(response: Any) -> None:
    call = _CALL.get()
    if call is None:
        return
    headers = response.headers
    response.stream = _counting(response.stream, call)
    if response.status_code in TRANSIENT:
        hf_raise_for_status(response)
    encoding = headers.get("Content-Encoding", "").lower()
    if encoding not in ("", "identity") and response.request.method != "HEAD":
        raise InputError(f"{response.request.url.host} answers in {encoding}, not asked for: is there a proxy?")
    if "X-Repo-Commit" in headers:
        check_commit(headers["X-Repo-Commit"], response.request.url.host)
        etag = headers.get("X-Linked-Etag") or headers.get("ETag")
        if response.status_code >= 400:  # that of the error's text
            etag = None
        if etag is not None and not is_hash(re.sub(r'^(W/)?"(.*)"$', r"\2", etag)):
            raise InputError(f"{response.request.url.host} gives a file {etag[:60]!r} for its hash, which is none")


def _counting(stream: Any, call: _Call) -> Any:
    """Return a body's stream that ends in an error where it is too long or too slow."""
    # Only its own base class will do for the transport, which is another library in each of the client's versions.
    library = sys.modules[type(get_session()).__module__.partition(".")[0]]

    base: Any = library.SyncByteStream

    class Counting(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            came, start = 0, time.monotonic()
            for chunk in stream:
                came += len(chunk)
                call.bytes_left -= len(chunk)
                if came > call.most_bytes or call.bytes_left < 0:
                    raise InputError(f"the Hub sends more than the {call.most_bytes:,} bytes it may: given up")
                passed = time.monotonic() - start
                if passed > SLOW_AFTER and came < SLOWEST * passed:
                    raise TooSlowError(f"the Hub has sent {came:,} bytes in {passed:.0f} s: given up")
                yield chunk

        def close(self) -> None:
            stream.close()

    return Counting()
