"""Put model folders on the Hub, whole or not at all; `load` gets models back, checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, constants, get_token

from seresnet_hub.cards.exported_files import with_exports
from seresnet_hub.cards.snippets import on_the_hub
from seresnet_hub.engines.exported_names import exported_name
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.hub.client import remote_hashes, size_of
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.retries import patiently
from seresnet_hub.hub.revisions import branch_name, check_repo_id, tag_name
from seresnet_hub.models.config_checks import checked_config
from seresnet_hub.models.load import unlike_recorded
from seresnet_hub.models.strict_loading import load_folder
from seresnet_hub.models.trial_forward import check_runs
from seresnet_hub.publishing.exported_files_to_push import unlike_the_model
from seresnet_hub.publishing.files_to_push import FilesToPush, files_to_push
from seresnet_hub.publishing.upload import Upload, ready_repository


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
    upload = Upload(api=api, repo_id=repo_id, pushed=pushed, changed=changed, message=message, parent=head)
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
