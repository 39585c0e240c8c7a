"""Put model folders on the Hub and get them back, whole: bytes that are not what they must be are an error.

The Hub's client does not retry a commit, and cannot know whether one whose answer was lost has happened; timm's loader
takes whatever bytes arrive, and a pickle where the safetensors file cannot be had. This module looks before it repeats,
and checks before it loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    ModelCard,
    constants,
    get_token,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id
from safetensors.torch import load_file
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.folder import (
    CARD_NAME,
    CONFIG_NAME,
    CURVES_NAME,
    FACTS_KEY,
    SUMMARY_NAME,
    WEIGHTS_NAME,
    read_json,
    sha256_of,
)
from seresnet_hub.hub_client import (
    Conflict,
    changed_files,
    explained,
    hash_like,
    head_of,
    is_transient,
    licence_on_the_hub,
    patiently,
    remote_hashes,
    say,
    size_of,
    status_of,
)
from seresnet_hub.models import create, resolve_name
from seresnet_hub.pretrained import VerifiedFile
from seresnet_hub.snippets import on_the_hub

REQUIRED_FILES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME)
OPTIONAL_FILES = (SUMMARY_NAME, CURVES_NAME)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


# --- push -------------------------------------------------------------------------------------------------------------


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

    The folder is checked first. `private` counts where the repository is new; `pr` opens a pull request; `dry_run`
    changes nothing, and without a login checks the folder alone: `changed` is then None. Bytes that are there already
    make no commit. Errors: `InputError` says what happened and what to do; the repository is then as it was, or, where
    only the tag failed, has the whole commit.
    """
    if pr and (branch or tag):
        raise InputError("a pull request has neither branch nor tag of its own: leave out --branch and --tag")
    message = message or f"Upload {Path(directory).resolve().name}"
    revision = branch or constants.DEFAULT_REVISION
    files = _checked(Path(directory), repo_id)
    api = HfApi()
    say(
        f"{directory}: the model loads and runs, and its card is valid: "
        f"{sum(size_of(content) for content in files.values()) / 1e6:.1f} MB in {len(files)} files for {repo_id}"
    )
    if dry_run and get_token() is None:
        say("not logged in to the Hub, so nothing there was looked at: whether you may write, and what it has already")
        return {"repo_id": repo_id, "commit": None, "url": f"{api.endpoint}/{repo_id}", "files": list(files),
                "changed": None}  # fmt: skip
    _require_token()
    head = _ready_repository(api, repo_id, revision, private=private, dry_run=dry_run)
    changed = changed_files(files, remote_hashes(api, repo_id, head)) if head else list(files)
    result: dict[str, Any] = {"repo_id": repo_id, "commit": head, "url": "", "files": list(files), "changed": changed}
    if tag and head and (tagged := _tags(api, repo_id).get(tag)) and (changed or tagged != head):
        raise InputError(f"{repo_id} has a tag {tag!r} already, on commit {tagged[:12]}: choose another, or delete it")
    if dry_run or head is None:
        return {**result, "url": f"{api.endpoint}/{repo_id}"}
    if changed and pr:
        result |= _open_pull_request(api, repo_id, files, changed, message, head)
    elif changed:
        result["commit"] = _commit(api, repo_id, revision, files, changed, message, head)
    else:
        say(f"{repo_id} has these bytes already: no commit")
    if tag:
        _tag(api, repo_id, tag, result["commit"])
    return {**result, "url": result["url"] or f"{api.endpoint}/{repo_id}/tree/{result['commit']}"}


def _checked(directory: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Return the files to push after showing that they are a model that loads and a card that says what is needed."""
    _check_repo_id(repo_id)
    missing = [name for name in REQUIRED_FILES if not (directory / name).is_file()]
    if missing:
        raise InputError(f"{directory} is no model folder: it lacks {', '.join(missing)}")
    model = _load_exactly(directory)
    for name in _unlike_recorded(directory):
        raise InputError(f"{directory / name} is not the file that {CONFIG_NAME} describes: its sha256 differs")
    _forward(model, directory)
    text = _checked_card(directory / CARD_NAME)
    files: dict[str, Path | bytes] = {name: directory / name for name in (*REQUIRED_FILES, *OPTIONAL_FILES)}
    files[CARD_NAME] = on_the_hub(text, repo_id).encode()
    return {name: content for name, content in files.items() if isinstance(content, bytes) or content.is_file()}


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it must be NAMESPACE/NAME")
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no name of a repository: {error}") from error


def _load_exactly(directory: Path) -> nn.Module:
    """Return the folder's model on the file's own bytes, tensor for tensor; stricter than timm, and without a copy."""
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(f"local-dir:{directory}", pretrained=False)
        wanted = model.state_dict()
        if any(buffer.is_meta for name, buffer in model.named_buffers() if name not in wanted):
            model = timm.create_model(f"local-dir:{directory}", pretrained=False)  # constants that no file has
        tensors = load_file(directory / WEIGHTS_NAME)
        model.load_state_dict(tensors, strict=True, assign=True)
    except Exception as error:  # timm, json and safetensors each raise their own
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise InputError(f"{directory} does not load: {reason}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{directory / WEIGHTS_NAME}: tensor {name!r} has NaN or infinite values")
    return model.eval()


@torch.no_grad()
def _forward(model: nn.Module, origin: object) -> None:
    """Run the model on one grey image; errors where it does not compute finite numbers."""
    size = model.pretrained_cfg["input_size"]  # type: ignore[index]
    dtype = next(model.parameters()).dtype
    try:
        logits = model.eval()(torch.zeros(1, *size, dtype=dtype))
    except Exception as error:  # whatever the model makes of it
        raise InputError(f"{origin} loads but does not run: {error}") from error
    if not bool(torch.isfinite(logits).all()):
        raise InputError(f"{origin} computes NaN or infinite values")


def _recorded_hashes(directory: Path) -> dict[str, str]:
    """Return the sha256 that `config.json` records of the folder's files, by name."""
    facts = read_json(directory / CONFIG_NAME).get(FACTS_KEY)
    hashes = facts.get("sha256") if isinstance(facts, dict) else None
    known = (*REQUIRED_FILES, *OPTIONAL_FILES)
    return {name: str(hashes[name]) for name in known if name in hashes} if isinstance(hashes, dict) else {}


def _unlike_recorded(directory: Path) -> Iterator[str]:
    """Yield the names of the files whose sha256 is not the one that `config.json` records."""
    hashes = _recorded_hashes(directory)
    return (name for name, expected in hashes.items() if sha256_of(directory / name) != expected)


def _checked_card(path: Path) -> str:
    """Return the card's text; errors where the Hub could not show it, or it names no licence."""
    try:
        text = path.read_text(encoding="utf-8")
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
    return text


def _require_token() -> None:
    if get_token() is None:
        raise InputError("you are not logged in to the Hub: run 'hf auth login', or set HF_TOKEN")


def _ready_repository(api: HfApi, repo_id: str, revision: str, *, private: bool, dry_run: bool) -> str | None:
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
    response = get_session().post(
        f"{api.endpoint}/api/repos/create",
        headers=build_hf_headers(),
        json={
            "name": name,
            "organization": namespace,
            "type": "model",
            "visibility": "private" if private else "public",
        },
    )
    if response.status_code == 409 and "conflicting operation" in response.text:
        raise Conflict(f"the Hub is busy creating another repository for {namespace}")
    if response.status_code != 409:  # which says that it is there, made by somebody else a moment ago
        hf_raise_for_status(response)


def _commit(
    api: HfApi, repo_id: str, revision: str, files: Mapping[str, Path | bytes], changed: list[str], message: str,
    parent: str,
) -> str:  # fmt: skip
    """Commit the changed files on top of `parent` and return the commit; never twice, never over somebody else's."""

    def commit() -> str:
        return api.create_commit(
            repo_id, _operations(files, changed), commit_message=message, revision=revision, parent_commit=parent
        ).oid

    def happened() -> str | None:
        now = head_of(api, repo_id, revision)
        if now == parent:
            return None
        if not changed_files(files, remote_hashes(api, repo_id, now)):
            return now
        raise _overtaken(repo_id, revision, now)

    try:
        return patiently(commit, f"committing to {repo_id}", happened=happened)
    except HfHubHTTPError as error:
        if status_of(error) != 412:
            raise explained(error, f"push to {repo_id}") from error
        raise _overtaken(repo_id, revision, head_of(api, repo_id, revision)) from error


def _overtaken(repo_id: str, revision: str, now: str) -> InputError:
    return InputError(
        f"somebody else pushed to {repo_id} ({revision}) meanwhile: it is at {now[:12]}, and nothing of this push is "
        f"in it; look at that commit, then push again to put yours on top"
    )


def _operations(files: Mapping[str, Path | bytes], changed: list[str]) -> list[CommitOperationAdd]:
    return [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(content) if isinstance(content, Path) else content)
        for name, content in files.items()
        if name in changed
    ]


def _open_pull_request(
    api: HfApi, repo_id: str, files: Mapping[str, Path | bytes], changed: list[str], message: str, parent: str
) -> dict[str, Any]:
    """Open a pull request with the changed files, unless one of this title with these bytes is open already."""

    def opened() -> dict[str, Any] | None:
        for request in api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="open"):
            if request.title != message:
                continue
            reference = f"refs/pr/{request.num}"
            commit = head_of(api, repo_id, reference)
            if not changed_files(files, remote_hashes(api, repo_id, commit)):
                return {"commit": commit, "url": f"{api.endpoint}/{repo_id}/discussions/{request.num}"}
        return None

    def commit() -> dict[str, Any]:
        made = api.create_commit(
            repo_id, _operations(files, changed), commit_message=message, create_pr=True, parent_commit=parent
        )
        return {"commit": made.oid, "url": made.pr_url}

    already = patiently(opened, f"looking for pull requests in {repo_id}")
    if already:
        say(f"this pull request is open already: {already['url']}")
        return {**already, "changed": []}
    return patiently(commit, f"opening a pull request in {repo_id}", happened=opened)


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


# --- pull, verify, load -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Files of a repository at one commit, in the cache: where they lie, and the hash that each must have."""

    repo_id: str
    commit: str
    paths: Mapping[str, Path]
    hashes: Mapping[str, str]

    def wrong(self) -> list[str]:
        """Return the names of the files whose bytes are not what the Hub says they are."""
        return [name for name, path in self.paths.items() if hash_like(path, self.hashes[name]) != self.hashes[name]]


def load(name: str, *, pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """Create the model that `name` means, in eval mode, from weights whose every byte was checked, never from a pickle.

    `name` is a timm name, `NS/NAME[@rev]` or `hf-hub:NS/NAME[@rev]`, `local-dir:DIR`, or mmpretrain's name of weights
    that this package has. Damaged files in the cache are fetched once more. Without a network, what is in the cache is
    used. Errors: `InputError`.
    """
    name = resolve_name(name)
    repository = _repository(name)
    if not pretrained or (repository is None and name.startswith("local-dir:")):
        if pretrained:
            _check_folder(Path(name.removeprefix("local-dir:")))
        return create(name, pretrained=pretrained, **kwargs)
    if repository is not None:
        snapshot = _sound(_snapshot(*repository, names=(CONFIG_NAME, WEIGHTS_NAME)))
        model = create(f"local-dir:{snapshot.paths[CONFIG_NAME].parent}", **kwargs)
        model.pretrained_cfg = {**model.pretrained_cfg, "hf_hub_id": snapshot.repo_id, "source": "hf-hub"}  # type: ignore[dict-item, assignment]
        return model
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None or isinstance(cfg.file, VerifiedFile) or not cfg.has_weights:
        return create(name, **kwargs)  # ours, which checks itself; or an error that timm words well
    if not cfg.hf_hub_id:
        raise InputError(f"the weights of {name} are published as a pickle only ({cfg.url}): convert them first")
    snapshot = _sound(_snapshot(cfg.hf_hub_id, None, names=(WEIGHTS_NAME,)))
    return create(name, pretrained_cfg_overlay={"file": str(snapshot.paths[WEIGHTS_NAME])}, **kwargs)


class Origin(NamedTuple):
    """Where weights come from: a name without the folders of this machine, the Hub repository, and the licence.

    `repo_id` is empty where they are not on the Hub, `license` where none is named.
    """

    name: str
    repo_id: str
    license: str


def origin_of(name: str) -> Origin:
    """Return where the weights that `load` takes under this name come from; errors as for `load`."""
    name = resolve_name(name)
    repository = _repository(name)
    if repository is not None:
        repo_id, revision = repository
        snapshot = _sound(_snapshot(*repository, names=(CONFIG_NAME, WEIGHTS_NAME)))
        license = _licence_in(snapshot.paths[CONFIG_NAME]) or licence_on_the_hub(repo_id, revision)
        return Origin(f"hf-hub:{repo_id}" + (f"@{revision}" if revision else ""), repo_id, license)
    if name.startswith("local-dir:"):
        directory = Path(name.removeprefix("local-dir:"))
        _require_safetensors(directory)
        return Origin(f"local-dir:{directory.resolve().name}", "", _licence_in(directory / CONFIG_NAME))
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return Origin(name, (cfg.hf_hub_id or "") if cfg else "", (cfg.license or "") if cfg else "")


def _licence_in(path: Path) -> str:
    """Return the licence that a `config.json` names, among our facts or timm's."""
    config = read_json(path)
    named = (config.get(key, {}).get("license") for key in (FACTS_KEY, "pretrained_cfg"))
    return next((str(license) for license in named if license), "")


def verify(name: str) -> dict[str, Any]:
    """Compare every file of a model with the hash it must have, load it and run it, and return what was found.

    `name` is `NS/NAME[@rev]`, `hf-hub:NS/NAME[@rev]`, or `local-dir:DIR`, whose hashes `config.json` records. Pickles
    are not fetched. `ok` says whether everything holds. Errors: `InputError` where there is nothing to compare.
    """
    repository = _repository(name)
    if repository is None and not name.startswith("local-dir:"):
        cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if cfg is None or not cfg.hf_hub_id:
            raise InputError(f"{name!r} is no repository of the Hub and no local-dir:DIR")
        repository = cfg.hf_hub_id, None
    if repository is None:
        directory = Path(name.removeprefix("local-dir:"))
        _require_safetensors(directory)
        hashes = _recorded_hashes(directory)
        if not hashes:
            raise InputError(f"{directory / CONFIG_NAME} records no hashes: there is nothing to compare with")
        snapshot = Snapshot(repo_id="", commit="", paths={file: directory / file for file in hashes}, hashes=hashes)
    else:
        snapshot = _snapshot(*repository, names=None)
        directory = snapshot.paths[WEIGHTS_NAME].parent
    wrong = snapshot.wrong()
    for file in wrong:
        say(f"{snapshot.paths[file]} is not what it must be ({snapshot.hashes[file]}): delete it and fetch it again")
    ok = not wrong
    if ok and CONFIG_NAME in {path.name for path in directory.iterdir()}:
        try:
            _forward(_load_exactly(directory), name)
        except InputError as error:
            say(str(error))
            ok = False
    files = {file: {"hash": snapshot.hashes[file], "ok": file not in wrong} for file in sorted(snapshot.paths)}
    return {"repo_id": snapshot.repo_id or name, "commit": snapshot.commit, "files": files, "ok": ok}


def _repository(name: str) -> tuple[str, str | None] | None:
    """Return the repository and the revision that `name` means, None if it means none."""
    given = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if given == name and (name.startswith("local-dir:") or name.count("/") != 1):
        return None
    repo_id, _, revision = given.partition("@")
    _check_repo_id(repo_id)
    return repo_id, revision or None


def _require_safetensors(directory: Path) -> None:
    if not directory.is_dir():
        raise InputError(f"{directory}: there is no such folder")
    if not (directory / WEIGHTS_NAME).is_file():
        raise InputError(f"{directory} has no {WEIGHTS_NAME}, and pickles are not loaded: convert them first")


def _check_folder(directory: Path) -> None:
    """Raise `InputError` unless the folder's files are those that its `config.json` records, if it records any."""
    _require_safetensors(directory)
    for name in _unlike_recorded(directory):
        raise InputError(f"{directory / name} is damaged or was exchanged: {CONFIG_NAME} records another sha256")


def _snapshot(repo_id: str, revision: str | None, *, names: tuple[str, ...] | None) -> Snapshot:
    """Return the wanted files (None: all but pickles) of a repository from the cache, fetching those that lack."""
    api = HfApi()
    revision = revision or constants.DEFAULT_REVISION
    cached = _cached(repo_id, revision, names)
    if constants.HF_HUB_OFFLINE and cached is not None:
        return cached
    try:
        if cached is not None:
            api.model_info(repo_id, revision=revision)
    except Exception as error:  # the transport's own
        if status_of(error) is None and is_transient(error):
            say(f"{repo_id}: the Hub is out of reach; using what is in the cache")
            return cached  # type: ignore[return-value]
    for _ in range(3):
        commit = _existing(api, repo_id, revision)
        hashes = remote_hashes(api, repo_id, commit)
        if WEIGHTS_NAME not in hashes:
            pickles = [name for name in hashes if name.endswith(PICKLES)]
            only = f", only {', '.join(pickles)}, and pickles are not loaded" if pickles else ""
            raise InputError(f"{repo_id} has no {WEIGHTS_NAME}{only}")
        wanted = [name for name in hashes if not name.endswith(PICKLES)] if names is None else names
        if missing := [name for name in wanted if name not in hashes]:
            raise InputError(f"{repo_id} has no {', '.join(missing)} at {commit[:12]}")
        paths = {name: _download(repo_id, name, revision) for name in wanted}
        if all(commit in path.parts for path in paths.values()):
            return Snapshot(repo_id=repo_id, commit=commit, paths=paths, hashes={name: hashes[name] for name in wanted})
        say(f"{repo_id} has changed meanwhile: fetching it again")
    raise InputError(f"{repo_id} changes faster than it can be fetched: name a commit, {repo_id}@COMMIT")


def _existing(api: HfApi, repo_id: str, revision: str) -> str:
    try:
        return head_of(api, repo_id, revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise explained(error, f"{repo_id}@{revision}") from error


def _download(repo_id: str, name: str, revision: str, *, again: bool = False) -> Path:
    return Path(
        patiently(
            lambda: hf_hub_download(repo_id, name, revision=revision, force_download=again),
            f"fetching {name} of {repo_id}",
        )
    )


def _cached(repo_id: str, revision: str, names: tuple[str, ...] | None) -> Snapshot | None:
    """Return what the cache holds of the wanted files, if it is all of them.

    The cache names a file's bytes by the hash that the Hub gave for them, so they can be checked without a network.
    """
    weights = try_to_load_from_cache(repo_id, WEIGHTS_NAME, revision=revision)
    if not isinstance(weights, str):
        return None
    folder = Path(weights).parent
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    wanted = [name for name in found if not name.endswith(PICKLES)] if names is None else names
    if any(name not in found for name in wanted):
        return None
    hashes = {name: found[name].resolve().name for name in wanted}
    if not all(re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value) for value in hashes.values()):
        return None  # a file system without links keeps no hashes
    paths = {name: found[name] for name in wanted}
    return Snapshot(repo_id=repo_id, commit=folder.name, paths=paths, hashes=hashes)


def _sound(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot, with damaged files fetched once more; errors where they are damaged again."""
    wrong = snapshot.wrong()
    for name in wrong:
        say(f"{snapshot.paths[name]} is damaged: fetching it again")
        _download(snapshot.repo_id, name, snapshot.commit, again=True)
    if wrong and (still := snapshot.wrong()):
        raise InputError(
            f"{', '.join(still)} of {snapshot.repo_id} arrive with other bytes than the Hub says they have: nothing "
            f"was loaded; try again later, or from another network"
        )
    return snapshot
