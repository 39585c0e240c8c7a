"""How far away the Hub's double is, how much goes through its line, and how many requests it allows, as the Hub does.

Source of the headers: https://huggingface.co/docs/hub/rate-limits (draft-ietf-httpapi-ratelimit-headers-09).
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from hub_faults import Request

KINDS = ("api", "resolver", "storage")


def kind_of(request: Request) -> str:
    """Return which of the Hub's limits counts a request; none counts those to the storage."""
    if request.origin == "cdn":
        return "storage"
    return "resolver" if "/resolve/" in request.path else "api"


def counts(requests: Iterable[Request]) -> dict[str, dict[str, int]]:
    """Return by kind how many requests there were, and the bytes of the bodies that were sent."""
    number: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for request in requests:
        number[kind_of(request)] += 1
        sent[kind_of(request)] += request.sent
    return {kind: {"requests": number[kind], "bytes": sent[kind]} for kind in KINDS}


@dataclass(kw_only=True)
class Traffic:
    """The way to the double and its limits; seconds, bytes a second over all connections, requests a window."""

    latency: float = 0.0  # before each answer, and once more for a new connection
    bandwidth: float = math.inf
    resolver_limit: int | None = None
    window: float = 300.0
    signed_for: float = 3600.0  # how long an address of the storage serves
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _line_free: float = 0.0
    _window_start: float = -math.inf
    _resolved: int = 0
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def delay(self) -> None:
        _wait(self.latency)

    def pass_through(self, size: int) -> None:
        """Wait until so many bytes have gone through the line, which one connection has at a time."""
        if math.isinf(self.bandwidth):
            return
        with self._lock:
            self._line_free = max(self._line_free, time.monotonic()) + size / self.bandwidth
            left = self._line_free - time.monotonic()
        _wait(left)

    def count(self, request: Request) -> tuple[bool, dict[str, str]]:
        """Count a request; return whether it was one too many, and the headers that tell how many are left."""
        if self.resolver_limit is None or kind_of(request) != "resolver":
            return False, {}
        with self._lock:
            now = time.monotonic()
            if now - self._window_start >= self.window:
                self._window_start, self._resolved = now, 0
            self._resolved += 1
            left = self.resolver_limit - self._resolved
            ends = math.ceil(self._window_start + self.window - now)
        return left < 0, {
            "RateLimit": f'"resolvers";r={max(left, 0)};t={ends}',
            "RateLimit-Policy": f'"fixed window";"resolvers";q={self.resolver_limit};w={self.window:.0f}',
        }

    def signed(self, path: str) -> str:
        """Return the address with its signature and the time until which it serves."""
        expires = f"{time.time() + self.signed_for:.3f}"
        return f"{path}?Expires={expires}&Signature={self._signature(path, expires)}"

    def serves(self, path: str, query: dict[str, Any]) -> bool:
        expires = query.get("Expires", "")
        right = hmac.compare_digest(self._signature(path, expires), query.get("Signature", ""))
        return right and time.time() < float(expires)

    def revoke(self) -> None:
        """Let no address that was signed so far serve any more."""
        self._secret = secrets.token_bytes(16)

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._secret, f"{unquote(path)} {expires}".encode(), hashlib.sha256).hexdigest()


def _wait(seconds: float) -> None:
    """Wait also where a test has replaced `time.sleep`."""
    if seconds > 0:
        threading.Event().wait(seconds)
