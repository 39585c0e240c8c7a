"""State, in one place, how much may come from a Hub repository, and check a listing against it before any download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from seresnet_hub.errors import InputError
from seresnet_hub.hub.revisions import is_hash

# Bytes. The Hub's listing says how large each file is; a file that says nothing true is stopped at these sizes too.
LARGEST_WEIGHTS = 20 * 10**9  # seresnet152 has 0.27e9, with the state of an optimizer three times as many
LARGEST_TEXT = 10 * 10**6  # config.json, README.md, …
LARGEST_OTHER = 10**9
LARGEST_TOTAL = 50 * 10**9  # of all files that `verify` fetches
LARGEST_ANSWER = 32 * 10**6  # anything the Hub answers that is no file: a page of a listing has about 0.3e6
MOST_FILES = 100_000
MOST_REQUESTS = 1_000  # for one call: a listing of 100,000 files has 100 pages
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz", ".onnx")
TEXTS = (".json", ".md", ".txt", ".csv", ".yaml", ".yml", ".gitattributes", ".gitignore")


class RemoteFile(NamedTuple):
    """What the Hub's listing says of a file: sha256 of a large one, git's sha1 of another, and its size in bytes."""

    hash: str
    size: int


def most_bytes(name: str) -> int:
    """Return how many bytes a file of this name may have."""
    if name.lower().endswith(WEIGHTS):
        return LARGEST_WEIGHTS
    return LARGEST_TEXT if name.lower().endswith(TEXTS) else LARGEST_OTHER


def check_listing(repo_id: str, files: Mapping[str, RemoteFile]) -> None:
    """Raise `InputError` where a file that is to be fetched has no plain name, no hash, or too many bytes.

    A plain name is a relative path of printable characters that leads nowhere out of its folder.
    """
    for name, file in files.items():
        problem = _problem(name, file)
        if problem:
            raise InputError(f"{repo_id}: the file {name[:100]!r} {problem}: nothing was fetched")
    total = sum(file.size for file in files.values())
    if total > LARGEST_TOTAL:
        raise InputError(
            f"{repo_id}: its files have {total:,} bytes together, and no more than {LARGEST_TOTAL:,} are fetched"
        )


def _problem(name: str, file: RemoteFile) -> str:
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        return "has a name that is no plain path"
    if any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts) or len(name) > 1000:
        return "has a name too long for a disk"
    if not is_hash(file.hash):
        return "has no hash in the Hub's listing"
    if not isinstance(file.size, int) or file.size < 0:
        return "has no size in the Hub's listing"
    if file.size > most_bytes(name):
        return f"has {file.size:,} bytes, more than the {most_bytes(name):,} that such a file may have"
    return ""
