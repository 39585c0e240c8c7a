"""A loopback double of the Hugging Face Hub, for tests that run the real clients against it.

    with HubServer(tmp_path / "hub") as hub:
        hub.create("model", "ns/name", {"config.json": b"{}"})
        subprocess.run([sys.executable, "-c", program], env=hub.environment(tmp_path / "home"))
        assert hub.files("ns/name")["config.json"].read() == b"{}"

Clients read `HF_ENDPOINT` when they are imported, so they run in processes of their own, in the environment that
`environment` gives. The API is at 127.0.0.1; large files are stored on and served from a second origin, localhost.

Served: whoami-v2, repos/create and delete, validate-yaml, and for models and datasets their information, tree,
paths-info, refs, commits, auth-check, branch, tag, preupload, commit, discussions with merge, LFS batch, verify and
multipart completion, and resolve. Private and gated repositories, a token that writes, one that reads, and any other
one as expired. `fault` makes the server misbehave on chosen requests, and `requests` tells what was asked of it.

What it does not prove: the texts of the real Hub's errors and its rate-limit headers; Xet (clients are told not to
use it); quotas, size limits and virus scans; that a commit is seen everywhere at once, as it is here; the Hub's
opinion of a card (every one is valid, and `cardData` is always empty; a `Status(400)` fault doubles a refusal); what
the Hub does with a commit that changes nothing (here it is one more commit); .gitignore rules; signed addresses that
expire; organisations and their rights; Spaces.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_actions import Action, Delay, Drop, Endless, FlipByte, Garble, LoseAnswer, Pause, Status, Truncate
from hub_repository import CHUNK, Blobs, Commit, Discussion, File, HubError, Repository, is_large, pointer

USER = "tester"
WRITE_TOKEN = "hf_write"
READ_TOKEN = "hf_read"
EXPIRED_TOKEN = "hf_expired"
ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read"}


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


class HubServer:
    """The double: a server on a free port, its repositories, its faults and its log. Use it in a `with`."""

    def __init__(self, folder: Path, *, page_size: int = 1000, part_size: int | None = None) -> None:
        """Keep blobs in `folder`; list `page_size` entries a page; take files above `part_size` bytes in parts."""
        self.folder = folder
        self.page_size, self.part_size = page_size, part_size
        self.blobs = Blobs(folder / "blobs")
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[BaseException] = []
        self.lock = threading.RLock()
        self._http = _Server(("127.0.0.1", 0), Handler)
        self._http.hub = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if isinstance(fault.action, Pause):
                fault.action.abandon()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        if self.errors:
            raise self.errors[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://localhost:{self._http.server_port}"

    def environment(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Return the environment of a client process with an HF_HOME of its own, logged in by `token`."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return environment | ({"HF_TOKEN": token} if token else {}) | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_XET_TELEMETRY_ENABLED": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }  # fmt: skip

    def create(
        self,
        kind: str,
        repo: str,
        files: Mapping[str, bytes | Path] | None = None,
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Create a "model" or "dataset" repository, commit the files given, and return the head's id."""
        with self.lock:
            if (kind, repo) in self.repositories:
                raise HubError(409, f"You already created this {kind} repo", url=self.web_url(kind, repo))
            self.repositories[kind, repo] = Repository(
                kind=kind, name=repo, owner=repo.split("/")[0], blobs=self.blobs, private=private, gated=gated
            )
        return self.commit(repo, files, kind=kind) if files else self.history(repo, kind=kind)[0].oid

    def commit(
        self, repo: str, files: Mapping[str, bytes | Path | None], *, revision: str = "main", kind: str = "model"
    ) -> str:
        """Commit files (None deletes one) as somebody else would, and return the commit's id."""
        with self.lock:
            repository = self.repositories[kind, repo]
            changes = {
                path: None if content is None else repository.add(path, content) for path, content in files.items()
            }
            return repository.commit(revision, changes, title="Somebody else's commit", author="somebody").oid

    def files(self, repo: str, revision: str = "main", kind: str = "model") -> dict[str, File]:
        with self.lock:
            return dict(self.repositories[kind, repo].at(revision).files)

    def history(self, repo: str, revision: str = "main", kind: str = "model") -> list[Commit]:
        """Return the commits that lead to a revision, newest first; the last is the Hub's own, with .gitattributes."""
        with self.lock:
            return self.repositories[kind, repo].history(revision)

    def refs(self, repo: str, kind: str = "model") -> dict[str, str]:
        """Return commit ids by full name: refs/heads/main, refs/tags/v1, refs/pr/1."""
        with self.lock:
            return dict(self.repositories[kind, repo].refs)

    def fault(self, method: str, path: str, action: Action, *, times: int | None = 1, after: int = 0) -> Fault:
        """Misbehave on requests whose unquoted path, without the query, has a match of the pattern `path`.

        A large file is served from /cdn/KIND/NAMESPACE/NAME/SHA256/PATH and stored at the same without the last PATH.
        """
        fault = Fault(method=method, path=re.compile(path), action=action, times=times, after=after)
        with self.lock:
            self.faults.append(fault)
        return fault

    def asked(self, method: str, path: str) -> list[Request]:
        """Return the requests so far whose path has a match of a pattern."""
        with self.lock:
            return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    def web_url(self, kind: str, repo: str) -> str:
        return f"{self.url}/{'' if kind == 'model' else kind + 's/'}{repo}"

    def admit(self, request: Request) -> Action | None:
        """Log a request and return what to do to it."""
        with self.lock:
            self.requests.append(request)
            due = [fault.action for fault in self.faults if fault.matches(request) and fault.is_due()]
            return due[0] if due else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.hub.errors.append(error)


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


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

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
                else:
                    answer = self.work(address.path, body)
            self.pause("done")
            if isinstance(self.action, LoseAnswer):
                raise ConnectionAbortedError
            if isinstance(self.action, Endless):
                self.send_for_ever(answer)
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
        if token and token not in ROLES:
            raise HubError(401, "Invalid credentials in Authorization header")
        return ROLES.get(token)

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
        for name, value in answer.headers.items():
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

    @route("GET", "/api/whoami-v2")
    def whoami(self, body: BinaryIO, role: str | None) -> Answer:
        if role is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": role, "role": role, "createdAt": "2026-01-01T00:00:00.000Z"}
        auth = {"type": "access_token", "accessToken": token}
        return as_json({"type": "user", "id": USER, "name": USER, "fullname": USER, "orgs": [], "auth": auth})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, body: BinaryIO, role: str | None) -> Answer:
        return as_json({"errors": [], "warnings": []})

    @route("POST", "/api/repos/create")
    def create_repository(self, body: BinaryIO, role: str | None) -> Answer:
        asked = json.load(body)
        kind, repo = self.addressed(asked, role)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.create(kind, repo, private=bool(private))
        return as_json({"url": self.hub.web_url(kind, repo), "name": repo, "id": repo})

    @route("DELETE", "/api/repos/delete")
    def delete_repository(self, body: BinaryIO, role: str | None) -> Answer:
        kind, repo = self.addressed(json.load(body), role)
        if self.hub.repositories.pop((kind, repo), None) is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return as_json({})

    def addressed(self, asked: Mapping[str, Any], role: str | None) -> tuple[str, str]:
        if role != "write":
            raise HubError(403 if role else 401, "This token may not create or delete repositories")
        return asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"

    @route("GET", API, "read")
    @route("GET", rf"{API}/revision{REVISION}", "read")
    def information(self, body: BinaryIO, repository: Repository, revision: str = "main") -> Answer:
        commit = repository.at(revision)
        return as_json({
            "id": repository.name, "author": repository.owner, "sha": commit.oid, "lastModified": commit.date,
            "createdAt": repository.history(revision)[-1].date, "private": repository.private,
            "gated": "auto" if repository.gated else False, "disabled": False, "downloads": 0, "likes": 0,
            "tags": [], "cardData": {},
            "siblings": [
                {"rfilename": path, "size": file.size, "blobId": file.oid} | lfs_entry(file, "sha256")
                for path, file in sorted(commit.files.items())
            ],
        })  # fmt: skip

    @route("GET", rf"{API}/tree{REVISION}(?:/(?P<path>.*))?", "read")
    def tree(self, body: BinaryIO, repository: Repository, revision: str, path: str = "") -> Answer:
        commit = repository.at(revision)
        prefix = path.strip("/") + "/" if path.strip("/") else ""
        entries = self.entries(repository, commit)
        if prefix and prefix.rstrip("/") not in repository.folders(commit):
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        found = [entry for name, entry in entries.items() if name.startswith(prefix)]
        if self.query.get("recursive", "false").lower() not in ("true", "1"):
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(prefix)]
        return self.page(found)

    @route("POST", rf"{API}/paths-info{REVISION}", "read")
    def paths_info(self, body: BinaryIO, repository: Repository, revision: str) -> Answer:
        entries = self.entries(repository, repository.at(revision))
        asked = [path.strip("/") for path in parse_qs(body.read().decode()).get("paths", [])]
        return as_json([entries[path] for path in asked if path in entries])

    @staticmethod
    def entries(repository: Repository, commit: Commit) -> dict[str, dict[str, Any]]:
        folders = {
            path: {"type": "directory", "oid": oid, "size": 0, "path": path}
            for path, oid in repository.folders(commit).items()
        }
        files = {
            path: {"type": "file", "oid": file.oid, "size": file.size, "path": path} | lfs_entry(file, "oid")
            for path, file in commit.files.items()
        }
        return dict(sorted({**folders, **files}.items()))

    @route("GET", rf"{API}/refs", "read")
    def list_refs(self, body: BinaryIO, repository: Repository) -> Answer:
        def below(prefix: str, named: str) -> list[dict[str, str]]:
            return [
                {"name": ref.removeprefix(named), "ref": ref, "targetCommit": oid}
                for ref, oid in repository.refs.items()
                if ref.startswith(prefix)
            ]

        answer = {"branches": below("refs/heads/", "refs/heads/"), "tags": below("refs/tags/", "refs/tags/")}
        pulls = {"pullRequests": below("refs/pr/", "refs/")} if "include_prs" in self.query else {}
        return as_json({**answer, "converts": [], **pulls})

    @route("GET", rf"{API}/commits{REVISION}", "read")
    def list_commits(self, body: BinaryIO, repository: Repository, revision: str) -> Answer:
        return self.page([
            {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date,
             "authors": [{"user": commit.author}]}
            for commit in repository.history(revision)
        ])  # fmt: skip

    @route("GET", rf"{API}/auth-check", "files")
    @route("GET", rf"{API}/auth-check/write", "write")
    def check_access(self, body: BinaryIO, repository: Repository) -> Answer:
        return as_json({})

    @route("POST", rf"{API}/branch/(?P<branch>[^/]+)", "write")
    def create_branch(self, body: BinaryIO, repository: Repository, branch: str) -> Answer:
        asked = json.loads(body.read() or b"{}")
        return self.new_ref(repository, f"refs/heads/{branch}", asked.get("startingPoint", "main"))

    @route("POST", rf"{API}/tag{REVISION}", "write")
    def create_tag(self, body: BinaryIO, repository: Repository, revision: str) -> Answer:
        return self.new_ref(repository, f"refs/tags/{json.load(body)['tag']}", revision)

    @staticmethod
    def new_ref(repository: Repository, ref: str, revision: str) -> Answer:
        if ref in repository.refs:
            raise HubError(409, f"{ref} already exists")
        repository.refs[ref] = repository.at(revision).oid
        return as_json({})

    @route("DELETE", rf"{API}/branch/(?P<name>[^/]+)", "write")
    def delete_branch(self, body: BinaryIO, repository: Repository, name: str) -> Answer:
        if name == "main":
            raise HubError(403, "The main branch cannot be deleted")
        return self.delete_ref(repository, f"refs/heads/{name}")

    @route("DELETE", rf"{API}/tag/(?P<name>[^/]+)", "write")
    def delete_tag(self, body: BinaryIO, repository: Repository, name: str) -> Answer:
        return self.delete_ref(repository, f"refs/tags/{name}")

    @staticmethod
    def delete_ref(repository: Repository, ref: str) -> Answer:
        if repository.refs.pop(ref, None) is None:
            raise HubError(404, f"{ref} does not exist", "RevisionNotFound")
        return as_json({})

    @route("POST", rf"{API}/preupload{REVISION}", "write")
    def preupload(self, body: BinaryIO, repository: Repository, revision: str) -> Answer:
        present = repository.at(revision).files
        return as_json({"files": [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if is_large(file["path"], file["size"], b64decode(file["sample"])) else "regular",
             "oid": present[file["path"]].etag if file["path"] in present else None}
            for file in json.load(body)["files"]
        ]})  # fmt: skip

    @route("POST", rf"{WEB}\.git/info/lfs/objects/batch", "write")
    def lfs_batch(self, body: BinaryIO, repository: Repository) -> Answer:
        asked = json.load(body)["objects"]
        actions = [{} if o["oid"] in repository.uploaded else {"actions": self.upload(repository, o)} for o in asked]
        return as_json({"transfer": "basic", "objects": [o | a for o, a in zip(asked, actions, strict=True)]})

    def upload(self, repository: Repository, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Return where to put a blob: in one piece, or in parts and then to be completed."""
        sha256, size = wanted["oid"], wanted["size"]
        store = f"{self.hub.cdn_url}/cdn/{repository.kind}/{repository.name}/{sha256}"
        lfs = f"{self.hub.web_url(repository.kind, repository.name)}.git/info/lfs"
        verify = {"href": f"{lfs}/verify"}
        part_size = self.hub.part_size
        if part_size is None or size <= part_size:
            return {"upload": {"href": store}, "verify": verify}
        parts = {f"{number:05d}": f"{store}/part/{number}" for number in range(1, -(-size // part_size) + 1)}
        return {
            "upload": {"href": f"{lfs}/complete/{sha256}", "header": {"chunk_size": str(part_size), **parts}},
            "verify": verify,
        }

    @route("PUT", CDN, "read")
    def put_blob(self, body: BinaryIO, repository: Repository, sha256: str) -> Answer:
        if self.hub.blobs.add(body) != sha256:
            raise HubError(400, "The content does not have the sha256 it was announced with")
        repository.uploaded.add(sha256)
        return Answer(headers={"ETag": f'"{sha256}"'})

    @route("PUT", rf"{CDN}/part/(?P<number>\d+)", "read")
    def put_part(self, body: BinaryIO, repository: Repository, sha256: str, number: str) -> Answer:
        part = self.hub.folder / f"{sha256}.{number}"
        with part.open("wb") as file:
            shutil.copyfileobj(body, file, CHUNK)
        return Answer(headers={"ETag": f'"{number}"'})

    @route("POST", rf"{WEB}\.git/info/lfs/complete/(?P<sha256>[0-9a-f]{{64}})", "none")
    def complete(self, body: BinaryIO, role: str | None, repo: str, sha256: str, kind: str = "model") -> Answer:
        """Join the parts of a blob; as a signed address, it asks for no token."""
        whole = self.hub.folder / f"{sha256}.whole"
        with whole.open("wb") as file:
            for part in json.load(body)["parts"]:
                with (self.hub.folder / f"{sha256}.{part['partNumber']}").open("rb") as piece:
                    shutil.copyfileobj(piece, file, CHUNK)
        with whole.open("rb") as file:
            if self.hub.blobs.add(file) != sha256:
                raise HubError(400, "The parts do not have the sha256 they were announced with")
        self.hub.repositories[kind, repo].uploaded.add(sha256)
        return as_json({})

    @route("POST", rf"{WEB}\.git/info/lfs/verify", "write")
    def verify(self, body: BinaryIO, repository: Repository) -> Answer:
        if json.load(body)["oid"] not in repository.uploaded:
            raise HubError(404, "The blob has not been uploaded")
        return as_json({})

    @route("POST", rf"{API}/commit{REVISION}", "write")
    def commit(self, body: BinaryIO, repository: Repository, revision: str) -> Answer:
        lines = [json.loads(line) for line in body]
        header = lines[0]["value"]
        head = repository.at(revision)
        changes: dict[str, File | None] = {}
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                changes[path] = self.regular_file(repository, path, b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in repository.uploaded:
                    raise HubError(400, f"The blob of {path} has not been uploaded")
                changes[path] = self.hub.blobs.file(value["oid"], large=True)
            elif line["key"] == "deletedFolder":
                changes |= {name: None for name in head.files if name.startswith(path.rstrip("/") + "/")}
            else:
                changes[path] = None
        title, message = header["summary"], header.get("description", "")
        pull = None
        if "create_pr" in self.query:
            pull = repository.discuss(title, message, USER, pull_request=True)
            revision = f"refs/pr/{pull.number}"
        commit = repository.commit(
            revision, changes, title=title, message=message, author=USER, parent=header.get("parentCommit")
        )
        address = self.hub.web_url(repository.kind, repository.name)
        return as_json({
            "success": True, "commitOid": commit.oid, "commitUrl": f"{address}/commit/{commit.oid}",
            "pullRequestUrl": f"{address}/discussions/{pull.number}" if pull else None,
        })  # fmt: skip

    @staticmethod
    def regular_file(repository: Repository, path: str, content: bytes) -> File:
        file = repository.add(path, content)
        if file.large:
            raise HubError(400, f"{path} must be uploaded as a large file")
        return file

    @route("GET", rf"{API}/discussions", "read")
    def list_discussions(self, body: BinaryIO, repository: Repository) -> Answer:
        found = [self.described(repository, discussion) for discussion in repository.discussions.values()]
        return as_json({"discussions": found, "count": len(found), "start": 0})

    @route("POST", rf"{API}/discussions", "write")
    def create_discussion(self, body: BinaryIO, repository: Repository) -> Answer:
        asked = json.load(body)
        discussion = repository.discuss(asked["title"], asked["description"], USER, asked["pullRequest"])
        return as_json({"num": discussion.number, "pullRequest": discussion.pull_request})

    @route("GET", rf"{API}/discussions/(?P<number>\d+)", "read")
    def show_discussion(self, body: BinaryIO, repository: Repository, number: str) -> Answer:
        discussion = self.discussion(repository, number)
        details: dict[str, Any] = {"events": []}
        if discussion.pull_request:
            details["changes"] = {"base": "refs/heads/main", "mergeCommitId": discussion.merge_commit}
            details["filesWithConflicts"] = repository.conflicts(discussion)
        return as_json(self.described(repository, discussion) | details)

    @route("POST", rf"{API}/discussions/(?P<number>\d+)/merge", "write")
    def merge_pull_request(self, body: BinaryIO, repository: Repository, number: str) -> Answer:
        repository.merge(self.discussion(repository, number), USER)
        return as_json({})

    @staticmethod
    def discussion(repository: Repository, number: str) -> Discussion:
        if int(number) not in repository.discussions:
            raise HubError(404, f"Discussion {number} does not exist")
        return repository.discussions[int(number)]

    @staticmethod
    def described(repository: Repository, discussion: Discussion) -> dict[str, Any]:
        return {
            "num": discussion.number, "title": discussion.title, "status": discussion.status,
            "author": {"name": discussion.author}, "createdAt": discussion.date,
            "isPullRequest": discussion.pull_request, "repo": {"name": repository.name, "type": repository.kind},
        }  # fmt: skip

    @route("GET", rf"{WEB}/resolve{REVISION}/(?P<path>.+)", "files")
    def resolve(self, body: BinaryIO, repository: Repository, revision: str, path: str) -> Answer:
        commit = repository.at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            missing = {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return as_json({"error": "Entry not found"}, 404, **missing)
        file = commit.files[path]
        headers["ETag"] = f'"{file.etag}"'
        if not file.large:
            return self.content(file, headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        stored = f"/cdn/{repository.kind}/{repository.name}/{file.sha256}/{quote(path)}"
        return Answer(status=302, headers={**headers, "Location": self.hub.cdn_url + stored})

    @route("GET", rf"{CDN}/(?P<path>.+)", "read")
    def get_blob(self, body: BinaryIO, repository: Repository, sha256: str, path: str) -> Answer:
        if sha256 not in repository.uploaded:
            raise HubError(404, "No such blob")
        return self.content(self.hub.blobs.file(sha256, large=True), {"ETag": f'"{sha256[:32]}"'})


def lfs_entry(file: File, digest_name: str) -> dict[str, Any]:
    """Return the field that a large file's entry has in a listing, with its sha256 under the name given."""
    if not file.large:
        return {}
    return {"lfs": {digest_name: file.sha256, "size": file.size, "pointerSize": len(pointer(file.sha256, file.size))}}
