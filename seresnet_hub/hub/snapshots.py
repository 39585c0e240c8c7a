"""Fetch a repository's files into the Hub's cache, and compare their bytes with the hashes that the Hub gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.hub.client import hash_like, head_of, remote_files
from seresnet_hub.hub.download_limits import check_listing, most_bytes
from seresnet_hub.hub.failures import explained, status_of
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.retries import patiently
from seresnet_hub.hub.revisions import is_hash

CACHE_ALONE = "only the files in the cache are looked at; the repository may have others"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def _is_pickle(name: str, names: Collection[str]) -> bool:
    """Return whether a file among others may be a pickle, by its name; beside an `.xml` a `.bin` is OpenVINO's."""
    return name.endswith(PICKLES) and not (name.endswith(".bin") and name.removesuffix(".bin") + ".xml" in names)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Files of a repository at one commit, in the cache: where they lie, and the hash and size that each must have.

    `sizes` lacks those of files that the cache alone has served.
    """

    repo_id: str
    commit: str
    paths: Mapping[str, Path]
    hashes: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def wrong(self) -> list[str]:
        """Return the names of the files whose bytes are not what the Hub says they are."""
        return [
            name
            for name, path in self.paths.items()
            if not path.is_file() or hash_like(path, self.hashes[name]) != self.hashes[name]
        ]


def take_snapshot(
    repo_id: str,
    revision: str | None,
    *,
    names: tuple[str, ...] | None,
    optional: tuple[str, ...] = (),
    check: bool = True,
) -> Snapshot:
    """Return the wanted files (None: all but pickles) of a repository from the cache, fetching the missing ones.

    With them come the `optional` ones that the repository has. Where the cache holds them, it serves while the Hub
    fails or is out of reach, or HF_HUB_OFFLINE is set; then "all files" means all that the cache holds. With `check`,
    damaged files are fetched once more. Errors: `InputError`, also where a file is damaged again, or larger than
    `download_limits` allows, before anything is fetched.
    """
    snapshot = _taken(repo_id, revision, names, optional)
    wrong = snapshot.wrong() if check else []
    for name in wrong:
        say(f"{snapshot.paths[name]} is damaged: fetching it again")
        size = snapshot.sizes.get(name, most_bytes(name))
        _download(repo_id, name, snapshot.commit, size, again=True)
    if wrong and (still := snapshot.wrong()):
        raise InputError(
            f"{', '.join(still)} of {repo_id} arrive with other bytes than the Hub says they have: nothing was loaded; "
            "try again later, or from another network"
        )
    return snapshot


def _taken(repo_id: str, revision: str | None, names: tuple[str, ...] | None, optional: tuple[str, ...]) -> Snapshot:
    revision = revision or constants.DEFAULT_REVISION
    cached = _cached(repo_id, revision, names, optional)
    if constants.HF_HUB_OFFLINE and cached is not None:
        if names is None:
            say(f"{repo_id}: HF_HUB_OFFLINE is set: {CACHE_ALONE}")
        return cached
    try:
        return _fresh(HfApi(), repo_id, revision, names, optional, once=cached is not None)
    except InputError:
        raise
    except Exception as error:  # the transport's own, raised only where the cache can serve
        if cached is None:
            raise explained(error, repo_id) from error
        status = status_of(error)
        reason = f"the Hub answered {status}" if status else "the Hub is out of reach"
        serves = f"using what is in the cache, commit {cached.commit[:12]}"
        say(f"{repo_id}: {reason}: {CACHE_ALONE if names is None else serves}")
        return cached


def _fresh(
    api: HfApi, repo_id: str, revision: str, names: tuple[str, ...] | None, optional: tuple[str, ...], *, once: bool
) -> Snapshot:
    """Return the files as the Hub has them now; with `once`, errors that pass are raised as they are."""
    for _ in range(3):
        commit = _existing(api, repo_id, revision, once=once)
        files = remote_files(api, repo_id, commit, once=once)
        if WEIGHTS_NAME not in files and (names is None or WEIGHTS_NAME in names):
            pickles = [name for name in files if _is_pickle(name, files)]
            only = f", only {', '.join(pickles[:10])}, and pickles are not loaded" if pickles else ""
            raise InputError(f"{repo_id} has no {WEIGHTS_NAME}{only}")
        wanted = [name for name in files if not _is_pickle(name, files)] if names is None else names
        if missing := [name for name in wanted if name not in files]:
            raise InputError(f"{repo_id} has no {', '.join(missing)} at {commit[:12]}")
        listed = {name: files[name] for name in (*wanted, *optional) if name in files}
        check_listing(repo_id, listed)
        paths = {name: _download(repo_id, name, revision, file.size, once=once) for name, file in listed.items()}
        if all(commit in path.parts for path in paths.values()):
            hashes = {name: file.hash for name, file in listed.items()}
            return Snapshot(
                repo_id=repo_id, commit=commit, paths=paths, hashes=hashes,
                sizes={name: file.size for name, file in listed.items()},
            )  # fmt: skip
        say(f"{repo_id} has changed meanwhile: fetching it again")
    raise InputError(f"{repo_id} changes faster than it can be fetched: name a commit, {repo_id}@COMMIT")


def _existing(api: HfApi, repo_id: str, revision: str, *, once: bool) -> str:
    try:
        return head_of(api, repo_id, revision, once=once)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise explained(error, f"{repo_id}@{revision}") from error


def _download(repo_id: str, name: str, revision: str, size: int, *, again: bool = False, once: bool = False) -> Path:
    return Path(
        patiently(
            lambda: hf_hub_download(repo_id, name, revision=revision, force_download=again),
            f"fetching {name} of {repo_id}",
            once=once,
            most_bytes=size,
        )
    )


def _cached(repo_id: str, revision: str, names: tuple[str, ...] | None, optional: tuple[str, ...]) -> Snapshot | None:
    """Return what the cache holds of the wanted files, if it is all of them (None: a model's two files and any others).

    The cache names a file's bytes by the hash that the Hub gave for them, so they can be checked without a network.
    """
    first = WEIGHTS_NAME if names is None else names[0]
    path = try_to_load_from_cache(repo_id, first, revision=revision)
    if not isinstance(path, str):
        return None
    folder = Path(path).parents[first.count("/")]
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if any(name not in found for name in ((CONFIG_NAME,) if names is None else names)):
        return None
    wanted = [name for name in found if not _is_pickle(name, found)] if names is None else list(names)
    wanted += [name for name in optional if name in found and name not in wanted]
    hashes = {name: found[name].resolve().name for name in wanted}
    if not all(is_hash(value) for value in hashes.values()):
        return None  # a file system without links keeps no hashes
    paths = {name: found[name] for name in wanted}
    return Snapshot(repo_id=repo_id, commit=folder.name, paths=paths, hashes=hashes)
