"""Make a repository of the Hub, and commit files to it: whole or not at all, once, and over nobody else's.

The Hub's client does not retry a commit, and cannot know whether one whose answer was lost has happened: this module
looks before it repeats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from seresnet_hub.hub.client import Kind, head_of, remote_hashes
from seresnet_hub.hub.failures import Conflict, explained, status_of
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.retries import Overtaken, patiently
from seresnet_hub.hub.revisions import check_commit
from seresnet_hub.publishing.files_to_push import FilesToPush

SPACE_SDK = "gradio"


def ready_repository(
    api: HfApi, repo_id: str, revision: str, *, private: bool, dry_run: bool, kind: Kind = "model"
) -> str | None:
    """Return the commit that `revision` is at, creating repository and branch where there are none.

    None in a dry run where they do not exist.
    """
    lacks_repository = False
    try:
        return head_of(api, repo_id, revision, kind=kind)
    except RepositoryNotFoundError:
        lacks_repository = True
    except RevisionNotFoundError:
        pass
    if dry_run:
        return None
    if lacks_repository:
        patiently(lambda: _create_repository(api, repo_id, private=private, kind=kind), f"creating {repo_id}")
    if revision != constants.DEFAULT_REVISION:
        patiently(
            lambda: api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=kind),
            f"creating branch {revision!r}",
        )
    return head_of(api, repo_id, revision, kind=kind)


def _create_repository(api: HfApi, repo_id: str, *, private: bool, kind: Kind) -> None:
    """Create the repository; the client's own call repeats without pause or end while another creation goes on."""
    namespace, name = repo_id.split("/")
    asked = {"name": name, "organization": namespace, "type": kind, "visibility": "private" if private else "public"}
    if kind == "space":
        asked["sdk"] = SPACE_SDK
    response = get_session().post(f"{api.endpoint}/api/repos/create", headers=build_hf_headers(), json=asked)
    if response.status_code == 409 and "conflicting operation" in response.text:
        raise Conflict(f"the Hub is busy creating another repository for {namespace}")
    if response.status_code != 409:  # which says that it is there, made by somebody else a moment ago
        hf_raise_for_status(response)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """The files that a push sends, those of them that `changed`, and the commit `parent` that they go on top of."""

    api: HfApi
    repo_id: str
    pushed: FilesToPush
    changed: list[str]
    message: str
    parent: str
    kind: Kind = "model"

    def commit(self, revision: str) -> str:
        """Commit the changed files and return the commit; never twice, never over somebody else's.

        Where somebody else has committed the same bytes meanwhile, their commit is returned.
        """
        api, repo_id, parent = self.api, self.repo_id, self.parent
        operations = self._uploaded_operations(revision)

        def commit() -> str:
            made = api.create_commit(
                repo_id,
                operations,
                commit_message=self.message,
                revision=revision,
                parent_commit=parent,
                repo_type=self.kind,
            )
            return check_commit(made.oid, repo_id)

        def happened() -> str | None:
            now = head_of(api, repo_id, revision, kind=self.kind)
            if now == parent:
                return None
            for since in _commits_since(api, repo_id, now, parent, self.kind):
                if self._is_at(since):
                    if since != now:
                        meanwhile = f"somebody else pushed on top of {since[:12]}"
                        say(f"{repo_id} ({revision}) is now at {now[:12]}: {meanwhile}")
                    return since
            raise Overtaken(
                f"somebody else pushed to {repo_id} ({revision}) meanwhile: it is at {now[:12]}, and nothing of this "
                "push is in it; look at that commit, then push again to put yours on top"
            )

        try:
            return patiently(commit, f"committing to {repo_id}", happened=happened)
        except HfHubHTTPError as error:
            if (status_of(error) == 412) and (found := happened()) is not None:
                say(f"{repo_id} has these bytes since a moment ago: no second commit")
                return found
            raise explained(error, f"push to {repo_id}") from error

    def open_pull_request(self) -> dict[str, Any]:
        """Open a pull request with the changed files, unless one of this title with these bytes is open already."""
        api, repo_id = self.api, self.repo_id

        def opened() -> dict[str, Any] | None:
            for request in api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="open"):
                if request.title != self.message:
                    continue
                commit = head_of(api, repo_id, f"refs/pr/{request.num}")
                if self._is_at(commit):
                    return {"commit": commit, "url": f"{api.endpoint}/{repo_id}/discussions/{request.num}"}
            return None

        def commit() -> dict[str, Any]:
            made = api.create_commit(
                repo_id, operations, commit_message=self.message, create_pr=True, parent_commit=self.parent
            )
            return {"commit": check_commit(made.oid, repo_id), "url": made.pr_url}

        already = patiently(opened, f"looking for pull requests in {repo_id}")
        if already:
            say(f"this pull request is open already: {already['url']}")
            return {**already, "changed": []}
        operations = self._uploaded_operations(None)
        return patiently(commit, f"opening a pull request in {repo_id}", happened=opened)

    def _is_at(self, commit: str) -> bool:
        return not self.pushed.unlike(remote_hashes(self.api, self.repo_id, commit, kind=self.kind))

    def _uploaded_operations(self, revision: str | None) -> list[CommitOperationAdd]:
        """Return what a commit adds, after sending the contents that the Hub keeps out of git, one after the other.

        Without `revision` it is for a pull request. Sending changes nothing: a commit does.
        """
        operations = []
        for name in self.changed:
            content = self.pushed.files[name]
            added = CommitOperationAdd(
                path_in_repo=name, path_or_fileobj=str(content) if isinstance(content, Path) else content
            )
            if isinstance(content, Path):
                self.pushed.require_hash(name, added.upload_info.sha256.hex())
            patiently(
                lambda added=added: self.api.preupload_lfs_files(  # type: ignore[misc]
                    self.repo_id,
                    [added],
                    revision=revision,
                    create_pr=revision is None,
                    free_memory=False,
                    repo_type=self.kind,
                ),
                f"uploading {name} to {self.repo_id}",
            )
            operations.append(added)
        return operations


def _commits_since(api: HfApi, repo_id: str, now: str, parent: str, kind: Kind) -> list[str]:
    """Return the commits from `now` back to the one on top of `parent`, newest first."""
    listed = patiently(
        lambda: api.list_repo_commits(repo_id, revision=now, repo_type=kind), f"listing the commits of {repo_id}"
    )
    commits = [check_commit(commit.commit_id, repo_id) for commit in listed]
    return commits[: commits.index(parent)] if parent in commits else commits[:1]
