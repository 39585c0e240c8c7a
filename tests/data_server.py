"""A loopback double of the Hub that serves one data set for reading, injects faults and counts the bytes it sends.

It speaks what `datasets` and `HfFileSystem` ask for: the data set's facts, its tree, paths-info, and files by range. It
proves nothing about the real Hub's limits, redirects or error bodies.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter, deque
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "someone/pictures"
SHA = "0123456789abcdef0123456789abcdef01234567"


class DataServer:
    """Serves `files` (path to bytes) as data set `someone/pictures`; with a token, to its bearer alone.

    `faults` are used up one by one by requests for file contents: "503", "429", "drop" (the connection ends half-way)
    or "truncate" (a whole answer, but of half the bytes asked for). `sent` counts the bytes sent, by path.
    """

    def __init__(self, files: Mapping[str, bytes], token: str | None = None) -> None:
        self.files = dict(files)
        self.token = token
        self.faults: deque[str] = deque()
        self.sent: Counter[str] = Counter()
        self.injected: list[str] = []
        outer = self

        class Handler(_Handler):
            server_state = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> DataServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def entry(self, path: str) -> dict[str, Any]:
        data = self.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}


_known: dict[int, str] = {}


def _oid(data: bytes) -> str:
    if id(data) not in _known:
        _known[id(data)] = hashlib.sha1(data).hexdigest()
    return _known[id(data)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: DataServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return
        path = unquote(urlsplit(self.path).path)
        api = f"/api/datasets/{REPO}"
        if match := re.fullmatch(rf"/datasets/{REPO}/resolve/[^/]+/(.+)", path):
            self._file(match[1])
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{SHA}"):
            siblings = [{"rfilename": name} for name in sorted(state.files)]
            self._json({"id": REPO, "sha": SHA, "siblings": siblings, "private": bool(state.token), "tags": []})
        elif match := re.fullmatch(rf"{api}/tree/[^/]+(?:/(.*))?", path):
            folder = f"{match[1]}/" if match[1] else ""
            names = sorted(name for name in state.files if name.startswith(folder))
            if "recursive=true" not in self.path.lower():
                names = [name for name in names if "/" not in name[len(folder) :]]
            folders = {name.rpartition("/")[0] for name in state.files} - {""} if not folder else set()
            here = [{"type": "directory", "path": name, "size": 0, "oid": SHA} for name in sorted(folders)]
            self._json(here + [state.entry(name) for name in names])
        elif re.fullmatch(rf"{api}/paths-info/[^/]+", path):
            text = body.decode()
            asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
            self._json([state.entry(name) for name in asked if name in state.files])
        else:
            self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._head(status, len(data), {"Content-Type": "application/json", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _file(self, name: str) -> None:
        state = self.server_state
        if name not in state.files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        data = state.files[name]
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self._head(200, len(data), headers)
            return
        status, part = 200, data
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), min(int(match[2] or len(data) - 1) + 1, len(data))
            status, part = 206, data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        fault = state.faults.popleft() if state.faults and name.endswith(".parquet") else None
        if fault:
            state.injected.append(fault)
        if fault in ("503", "429"):
            self._json({"error": "try again"}, int(fault))
            return
        sending = part[: len(part) // 2] if fault else part
        self._head(status, len(part) if fault == "drop" else len(sending), headers)
        state.sent[name] += len(sending)
        self.wfile.write(sending)
        if fault == "drop":
            self.wfile.flush()
            self.close_connection = True
