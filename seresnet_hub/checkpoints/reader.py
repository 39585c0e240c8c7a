"""Read checkpoint files of strangers: tensors and plain containers come out, and nothing in the file is ever executed.

A file is read once, as bytes, and everything in it is held against them: `torch_files` and `safetensors_file` know the
formats (PyTorch's zip and legacy files, plain pickles of arrays such as PaddlePaddle's `.pdparams`, safetensors),
`pickle_machine` follows pickles without running them, and `reading_budget` says how much a file may ask for: reading
takes at most three times the file's size and 1 GB of memory, and no file keeps the reader busy for over 20 seconds.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seresnet_hub.checkpoints.pickle_values import Array, Opaque, Tensor, byte_count
from seresnet_hub.checkpoints.reading_budget import BUDGET, Account, Refused
from seresnet_hub.checkpoints.safetensors_file import is_safetensors, read_safetensors
from seresnet_hub.checkpoints.torch_files import ArrayBytes, Contents, read_pickles, read_zip
from seresnet_hub.checkpoints.zip_directory import LOCAL_MAGIC
from seresnet_hub.errors import InputError

READ_BYTES = 8 * 2**20
PICKLE_PROTO = b"\x80"
# Where a file keeps its weights, best first. In timm's and this project's files the average is what is evaluated; in
# mmengine's files `state_dict` is the average already, and `ema_state_dict` the weights without it.
STATE_DICTS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
# PaddlePaddle's table of its own names, beside the tensors.
NOT_TENSORS = frozenset({"StructuredToParameterName@@"})
OTHER_KINDS = {
    b"\x89HDF": "it is an HDF5 file (Keras), whose networks stride in the first convolution: there is no converter",
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"BZh": "it is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "it is compressed with xz: unpack it first",
    b"\x93NUMPY": "it is a single NumPy array",
    b"<": "it is a web page, not a checkpoint: the download went wrong",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file holds: its state dict's tensors by name, the other top-level entries, and the bytes' sha256.

    `entries` has no tensors: the values in it are plain or opaque. `passed_over` names the other top-level entries that
    hold weights of their own, such as an exponential moving average. `metadata` is a safetensors header's. The hash is
    `digest`'s result: it takes longer than the rest, which can go on meanwhile.
    """

    digest: Future[str]
    tensors: dict[str, torch.Tensor]
    entries: dict[str, Any]
    passed_over: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None

    @property
    def sha256(self) -> str:
        """The sha256 of the file's bytes; waits for it."""
        return self.digest.result()


def read_checkpoint(path: Path, *, sha256_prefix: str = "") -> Checkpoint:
    """Return the tensors and the plain contents of a checkpoint file, on the CPU; nothing in the file is executed.

    The file is read once, so what is hashed is what is used; a zip's bytes are compared with its checksums. Memory
    stays under three times the file's size and 1 GB. Errors: `InputError` names the file and says what is wrong with
    it: missing, changing, truncated, damaged, with bytes behind its end, too large, beyond `reading_budget`, of another
    kind, executable, not finite; before anything in it is looked at, where its sha256 does not begin with
    `sha256_prefix`.
    """
    try:
        buffer, digest = _bytes_of(path)
        if sha256_prefix and not digest.result().startswith(sha256_prefix):
            raise Refused(f"it has sha256 {digest.result()[:16]}…, not {sha256_prefix}…: delete it")
        if bytes(buffer[:4].numpy()) != LOCAL_MAGIC:
            digest.result()  # bytes of the legacy format are moved within the buffer
        return read_bytes(buffer, digest)
    except Refused as error:
        raise InputError(f"{path} is refused: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes fail in as many ways as there are bytes
        raise InputError(f"{path} is damaged or no checkpoint: {str(error)[:200] or type(error).__name__}") from error


def read_bytes(buffer: torch.Tensor, digest: Future[str]) -> Checkpoint:
    """Return the checkpoint in a file's bytes, over which its tensors lie; `digest` is their hash.

    Errors: `Refused`, or whatever damaged bytes lead to.
    """
    view = memoryview(buffer.numpy())  # type: ignore[arg-type]
    account = Account(len(view))
    contents = _parsed(view, buffer, account)
    state_dict, entries, passed_over = _select(contents.value)
    tensors = dict(_materialised(state_dict, contents, account))
    contents.finish()
    return Checkpoint(
        digest=digest, tensors=tensors, entries=entries, passed_over=passed_over, metadata=contents.metadata
    )


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe too, which else is open only when somebody writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none


def _bytes_of(path: Path) -> tuple[torch.Tensor, Future[str]]:
    """Return the whole file as one uint8 tensor, and its sha256 to come; errors where it changes meanwhile."""
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise Refused("it is no file, but a pipe or a device: copy what it has into a file")
        if not 0 < before.st_size <= BUDGET.file_bytes:
            size = before.st_size
            raise Refused(f"it has {size} bytes, more than {BUDGET.file_bytes}" if size else "it is empty")
        digest = hashlib.sha256()
        hasher = ThreadPoolExecutor(1)  # hashing takes longer than reading: do both at once
        buffer = torch.empty(before.st_size, dtype=torch.uint8)
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        at = 0
        while at < len(view) and (count := file.readinto(view[at : at + READ_BYTES])):
            hasher.submit(digest.update, view[at : at + count])
            at += count
        after = os.fstat(file.fileno())
        grown = file.read(1)
    result = hasher.submit(digest.hexdigest)
    hasher.shutdown(wait=False)
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if changed or grown or at != before.st_size:
        raise Refused("it changed while it was read; try again when nothing writes to it")
    return buffer, result


def _parsed(view: memoryview, buffer: torch.Tensor, account: Account) -> Contents:
    head = bytes(view[:64])
    if head.startswith(LOCAL_MAGIC):
        return read_zip(view, buffer, account)
    if is_safetensors(view):
        return read_safetensors(view, buffer, account)
    for magic, meaning in OTHER_KINDS.items():
        if head.startswith(magic):
            raise Refused(meaning)
    if bytes(view[257:262]) == b"ustar":
        raise Refused("it is a tar archive (PyTorch before 0.1.10, or packed by hand): save it with a newer PyTorch")
    if not head.startswith(PICKLE_PROTO):
        raise Refused(
            "it is no PyTorch, safetensors or .pdparams file. (The original Caffe SENets are in timm already, as "
            "legacy_seresnet50, legacy_seresnet101, legacy_seresnet152, legacy_seresnext50_32x4d, "
            "legacy_seresnext101_32x4d and legacy_senet154)"
        )
    return read_pickles(view, buffer, account)


def _select(content: Any) -> tuple[dict[Any, Any], dict[str, Any], tuple[str, ...]]:
    """Return the state dict in a file's content, its other entries, and the names of those that hold weights too."""
    if isinstance(content, Opaque):
        raise Refused(f"it is a whole pickled {content.name[:100]}, which is code: save its state_dict() instead")
    if not isinstance(content, dict):
        raise Refused("it holds no state dict")
    # By identity, so that each table is searched once, wherever else it stands.
    tables = {id(value): value for value in (content, *content.values()) if isinstance(value, dict)}
    weights = {
        key for key, table in tables.items() if any(isinstance(item, (Tensor, Array)) for item in table.values())
    }
    if id(content) in weights:
        return content, {}, ()
    chosen = next((name for name in STATE_DICTS if id(content.get(name)) in weights), None)
    if chosen is None:
        models = [value.name for value in content.values() if isinstance(value, Opaque)]
        detail = f" (only a pickled {models[0][:100]}: save its state_dict() instead)" if models else ""
        raise Refused(f"it holds no state dict{detail}")
    others = {str(name): value for name, value in content.items() if name != chosen}
    entries = {name: value for name, value in others.items() if id(value) not in weights}
    return content[chosen], entries, tuple(name for name in others if name not in entries)


def _materialised(
    state_dict: Mapping[Any, Any], contents: Contents, account: Account
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors by name."""
    if len(state_dict) > BUDGET.tensors:
        raise Refused(f"its state dict has {len(state_dict)} entries, more than {BUDGET.tensors}")
    for value in state_dict.values():
        if isinstance(value, Tensor):
            account.spend("shared", math.prod(value.shape) * value.storage.dtype.itemsize)
        elif isinstance(value, Array):
            account.spend("shared", byte_count(value.data))
    arrays = ArrayBytes(account)
    for name, value in state_dict.items():
        if name in NOT_TENSORS:
            continue
        if not isinstance(name, str):
            raise Refused(f"its state dict has the key {str(name)[:40]!r}, which is no name")
        if isinstance(value, Tensor):
            tensor = contents.tensor(value)
        elif isinstance(value, Array):
            tensor = arrays.tensor(name, value)
        else:
            raise Refused(f"{name[:80]!r} in its state dict is no tensor")
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise Refused(f"tensor {name[:80]!r} has NaN or infinite values")
        yield name, tensor


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite: a finite sum proves it; if it overflows, minimum and maximum decide."""
    if not tensor.numel() or torch.isfinite(tensor.sum()):
        return True
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor))
