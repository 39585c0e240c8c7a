"""Read the file to convert, wherever it is, and find out what is known of it."""

from __future__ import annotations

import os
import re
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg

from seresnet_hub.checkpoints.file_settings import Settings
from seresnet_hub.checkpoints.key_maps import find_source
from seresnet_hub.checkpoints.reader import Checkpoint, read_checkpoint
from seresnet_hub.checkpoints.reading_budget import BUDGET
from seresnet_hub.checkpoints.renaming import Source, unwrapped
from seresnet_hub.conversion.sidecar_files import FOLDER_SUFFIXES, config_beside
from seresnet_hub.engines.exported_names import exported_name
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import CONFIG_NAME, FACTS_KEY, WEIGHTS_NAME
from seresnet_hub.hub.snapshots import take_snapshot
from seresnet_hub.models.published_weights import WEIGHTS, Weights

DOWNLOAD_CHUNK = 2**20
# The networks whose published files a conversion may meet: SE-ResNets, and plain ones as an initialisation.
PUBLISHED = ("*resne*t*", "*senet*")
TIMMS_OLD_NAME = "pytorch_model.bin"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A checkpoint, and what is known of it.

    `address` is where the reader of a card finds it, `repo_id` its repository on the Hub, empty where it is elsewhere.
    `tensors` have the names that the source gave them. `config` is the `config.json` beside the file, `known` this
    package's record of these weights, and `published` timm's record of this very file.
    """

    name: str
    address: str
    repo_id: str
    checkpoint: Checkpoint
    tensors: Mapping[str, torch.Tensor]
    source: Source
    settings: Settings
    config: Mapping[str, Any] | None
    known: Weights | None
    published: PretrainedCfg | None

    @property
    def own_config(self) -> Mapping[str, Any]:
        """The config beside the file if what it states, such as licence and accuracy, is of this file, else nothing.

        A folder may hold other weights as well. Where no hash is recorded, they are those that timm loads from it.
        """
        config = self.config or {}
        hashes = config.get(FACTS_KEY, {}).get("sha256")
        if hashes is None:
            return config if self.name in (WEIGHTS_NAME, TIMMS_OLD_NAME) else {}
        return config if hashes.get(self.name) == self.checkpoint.sha256 else {}


def read_source_file(src: str, source: str | None) -> SourceFile:
    """Return the checkpoint `src`: a file, an `http(s)` address or a Hub file `NS/NAME:path`.

    `source` is the code base that wrote it, where that is not to be told from its tensors. Errors: `InputError`.
    """
    with _located(src) as (path, address, repo_id):
        checkpoint = read_checkpoint(path)
        _check_name_against_hash(path.name, checkpoint)
        config = config_beside(path)
    tensors = unwrapped(checkpoint.tensors)
    is_timms = config is not None and not config["architecture"].startswith("legacy_")
    found = find_source(tensors, source or ("timm" if is_timms else None))
    known = next((weights for weights in WEIGHTS if checkpoint.sha256.startswith(weights.sha256_prefix)), None)
    return SourceFile(
        name=path.name, address=address, repo_id=repo_id, checkpoint=checkpoint, tensors=tensors, source=found,
        settings=found.read_settings(checkpoint.entries, path.name) if found.read_settings else Settings(),
        config=config, known=known, published=published_file(checkpoint.sha256) if known is None else None,
    )  # fmt: skip


def published_file(sha256: str) -> PretrainedCfg | None:
    """Return timm's record of the published file with this hash, whose first digits its name ends with, if it has one.

    Among them are the files of Cadene and torchvision that timm names. Source: timm's pretrained configurations.
    """
    for name in timm.list_pretrained(list(PUBLISHED)):
        config = timm.get_pretrained_cfg(name)
        digits = re.search(r"-([0-9a-f]{8,})\.pth$", config.url if config and isinstance(config.url, str) else "")
        if digits and sha256.startswith(digits.group(1)):
            return config
    return None


def as_unicode(text: str) -> str:
    """Return `text` with a question mark for what UTF-8 cannot write, such as half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


@contextmanager
def _located(src: str) -> Iterator[tuple[Path, str, str]]:
    """Yield the file's path, its address and its repository; a download is deleted afterwards."""
    if re.match(r"https?://", src):
        with tempfile.TemporaryDirectory() as scratch:
            name = re.sub(r"[^\w.-]", "_", urllib.request.url2pathname(src.split("?")[0]).rsplit("/", 1)[-1]) or "file"
            path = Path(scratch, name)
            _download(src, path)
            yield path, src, ""
        return
    if exported_name(src) is not None and not os.path.exists(src):
        raise InputError(f"{src} is an exported file, and no checkpoint: convert the one that it was made from")
    path = Path(src)
    hub_file = re.fullmatch(r"([\w.-]+/[\w.-]+):(.+)", src)
    if hub_file and not os.path.exists(path):
        repo_id, name = hub_file.groups()
        # The network may be one that its tensors alone do not show.
        beside = (str(PurePosixPath(name).with_name(CONFIG_NAME)),) if name.endswith(FOLDER_SUFFIXES) else ()
        try:
            path = take_snapshot(repo_id, None, names=(name,), optional=beside).paths[name]
        except InputError as error:
            raise InputError(f"cannot get {src} from the Hub: {error}") from error
        yield path, f"https://huggingface.co/{repo_id}/blob/main/{name}", repo_id
        return
    if os.path.isdir(path):
        raise InputError(f"{src}: is a folder: name the file in it")
    if not os.path.isfile(path):
        is_special = os.path.exists(path)
        reason = "is a pipe or a device: copy what it has into a file" if is_special else "no such file"
        raise InputError(f"{src}: {reason}")
    yield path, as_unicode(path.name), ""


def _download(url: str, path: Path) -> None:
    """Fetch `url` into `path`, no more than a checkpoint can have."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, path.open("wb") as file:
            announced = answer.headers.get("Content-Length")
            while chunk := answer.read(DOWNLOAD_CHUNK):
                file.write(chunk)
                if file.tell() > BUDGET.file_bytes:
                    raise InputError(f"{url} has more than {BUDGET.file_bytes} bytes")
            if announced is not None and file.tell() != int(announced):
                raise InputError(f"{url} ended after {file.tell()} of {announced} bytes: try again")
    except (OSError, ValueError, HTTPException) as error:
        raise InputError(f"cannot download {url}: {error}") from error


def _check_name_against_hash(name: str, checkpoint: Checkpoint) -> None:
    """Raise `InputError` if the digits in the file's name, as OpenMMLab writes them, are not the hash's."""
    promised = re.search(r"_\d{8}-([0-9a-f]{8})\.pth$", name)
    if promised and not checkpoint.sha256.startswith(promised.group(1)):
        raise InputError(
            f"{name} has sha256 {checkpoint.sha256[:16]}…, but its name promises {promised.group(1)}…: "
            f"it is damaged or not the published file; get it again, or rename it"
        )
