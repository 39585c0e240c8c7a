"""Put model folders on the Hub, whole or not at all.

The Hub's client does not retry a commit, and cannot know whether one whose answer was lost has happened: this module
looks before it repeats. `load` gets models back, checked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from seresnet_hub.cards.exported_files import with_exports
from seresnet_hub.cards.snippets import on_the_hub
from seresnet_hub.engines.exported_names import exported_name
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.hub.client import head_of, remote_hashes, size_of
from seresnet_hub.hub.failures import Conflict, explained, status_of
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.retries import Overtaken, patiently
from seresnet_hub.hub.revisions import branch_name, check_commit, check_repo_id, tag_name
from seresnet_hub.models.config_checks import checked_config
from seresnet_hub.models.load import unlike_recorded
from seresnet_hub.models.strict_loading import load_folder
from seresnet_hub.models.trial_forward import check_runs
from seresnet_hub.publishing.exported_files_to_push import unlike_the_model
from seresnet_hub.publishing.files_to_push import FilesToPush, files_to_push


def push(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    branch: str | None = None,
    tag: str | None = None,
    pr: bool = False,
    message: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Put the model folder `directory` into the Hub repository `repo_id` in one commit, and return what changed.

    The folder is checked first, and each file in it: `files_to_push` says how. `private` counts where the repository
    is new; `pr` opens a pull request; `dry_run` changes nothing, and without a login checks the folder alone:
    `changed` is then None. Bytes that are there already make no commit. Errors: `InputError` says what happened and
    what to do; the repository is then as it was, or, where only the tag failed, has the whole commit.
    """
    if pr and (branch is not None or tag is not None):
        raise InputError("a pull request has neither branch nor tag of its own: leave out --branch and --tag")
    if exported_name(directory) is not None:
        raise InputError(f"{directory} is an exported file: push the model folder it lies in, whose exports go with it")
    message = message or f"Upload {Path(directory).resolve().name}"
    revision = constants.DEFAULT_REVISION if branch is None else branch_name(branch)
    tag = None if tag is None else tag_name(tag)
    pushed = checked_files(Path(directory), repo_id)
    api = HfApi()
    say(
        f"{directory}: the model loads and runs, and its card is valid: "
        f"{sum(map(size_of, pushed.files.values())) / 1e6:.1f} MB in {len(pushed.files)} files for {repo_id}"
    )
    result: dict[str, Any] = {"repo_id": repo_id, "commit": None, "url": f"{api.endpoint}/{repo_id}",
                              "files": list(pushed.files), "changed": None}  # fmt: skip
    if get_token() is None:
        if dry_run:
            looked_at = "whether you may write, and what it has already"
            say(f"not logged in to the Hub, so nothing there was looked at: {looked_at}")
            return result
        raise InputError("you are not logged in to the Hub: run 'hf auth login', or set HF_TOKEN")
    head = ready_repository(api, repo_id, revision, private=private, dry_run=dry_run)
    changed = pushed.unlike(remote_hashes(api, repo_id, head) if head else {})
    result |= {"commit": head, "changed": changed}
    if tag and head and (tagged := _tags(api, repo_id).get(tag)) and (changed or tagged != head):
        raise InputError(f"{repo_id} has a tag {tag!r} already, on commit {tagged[:12]}: choose another, or delete it")
    if dry_run or head is None:
        return result
    upload = _Upload(api=api, repo_id=repo_id, pushed=pushed, changed=changed, message=message, parent=head)
    if changed and pr:
        return result | upload.open_pull_request()
    if changed:
        result["commit"] = upload.commit(revision)
    else:
        say(f"{repo_id} has these bytes already: no commit")
    if tag:
        _tag(api, repo_id, tag, result["commit"])
    return result | {"url": f"{api.endpoint}/{repo_id}/tree/{result['commit']}"}


def checked_files(directory: Path, repo_id: str) -> FilesToPush:
    """Return the files to push after showing that they are a model that loads and a card that says what is needed."""
    check_repo_id(repo_id)
    read = files_to_push(directory)
    model = load_folder(directory, directory, {}, copy=False)
    weights = read.sha256[WEIGHTS_NAME]
    if name := next(unlike_recorded(directory, {WEIGHTS_NAME: weights}), None):
        raise InputError(f"{directory / name} is not the file that {CONFIG_NAME} describes: its sha256 differs")
    check_runs(model, directory)
    text, license = _checked_card(directory / CARD_NAME, read.small_files[CARD_NAME])
    config = checked_config(directory / CONFIG_NAME)
    for record, problem in unlike_the_model(read.records, model, config, weights, license):
        raise InputError(f"{record.name}: {problem}: export the model again, or delete that file and {record.path}")
    read.require_unchanged()
    sizes = {name: size_of(content) for name, content in read.files.items()}
    text = with_exports(on_the_hub(text, repo_id), read.records, sizes, repo_id)
    return replace(read, small_files={**read.small_files, CARD_NAME: text.encode()})


def _checked_card(path: Path, content: bytes) -> tuple[str, str]:
    """Return the card's text and its licence; errors where the Hub could not show it, or it names none."""
    try:
        text = content.decode()
        front: Any = ModelCard(text, ignore_metadata_errors=False).data
        front.to_yaml()
    except Exception as error:  # the disk, yaml and huggingface_hub each raise their own
        raise InputError(f"{path}: its front matter is not valid: {' '.join(str(error).split())}") from error
    if not front.license:
        raise InputError(
            f"{path} names no licence, and without one nobody may use the weights: if you know it, convert them again "
            "with --license ID, or train with --set license=ID"
        )
    if front.library_name != "timm" or front.pipeline_tag != "image-classification":
        raise InputError(f"{path}: its front matter needs 'library_name: timm', 'pipeline_tag: image-classification'")
    return text, str(front.license)


def ready_repository(api: HfApi, repo_id: str, revision: str, *, private: bool, dry_run: bool) -> str | None:
    """Return the commit that `revision` is at, creating repository and branch where there are none.

    None in a dry run where they do not exist.
    """
    lacks_repository = False
    try:
        return head_of(api, repo_id, revision)
    except RepositoryNotFoundError:
        lacks_repository = True
    except RevisionNotFoundError:
        pass
    if dry_run:
        return None
    if lacks_repository:
        patiently(lambda: _create_repository(api, repo_id, private=private), f"creating {repo_id}")
    if revision != constants.DEFAULT_REVISION:
        patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), f"creating branch {revision!r}")
    return head_of(api, repo_id, revision)


def _create_repository(api: HfApi, repo_id: str, *, private: bool) -> None:
    """Create the repository; the client's own call repeats without pause or end while another creation goes on."""
    namespace, name = repo_id.split("/")
    asked = {"name": name, "organization": namespace, "type": "model", "visibility": "private" if private else "public"}
    response = get_session().post(f"{api.endpoint}/api/repos/create", headers=build_hf_headers(), json=asked)
    if response.status_code == 409 and "conflicting operation" in response.text:
        raise Conflict(f"the Hub is busy creating another repository for {namespace}")
    if response.status_code != 409:  # which says that it is there, made by somebody else a moment ago
        hf_raise_for_status(response)


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """The files that a push sends, those of them that `changed`, and the commit `parent` that they go on top of."""

    api: HfApi
    repo_id: str
    pushed: FilesToPush
    changed: list[str]
    message: str
    parent: str

    def commit(self, revision: str) -> str:
        """Commit the changed files and return the commit; never twice, never over somebody else's.

        Where somebody else has committed the same bytes meanwhile, their commit is returned.
        """
        api, repo_id, parent = self.api, self.repo_id, self.parent
        operations = self._uploaded_operations(revision)

        def commit() -> str:
            made = api.create_commit(
                repo_id, operations, commit_message=self.message, revision=revision, parent_commit=parent
            )
            return check_commit(made.oid, repo_id)

        def happened() -> str | None:
            now = head_of(api, repo_id, revision)
            if now == parent:
                return None
            for since in _commits_since(api, repo_id, now, parent):
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
        return not self.pushed.unlike(remote_hashes(self.api, self.repo_id, commit))

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
                    self.repo_id, [added], revision=revision, create_pr=revision is None, free_memory=False
                ),
                f"uploading {name} to {self.repo_id}",
            )
            operations.append(added)
        return operations


def _commits_since(api: HfApi, repo_id: str, now: str, parent: str) -> list[str]:
    """Return the commits from `now` back to the one on top of `parent`, newest first."""
    listed = patiently(lambda: api.list_repo_commits(repo_id, revision=now), f"listing the commits of {repo_id}")
    commits = [check_commit(commit.commit_id, repo_id) for commit in listed]
    return commits[: commits.index(parent)] if parent in commits else commits[:1]


def _tags(api: HfApi, repo_id: str) -> dict[str, str]:
    refs = patiently(lambda: api.list_repo_refs(repo_id), f"listing the tags of {repo_id}")
    return {tag.name: tag.target_commit for tag in refs.tags}


def _tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    patiently(
        lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True), f"tagging {repo_id} with {tag!r}"
    )
    found = _tags(api, repo_id).get(tag)
    if found != commit:
        raise InputError(
            f"the commit {commit[:12]} is in {repo_id}, but the tag {tag!r} is on {str(found)[:12]}: choose another tag"
        )
