"""Fetch a repository's files into the Hub's cache, and compare their bytes with the hashes that the Hub gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from seresnet_hub.errors import InputError
from seresnet_hub.folder import CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.hub_client import (
    explained,
    hash_like,
    head_of,
    is_transient,
    patiently,
    remote_hashes,
    say,
    status_of,
)

CACHE_ALONE = "only the files in the cache are looked at; the repository may have others"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Files of a repository at one commit, in the cache: where they lie, and the hash that each must have."""

    repo_id: str
    commit: str
    paths: Mapping[str, Path]
    hashes: Mapping[str, str]

    def wrong(self) -> list[str]:
        """Return the names of the files whose bytes are not what the Hub says they are."""
        return [
            name
            for name, path in self.paths.items()
            if not path.is_file() or hash_like(path, self.hashes[name]) != self.hashes[name]
        ]


def take_snapshot(repo_id: str, revision: str | None, *, names: tuple[str, ...] | None) -> Snapshot:
    """Return the wanted files (None: all but pickles) of a repository from the cache, fetching those that lack.

    Without a network, where nobody says what the repository has, all are those that the cache holds.
    """
    api = HfApi()
    revision = revision or constants.DEFAULT_REVISION
    cached = _cached(repo_id, revision, names)
    if constants.HF_HUB_OFFLINE and cached is not None:
        if names is None:
            say(f"{repo_id}: HF_HUB_OFFLINE is set: {CACHE_ALONE}")
        return cached
    try:
        if cached is not None:
            api.model_info(repo_id, revision=revision)
    except Exception as error:  # the transport's own
        if status_of(error) is None and is_transient(error):
            say(f"{repo_id}: the Hub is out of reach: {CACHE_ALONE if names is None else 'using what is in the cache'}")
            return cached  # type: ignore[return-value]
    for _ in range(3):
        commit = _existing(api, repo_id, revision)
        hashes = remote_hashes(api, repo_id, commit)
        if WEIGHTS_NAME not in hashes and (names is None or WEIGHTS_NAME in names):
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
    """Return what the cache holds of the wanted files, if it is all of them (None: a model's two files and any others).

    The cache names a file's bytes by the hash that the Hub gave for them, so they can be checked without a network.
    """
    weights = try_to_load_from_cache(repo_id, WEIGHTS_NAME, revision=revision)
    if not isinstance(weights, str):
        return None
    folder = Path(weights).parent
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if any(name not in found for name in ((CONFIG_NAME,) if names is None else names)):
        return None
    wanted = [name for name in found if not name.endswith(PICKLES)] if names is None else names
    hashes = {name: found[name].resolve().name for name in wanted}
    if not all(re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value) for value in hashes.values()):
        return None  # a file system without links keeps no hashes
    paths = {name: found[name] for name in wanted}
    return Snapshot(repo_id=repo_id, commit=folder.name, paths=paths, hashes=hashes)


def sound(snapshot: Snapshot) -> Snapshot:
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
