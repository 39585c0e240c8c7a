"""The memory of the Hub's double: blobs on disk, and repositories with commits, branches, tags and pull requests."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 16
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".parquet", ".arrow", ".gz", ".zip", ".png", ".jpg")
LARGE_SIZE = 10 << 20
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class HubError(Exception):
    """An answer that is not 2xx: its status, the code the client dispatches on, and fields of the JSON body."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a commit; `oid` is git's, that of the pointer where the file is large."""

    blob: Path
    size: int
    sha256: str
    oid: str
    large: bool

    def read(self) -> bytes:
        return self.blob.read_bytes()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass(frozen=True, kw_only=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, File]


@dataclass(kw_only=True)
class Discussion:
    number: int
    title: str
    description: str
    author: str
    date: str
    status: str
    pull_request: bool
    base: str
    merge_commit: str | None = None


class Blobs:
    """Contents by sha256 in a folder, written and read in chunks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self._names = itertools.count()

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def add(self, stream: BinaryIO) -> str:
        incoming = self.folder / f"incoming-{next(self._names)}"
        digest = hashlib.sha256()
        with incoming.open("wb") as file:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        incoming.replace(self.path(digest.hexdigest()))
        return digest.hexdigest()

    def file(self, sha256: str, large: bool) -> File:
        blob = self.path(sha256)
        size = blob.stat().st_size
        return File(
            blob=blob, size=size, sha256=sha256, large=large,
            oid=_git_oid(pointer(sha256, size) if large else blob.read_bytes()),
        )  # fmt: skip


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub would keep a file out of git: by its suffix, its size, or because it is not text."""
    return size > 0 and (path.endswith(LARGE_SUFFIXES) or size > LARGE_SIZE or b"\0" in sample)


@dataclass(kw_only=True)
class Repository:
    """A repository; its creator guards it with a lock."""

    kind: str
    name: str
    owner: str
    blobs: Blobs
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: dict[int, Discussion] = field(default_factory=dict)
    uploaded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
        self._record("refs/heads/main", {".gitattributes": self.add(".gitattributes", attributes.encode())},
                     title="initial commit", author="system")  # fmt: skip

    def add(self, path: str, content: bytes | Path) -> File:
        """Store a content for `path` to be committed under."""
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as stream:
            sample = stream.read(512)
            stream.seek(0)
            sha256 = self.blobs.add(stream)
        large = is_large(path, self.blobs.path(sha256).stat().st_size, sample)
        if large:
            self.uploaded.add(sha256)
        return self.blobs.file(sha256, large)

    def ref(self, revision: str) -> str:
        """Return the full name of a branch, a pull request or a tag."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return ref
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def at(self, revision: str) -> Commit:
        """Return the commit that a ref, a commit id or the beginning of one names."""
        found = [oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)]
        return self.commits[found[0] if len(found) == 1 else self.refs[self.ref(revision)]]

    def history(self, revision: str) -> list[Commit]:
        """Return the commits that lead to a revision, newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def commit(
        self,
        revision: str,
        changes: Mapping[str, File | None],
        *,
        title: str,
        message: str = "",
        author: str,
        parent: str | None = None,
    ) -> Commit:
        """Apply changes (None deletes a file) to a branch or pull request, if its head is still `parent`."""
        ref = self.ref(revision)
        head = self.commits[self.refs[ref]]
        if ref.startswith("refs/tags/"):
            raise HubError(400, f"{revision} is a tag")
        if parent not in (None, head.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        for path, file in changes.items():
            if file is None and path not in head.files:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        files = {path: file for path, file in {**head.files, **changes}.items() if file is not None}
        return self._record(ref, files, title=title, message=message, author=author)

    def _record(self, ref: str, files: Mapping[str, File], *, title: str, message: str = "", author: str) -> Commit:
        parent, date = self.refs.get(ref), self.date()
        content = [self.kind, self.name, parent, title, message, author, date, sorted((p, files[p].oid) for p in files)]
        oid = hashlib.sha1(repr(content).encode()).hexdigest()
        self.commits[oid] = Commit(
            oid=oid, parent=parent, title=title, message=message, author=author, date=date, files=dict(files)
        )
        self.refs[ref] = oid
        return self.commits[oid]

    def date(self) -> str:
        """Return a time that passes by one second a commit."""
        return (EPOCH + timedelta(seconds=len(self.commits))).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def discuss(self, title: str, description: str, author: str, pull_request: bool) -> Discussion:
        """Open a discussion, or a pull request on a ref of its own."""
        number = len(self.discussions) + 1
        base = self.refs["refs/heads/main"]
        self.discussions[number] = Discussion(
            number=number, title=title, description=description, author=author, date=self.date(),
            status="draft" if pull_request else "open", pull_request=pull_request, base=base,
        )  # fmt: skip
        if pull_request:
            self.refs[f"refs/pr/{number}"] = base
        return self.discussions[number]

    def conflicts(self, discussion: Discussion) -> list[str]:
        """Return the paths that a pull request and main have both changed, to different contents."""
        base = self.commits[discussion.base].files
        ours, theirs = self.at("main").files, self.at(f"refs/pr/{discussion.number}").files
        return [
            path
            for path in sorted({*base, *ours, *theirs})
            if base.get(path) not in (ours.get(path), theirs.get(path)) and ours.get(path) != theirs.get(path)
        ]

    def merge(self, discussion: Discussion, author: str) -> Commit:
        """Apply a pull request's changes to main as one commit."""
        if discussion.status not in ("open", "draft") or self.conflicts(discussion):
            raise HubError(409, f"Pull request {discussion.number} cannot be merged")
        base = self.commits[discussion.base].files
        theirs = self.at(f"refs/pr/{discussion.number}").files
        ours = self.at("main").files
        changes = {path: theirs.get(path) for path in {*base, *theirs} if base.get(path) != theirs.get(path)}
        changes = {path: file for path, file in changes.items() if file is not None or path in ours}
        commit = self.commit("main", changes, title=f"{discussion.title} (#{discussion.number})", author=author)
        discussion.status, discussion.merge_commit = "merged", commit.oid
        return commit

    def folders(self, commit: Commit) -> dict[str, str]:
        """Return every folder of a commit with an id that changes with its files."""
        parents = {str(parent) for path in commit.files for parent in Path(path).parents} - {"."}
        inside = {p: [f.oid for path, f in sorted(commit.files.items()) if path.startswith(p + "/")] for p in parents}
        return {path: hashlib.sha1("".join(oids).encode()).hexdigest() for path, oids in sorted(inside.items())}
