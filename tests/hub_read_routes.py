"""What the double serves to readers: who asks, and of a repository its information, files, refs and history."""

from __future__ import annotations

from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, urlsplit

from hub_http import API, CDN, REVISION, WEB, Answer, Exchange, as_json, route
from hub_repository import Commit, File, HubError, Repository, pointer


class ReadRoutes(Exchange):
    @route("GET", "/api/whoami-v2")
    def whoami(self, body: BinaryIO, role: str | None) -> Answer:
        if role is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": role, "role": role, "createdAt": "2026-01-01T00:00:00.000Z"}
        auth, user = {"type": "access_token", "accessToken": token}, self.hub.user
        return as_json({"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": auth})

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
        return Answer(status=302, headers={**headers, "Location": self.hub.cdn_url + self.hub.traffic.signed(stored)})

    @route("GET", rf"{CDN}/(?P<path>.+)", "read")
    def get_blob(self, body: BinaryIO, repository: Repository, sha256: str, path: str) -> Answer:
        if not self.hub.traffic.serves(urlsplit(self.path).path, self.query):
            raise HubError(403, "Request has expired")
        if sha256 not in repository.uploaded:
            raise HubError(404, "No such blob")
        return self.content(self.hub.blobs.file(sha256, large=True), {"ETag": f'"{sha256[:32]}"'})


def lfs_entry(file: File, digest_name: str) -> dict[str, Any]:
    """Return the field that a large file's entry has in a listing, with its sha256 under the name given."""
    if not file.large:
        return {}
    return {"lfs": {digest_name: file.sha256, "size": file.size, "pointerSize": len(pointer(file.sha256, file.size))}}
