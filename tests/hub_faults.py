"""How the Hub's double can misbehave: actions on a request, and which requests they are for."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Status:
    """Answer this instead of doing the work."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: object = field(default_factory=lambda: {"error": "Injected fault"})


@dataclass(frozen=True)
class Drop:
    """Close the connection instead of doing the work."""


@dataclass(frozen=True)
class LoseAnswer:
    """Do the work, then close the connection instead of answering."""


@dataclass(frozen=True)
class Delay:
    """Wait before doing the work."""

    seconds: float


@dataclass(frozen=True)
class Truncate:
    """Close the connection after this many bytes of the answer's body."""

    at: int


@dataclass(frozen=True)
class FlipByte:
    """Change one bit of the byte at this place of the content, counted from its end where negative."""

    at: int


class Pause:
    """Stop at a stage of a request until `resume`, or `abandon` to go no further and close the connection.

    Stages: "before" the body is read, in the middle of the request's "body", when the work is "done" but not answered,
    in the middle of the "answer". Never resumed, it is a server that hangs.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.reached = threading.Event()
        self._go = threading.Event()
        self._abandoned = False

    def resume(self) -> None:
        self._go.set()

    def abandon(self) -> None:
        self._abandoned = True
        self._go.set()

    def hold(self) -> None:
        self.reached.set()
        self._go.wait()
        if self._abandoned:
            raise ConnectionAbortedError


@dataclass(frozen=True)
class Garble:
    """Do the work, then answer 200 with these bytes, as a login page would."""

    body: bytes = b"<html>Please log in</html>"


@dataclass(frozen=True)
class Endless:
    """Do the work, then answer with bytes that do not end, of no announced length."""


@dataclass(frozen=True)
class Halve:
    """Answer the first half of the content as if it were the whole, with a length that agrees."""


Action = Status | Drop | LoseAnswer | Delay | Truncate | FlipByte | Garble | Endless | Halve | Pause


@dataclass(kw_only=True)
class Request:
    """What was asked, and how far it came; `path` is unquoted, `received` and `sent` count bytes of bodies."""

    method: str
    path: str
    query: str
    origin: str
    range: str | None
    authorized: bool
    status: int | None = None
    received: int = 0
    sent: int = 0


@dataclass(kw_only=True)
class Fault:
    """An action on the requests that match, after the first `after` of them, `times` times (None: for ever)."""

    method: str
    path: re.Pattern[str]
    action: Action
    times: int | None
    after: int
    seen: int = 0

    def matches(self, request: Request) -> bool:
        return request.method == self.method and self.path.search(request.path) is not None

    def is_due(self) -> bool:
        """Count a matching request, and tell whether it is one to spoil."""
        self.seen += 1
        return self.after < self.seen and (self.times is None or self.seen <= self.after + self.times)
