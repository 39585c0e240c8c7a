"""Talk to the Hub through its client with patience, and turn what goes wrong into words.

Source: what the client does of itself when the Hub fails was measured with huggingface_hub 1.33 and 2.4: it repeats
downloads and the upload of large files, and neither a commit nor any other call.
"""

from __future__ import annotations

import errno
import hashlib
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # the transport's own, whichever library the client's version uses
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from tqdm import tqdm

from seresnet_hub.conversion_facts import require_licence_id
from seresnet_hub.errors import InputError, printable
from seresnet_hub.folder import sha256_of

# Seconds to wait before each further try; a Retry-After of the Hub's is honoured up to the longest.
WAITS = (1, 2, 4, 8, 16)
LONGEST_WAIT = 120
NO_LICENCES = ("unknown", "other")  # the Hub's words for one that it does not know
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})

Answer = TypeVar("Answer")


class Conflict(OSError):
    """A reason to wait and try again that the client has no error for."""


def head_of(api: HfApi, repo_id: str, revision: str) -> str:
    info = patiently(
        lambda: api.model_info(repo_id, revision=revision),
        f"asking for {repo_id}",
        passing=(RepositoryNotFoundError, RevisionNotFoundError),
    )
    return str(info.sha)


def remote_hashes(api: HfApi, repo_id: str, commit: str) -> dict[str, str]:
    """Return what the Hub says of each file at a commit: sha256 of large files, git's sha1 of others."""

    def listed() -> dict[str, str]:
        tree = api.list_repo_tree(repo_id, revision=commit, recursive=True)
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
        return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}

    return patiently(listed, f"listing {repo_id}")


def changed_files(files: Mapping[str, Path | bytes], remote: Mapping[str, str]) -> list[str]:
    return [
        name
        for name, content in files.items()
        if name not in remote or hash_like(content, remote[name]) != remote[name]
    ]


def size_of(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def hash_like(content: Path | bytes, like: str) -> str:
    """Return the hash of `content` of the kind that `like` is: sha256, or git's sha1 of a blob."""
    if len(like) == 64:
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)
    digest = hashlib.sha1(f"blob {size_of(content)}\0".encode())
    digest.update(content if isinstance(content, bytes) else content.read_bytes())
    return digest.hexdigest()


def patiently(
    work: Callable[[], Answer],
    what: str,
    *,
    happened: Callable[[], Answer | None] | None = None,
    passing: tuple[type[Exception], ...] = (),
) -> Answer:
    """Return what `work` does, trying again after errors that pass; `happened` finds out whether a try succeeded.

    Where nothing answers at all (see `no_network`) it is tried only twice.

    Errors: `InputError` in plain words, but for the types in `passing`; with `happened`, `HfHubHTTPError` of status 412
    too.
    """
    for tried, wait in enumerate((*WAITS, None)):
        try:
            return work()
        except InputError:
            raise
        except Exception as error:
            if isinstance(error, passing) or (happened and status_of(error) == 412):
                raise
            if wait is None or not is_transient(error) or (tried and no_network(error)):
                raise explained(error, what) from error
            pause = _pause(error, wait)
            say(f"{what}: {_short(error)}; trying again in {pause:g} s")
            time.sleep(pause)
        if happened and (found := happened()) is not None:
            say(f"{what}: it had happened, only the answer was lost")
            return found
    raise AssertionError("the last try returns or raises")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            response = getattr(cause, "response", None)
            return None if response is None else int(response.status_code)
    return None


def is_transient(error: Exception) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    return any(isinstance(cause, (HTTPError, ConnectionError, TimeoutError, Conflict)) for cause in _causes(error))


def no_network(error: BaseException) -> bool:
    """Return whether nothing answers at all: a name does not resolve, a connection is refused, or Hub use is off.

    Waiting rarely helps then.
    """
    causes = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return True
    if status_of(error) is not None:
        return False
    return any(isinstance(cause, (socket.gaierror, ConnectionRefusedError)) for cause in causes) or any(
        isinstance(cause, OSError) and cause.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH) for cause in causes
    )


def _pause(error: Exception, usual: float) -> float:
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        if re.fullmatch(r"\d+(\.\d+)?", asked):
            return min(float(asked), LONGEST_WAIT)
    return usual


def _short(error: BaseException) -> str:
    status = status_of(error)
    lines = str(error).strip().splitlines()
    return f"the Hub answered {status}" if status else (lines[0][:200] if lines else type(error).__name__)


def explained(error: Exception, what: str) -> InputError:
    """Return an error of the Hub's or its client's as one line that says what to do."""
    status = status_of(error)
    causes = list(_causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set, and it is not all in the cache: fetch it once with a network"
    elif caused_by(GatedRepoError):
        reason = "access to it must be asked for on its page first"
    elif caused_by(RepositoryNotFoundError):
        reason = "there is no such repository, or it is private and your token does not open it"
    elif status == 401 or caused_by(LocalTokenNotFoundError):
        reason = "the Hub does not accept your token, or there is none: it may have expired; run 'hf auth login'"
    elif status == 403:
        reason = "your token may not do this: use one with write access to that namespace ('hf auth login')"
    elif caused_by(RevisionNotFoundError):
        reason = "it has no such branch, tag or commit"
    elif status is not None:
        server = next(
            (getattr(cause, "server_message", None) for cause in causes if isinstance(cause, HfHubHTTPError)), None
        )
        reason = f"the Hub answered {status}{f' ({server})' if server else ''}" + (
            ": nothing was changed; try again later" if status in TRANSIENT else ""
        )
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = f"{_short(error)}: is there a network?" if is_transient(error) else _short(error)
    return InputError(f"{what}: {reason}")


def say(line: str) -> None:
    tqdm.write(printable(line), file=sys.stderr)


def licence_on_the_hub(repo_id: str, revision: str | None = None) -> str:
    """Return the licence that a repository's card names, "" where it names no single one or cannot be read."""
    try:
        card = HfApi().model_info(repo_id, revision=revision).card_data
    except Exception as error:  # the transport's own
        say(f"{repo_id}: its licence cannot be read ({error or type(error).__name__})")
        return ""
    licence = getattr(card, "license", None)
    if not isinstance(licence, str) or licence in NO_LICENCES:
        return ""
    with suppress(InputError):
        require_licence_id(licence)
        return licence
    return ""
