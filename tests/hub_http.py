"""The double's HTTP: a request is read, given to the route that works on it, spoilt by a fault, answered."""

from __future__ import annotations

import json
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_faults import Delay, Drop, Endless, FlipByte, Garble, Halve, LoseAnswer, Pause, Request, Status, Truncate
from hub_repository import CHUNK, File, HubError, Repository

if TYPE_CHECKING:
    from hub_server import HubServer


class Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.hub.errors.append(error)


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | File = b""
    start: int = 0
    stop: int | None = None

    @property
    def length(self) -> int:
        size = len(self.body) if isinstance(self.body, bytes) else self.body.size
        return (size if self.stop is None else self.stop) - self.start

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body[self.start : self.stop]
            return
        with self.body.blob.open("rb") as file:
            file.seek(self.start)
            left = self.length
            while left and (chunk := file.read(min(left, CHUNK))):
                left -= len(chunk)
                yield chunk


def as_json(body: object, status: int = 200, **headers: str) -> Answer:
    headers = {"Content-Type": "application/json", **headers}
    return Answer(status=status, headers=headers, body=json.dumps(body).encode())


Work = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], str, Work]] = []
API = r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
WEB = r"/(?:(?P<kind>dataset)s/)?(?P<repo>[^/]+/[^/]+?)"
CDN = r"/cdn/(?P<kind>model|dataset)/(?P<repo>[^/]+/[^/]+)/(?P<sha256>[0-9a-f]{64})"
REVISION = r"/(?P<revision>[^/]+)"


def route(method: str, path: str, access: str = "none") -> Callable[[Work], Work]:
    """Register the work of an address; `access` is what it needs of the repository: "read", "files" or "write"."""

    def register(work: Work) -> Work:
        ROUTES.append((method, re.compile(path), access, work))
        return work

    return register


class Exchange(BaseHTTPRequestHandler):
    """One connection; subclasses add the routes."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.server.hub.lock:
            self.server.hub.connections += 1
        self.server.hub.traffic.delay()

    def log_message(self, *_: object) -> None:
        pass

    def serve(self) -> None:
        """Answer one request, with whatever fault is due."""
        self.hub = self.server.hub
        address = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        self.request_log = Request(
            method=self.command,
            path=unquote(address.path),
            query=address.query,
            origin="cdn" if self.headers.get("Host", "").startswith("localhost") else "api",
            range=self.headers.get("Range"),
            authorized="Authorization" in self.headers,
        )
        self.action = self.hub.admit(self.request_log)
        too_many, self.limits = self.hub.traffic.count(self.request_log)
        self.hub.traffic.delay()
        if isinstance(self.action, Delay):
            time.sleep(self.action.seconds)
        try:
            self.pause("before")
            with tempfile.SpooledTemporaryFile(max_size=1 << 20, dir=self.hub.folder) as body:
                self.receive(body)
                if isinstance(self.action, Drop):
                    raise ConnectionAbortedError
                if isinstance(self.action, Status):
                    answer = as_json(self.action.body, self.action.status, **self.action.headers)
                elif too_many:
                    answer = as_json({"error": "We had to rate limit you"}, 429)
                elif self.request_log.origin == "cdn" and self.request_log.authorized:
                    answer = as_json({"error": "Only one auth mechanism allowed"}, 400)
                else:
                    answer = self.work(address.path, body)
            self.pause("done")
            if isinstance(self.action, LoseAnswer):
                raise ConnectionAbortedError
            if isinstance(self.action, Endless):
                self.send_for_ever(answer)
            if isinstance(self.action, Halve):
                answer = replace(answer, stop=answer.start + answer.length // 2)
            if isinstance(self.action, Garble):
                answer = Answer(headers={"Content-Type": "text/html"}, body=self.action.body)
            self.send(answer)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def pause(self, stage: str) -> None:
        if isinstance(self.action, Pause) and self.action.stage == stage:
            self.action.hold()

    def receive(self, body: BinaryIO) -> None:
        """Write the request's body to a file; a body that breaks off breaks the request off."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.receive_bytes(size, body)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self.receive_bytes(int(self.headers.get("Content-Length", 0)), body)
        body.seek(0)

    def receive_bytes(self, left: int, body: BinaryIO) -> None:
        while left:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise ConnectionAbortedError
            body.write(chunk)
            left -= len(chunk)
            self.request_log.received += len(chunk)
            self.pause("body")

    def work(self, path: str, body: BinaryIO) -> Answer:
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for verb, pattern, access, work in ROUTES:
                match = pattern.fullmatch(path)
                if verb == method and match and path.startswith("/cdn/") == (self.request_log.origin == "cdn"):
                    values = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    role = self.role() if self.request_log.origin == "api" else "write"
                    with self.hub.lock:
                        if access == "none":
                            return work(self, body, role=role, **values)
                        kind = values.pop("kind", "model")
                        repository = self.open(kind, values.pop("repo"), access, role)
                        return work(self, body, repository, **values)
            raise HubError(404, f"The double does not serve {self.command} {path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            return as_json({"error": error.message, **error.body}, error.status, **headers)

    def role(self) -> str | None:
        """Return what the caller's token may do; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.roles:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.roles.get(token)

    def open(self, kind: str, name: str, access: str, role: str | None) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and role is None):
            raise HubError(401 if role is None else 404, "Repository not found", "RepoNotFound")
        if access == "files" and repository.gated and role != "write":
            raise HubError(401 if role is None else 403, f"Access to {kind} {name} is restricted.", "GatedRepo")
        if access == "write" and role is None:
            raise HubError(401, "Invalid username or password.")
        if access == "write" and role != "write":
            raise HubError(403, "This token has no permission to write")
        return repository

    def send(self, answer: Answer) -> None:
        self.request_log.status = answer.status
        self.send_response(answer.status)
        for name, value in {**self.limits, **answer.headers}.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        if self.command == "HEAD":
            return
        at = answer.start
        for chunk in answer.chunks():
            self.send_bytes(self.spoil(chunk, at, answer))
            at += len(chunk)

    def send_for_ever(self, answer: Answer) -> None:
        """Answer with zeros that do not end, in pieces of no announced length."""
        self.send_response(200)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"%x\r\n" % CHUNK)
            self.send_bytes(bytes(CHUNK))
            self.wfile.write(b"\r\n")

    def spoil(self, chunk: bytes, at: int, answer: Answer) -> bytes:
        """Apply a fault of the answer's body to the chunk that starts at byte `at` of the content."""
        if isinstance(self.action, FlipByte) and chunk:
            size = len(answer.body) if isinstance(answer.body, bytes) else answer.body.size
            place = self.action.at % size - at
            if 0 <= place < len(chunk):
                return chunk[:place] + bytes([chunk[place] ^ 1]) + chunk[place + 1 :]
        if isinstance(self.action, Truncate) and self.request_log.sent + len(chunk) > self.action.at:
            self.send_bytes(chunk[: self.action.at - self.request_log.sent])
            raise ConnectionAbortedError
        if isinstance(self.action, Pause) and self.action.stage == "answer":
            self.send_bytes(chunk[: len(chunk) // 2])
            self.action.hold()
            return chunk[len(chunk) // 2 :]
        return chunk

    def send_bytes(self, chunk: bytes) -> None:
        self.hub.traffic.pass_through(len(chunk))
        self.wfile.write(chunk)
        self.request_log.sent += len(chunk)

    def content(self, file: File, headers: Mapping[str, str]) -> Answer:
        """Answer a file, or the range of it that was asked for."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked or asked.groups() == ("", ""):
            return Answer(headers=headers, body=file)
        first, last = asked.groups()
        start = int(first) if first else max(file.size - int(last), 0)
        stop = min(int(last) + 1, file.size) if first and last else file.size
        if start >= file.size:
            return Answer(status=416, headers={"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        return Answer(status=206, headers=headers, body=file, start=start, stop=stop)

    def page(self, items: list[Any]) -> Answer:
        """Answer one page of a list, with the address of the next."""
        start = int(self.query.get("cursor", 0))
        stop = start + self.hub.page_size
        headers = {}
        if stop < len(items):
            kept = "".join(f"{key}={quote(value)}&" for key, value in self.query.items() if key != "cursor")
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{kept}cursor={stop}>; rel="next"'
        return as_json(items[start:stop], **headers)
