"""What the double serves to writers: repositories, branches and tags, uploads, commits, pull requests."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, BinaryIO

from hub_http import API, CDN, REVISION, WEB, Answer, Exchange, as_json, route
from hub_repository import CHUNK, Discussion, File, HubError, Repository, is_large


class WriteRoutes(Exchange):
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
        return asked.get("type") or "model", f"{asked.get('organization') or self.hub.user}/{asked['name']}"

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
            pull = repository.discuss(title, message, self.hub.user, pull_request=True)
            revision = f"refs/pr/{pull.number}"
        commit = repository.commit(
            revision, changes, title=title, message=message, author=self.hub.user, parent=header.get("parentCommit")
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
        discussion = repository.discuss(asked["title"], asked["description"], self.hub.user, asked["pullRequest"])
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
        repository.merge(self.discussion(repository, number), self.hub.user)
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
