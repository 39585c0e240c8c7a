"""Check names of repositories and revisions before anything is sent, and the ids that the Hub gives.

The rules of revisions are git's. Source: git-check-ref-format(1) of git 2.39.
"""

from __future__ import annotations

import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from seresnet_hub.errors import InputError

LONGEST = 200  # bytes: git keeps each part of a name as a file name, which has 255, and a lock beside it
FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


def branch_name(given: str) -> str:
    """Return the name of a branch without git's `refs/heads/`; `InputError` where git allows no such name."""
    return _checked("branch", given.removeprefix("refs/heads/"), given)


def tag_name(given: str) -> str:
    """Return the name of a tag without git's `refs/tags/`; `InputError` where git allows no such name."""
    return _checked("tag", given.removeprefix("refs/tags/"), given)


def require_revision(given: str) -> None:
    """Raise `InputError` unless the text may be a commit id, a branch, a tag, or a full name such as `refs/pr/1`."""
    if problem := _problem(given):
        raise InputError(f"{_shown(given)} is no name of a commit, a branch or a tag: {problem}")


def check_repo_id(repo_id: str) -> None:
    """Raise `InputError` unless the text is `NAMESPACE/NAME` as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it must be NAMESPACE/NAME")
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no name of a repository: {error}") from error


def _checked(kind: str, name: str, given: str) -> str:
    if problem := _other_meaning(name) or _problem(name):
        raise InputError(f"{_shown(given)} cannot be the name of a {kind}: {problem}")
    return name


def _shown(given: str) -> str:
    return repr(given if len(given) <= 60 else given[:60] + "…")


def _other_meaning(name: str) -> str:
    """Return why git would take the name for another revision than a branch or a tag, "" where it would not."""
    if name.startswith("refs/"):
        return "leave out refs/ and what kind it is"
    if is_hash(name):
        return "it looks like a commit id"
    return "git has its own meaning for it" if name in ("@", "HEAD") else ""


def _problem(name: str) -> str:
    if not name:
        return "it is empty"
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST:
        return f"it has more than {LONGEST} bytes"
    if name == "@":
        return "git forbids it"
    if (found := FORBIDDEN.search(name)) or not name.isprintable():
        return f"git forbids {found.group()!r} in it" if found else "it has characters that cannot be printed"
    if name.startswith(("-", "/")) or name.endswith(("/", ".")):
        return "git forbids its first or last character"
    if any(part.startswith(".") or part.endswith(".lock") for part in name.split("/")):
        return "git forbids parts that start with a dot or end with .lock"
    return ""


def is_hash(text: object) -> bool:
    """Return whether `text` is a git commit's or blob's sha1, or a sha256."""
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


def check_commit(commit: object, repo_id: str) -> str:
    """Return a commit id as the Hub gave it; errors where it is none: it becomes the name of a folder in the cache."""
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise InputError(f"{repo_id}: the Hub names a commit {str(commit)[:60]!r}, which is no commit id")
    return commit
