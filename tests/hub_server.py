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
one as expired. `fault` makes the server misbehave on chosen requests, `traffic` makes it far away and sets limits, and
`requests` and `counts` tell what was asked of it. Addresses of the storage are signed and expire, and the storage
refuses requests that hold a token.

What it does not prove: the texts of the real Hub's errors; when it counts which request; Xet (clients are told not to
use it); quotas, size limits and virus scans; that a commit is seen everywhere at once, as it is here; the Hub's
opinion of a card (every one is valid, and `cardData` is always empty; a `Status(400)` fault doubles a refusal); what
the Hub does with a commit that changes nothing (here it is one more commit); .gitignore rules; what
the storage answers to an address that has expired; organisations and their rights; Spaces.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from hub_faults import Action, Fault, Pause, Request
from hub_http import Server
from hub_read_routes import ReadRoutes
from hub_repository import Blobs, Commit, File, HubError, Repository
from hub_traffic import Traffic, counts
from hub_write_routes import WriteRoutes

USER = "tester"
WRITE_TOKEN = "hf_write"
READ_TOKEN = "hf_read"
EXPIRED_TOKEN = "hf_expired"


class Handler(ReadRoutes, WriteRoutes):
    """Everything that is served."""


class HubServer:
    """The double: a server on a free port, its repositories, its faults and its log. Use it in a `with`."""

    def __init__(
        self, folder: Path, *, page_size: int = 1000, part_size: int | None = None, traffic: Traffic | None = None
    ) -> None:
        """Keep blobs in `folder`; list `page_size` entries a page; take files above `part_size` bytes in parts.

        Without `traffic` it answers at once, as much and as often as it is asked.
        """
        self.folder, self.traffic = folder, traffic or Traffic()
        self.page_size, self.part_size = page_size, part_size
        self.user, self.roles = USER, {WRITE_TOKEN: "write", READ_TOKEN: "read"}
        self.blobs = Blobs(folder / "blobs")
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[BaseException] = []
        self.connections = 0  # opened so far
        self.lock = threading.RLock()
        self._http = Server(("127.0.0.1", 0), Handler)
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

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of requests so far and the bytes sent, by what they went to: api, resolver, storage."""
        with self.lock:
            return counts(self.requests)

    def web_url(self, kind: str, repo: str) -> str:
        return f"{self.url}/{'' if kind == 'model' else kind + 's/'}{repo}"

    def admit(self, request: Request) -> Action | None:
        """Log a request and return what to do to it."""
        with self.lock:
            self.requests.append(request)
            due = [fault.action for fault in self.faults if fault.matches(request) and fault.is_due()]
            return due[0] if due else None
