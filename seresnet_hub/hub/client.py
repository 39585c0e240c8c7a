"""Ask the Hub what a repository has, and compare files with the hashes that it gives."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.hub.download_limits import MOST_FILES, RemoteFile
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.retries import patiently
from seresnet_hub.hub.revisions import check_commit
from seresnet_hub.hub.transport import guarded

LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
Kind = Literal["model", "space"]  # of a repository
NO_LICENCES = ("unknown", "other")  # the Hub's words for one that it does not know


def head_of(api: HfApi, repo_id: str, revision: str, *, once: bool = False, kind: Kind = "model") -> str:
    """Return the id of the commit that `revision` is at; the client's errors where it or the repository is missing."""
    info = patiently(
        lambda: api.repo_info(repo_id, revision=revision, repo_type=kind),
        f"asking for {repo_id}",
        let_through=(RepositoryNotFoundError, RevisionNotFoundError),
        once=once,
    )
    return check_commit(info.sha, repo_id)


def remote_files(
    api: HfApi, repo_id: str, commit: str, *, once: bool = False, kind: Kind = "model"
) -> dict[str, RemoteFile]:
    """Return what the Hub says of each file at a commit: sha256 of large files, git's sha1 of others, and the size."""

    def listed() -> dict[str, RemoteFile]:
        found: dict[str, RemoteFile] = {}
        for seen, entry in enumerate(api.list_repo_tree(repo_id, revision=commit, recursive=True, repo_type=kind)):
            if seen >= MOST_FILES:
                raise InputError(f"{repo_id} has more than {MOST_FILES:,} files: it is not looked through")
            if isinstance(entry, RepoFile):
                file = RemoteFile(entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.size)
                found[entry.path] = file
        return found

    return patiently(listed, f"listing {repo_id}", once=once)


def remote_hashes(api: HfApi, repo_id: str, commit: str, *, kind: Kind = "model") -> dict[str, str]:
    """Return the hash that the Hub gives of each file at a commit."""
    return {name: file.hash for name, file in remote_files(api, repo_id, commit, kind=kind).items()}


def size_of(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def hash_like(content: Path | bytes, like: str) -> str:
    """Return the hash of `content` of the kind that `like` is: sha256, or git's sha1 of a blob."""
    if len(like) == 64:
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)
    digest = hashlib.sha1(f"blob {size_of(content)}\0".encode())
    digest.update(content if isinstance(content, bytes) else content.read_bytes())
    return digest.hexdigest()


def licence_on_the_hub(repo_id: str, revision: str | None = None) -> str:
    """Return the licence that a repository's card names, "" where it names no single one or cannot be read."""
    try:
        with guarded():
            card = HfApi().model_info(repo_id, revision=revision).card_data
    except Exception as error:  # the transport's own
        say(f"{repo_id}: its licence cannot be read ({error or type(error).__name__})")
        return ""
    licence = getattr(card, "license", None)
    is_named = isinstance(licence, str) and licence not in NO_LICENCES and LICENCE_ID.fullmatch(licence)
    return str(licence) if is_named else ""


def require_licence_id(license: str | None) -> None:
    """Raise `InputError` unless `license` may be an identifier of a licence on the Hub."""
    if license is not None and not LICENCE_ID.fullmatch(license):
        raise InputError(
            f"--license {license!r}: give the Hub's identifier, such as apache-2.0, mit, cc-by-4.0 or other"
        )
