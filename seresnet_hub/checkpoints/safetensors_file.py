"""Read a safetensors file: its header is JSON, and every byte behind it belongs to one tensor.

Source: https://github.com/huggingface/safetensors (format).
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from typing import Any

import torch

from seresnet_hub.checkpoints.dtypes import SAFETENSORS_TYPES
from seresnet_hub.checkpoints.pickle_values import Storage, Tensor, integers, said
from seresnet_hub.checkpoints.reading_budget import BUDGET, Account, Refused
from seresnet_hub.checkpoints.torch_files import Contents, StorageBytes

LENGTH_BYTES = 8
METADATA = "__metadata__"


def is_safetensors(view: memoryview) -> bool:
    """Return whether a file begins as one: the length of a header that fits, and a brace."""
    return len(view) > LENGTH_BYTES and view[LENGTH_BYTES] == ord("{") and _header_length(view) < len(view)


def read_safetensors(view: memoryview, buffer: torch.Tensor, account: Account) -> Contents:
    """Return a file's tensors and its metadata, as the format demands: no gap, no overlap, nothing behind."""
    start = LENGTH_BYTES + _header_length(view)
    if start > len(view):
        raise Refused("its header is longer than the file: it is truncated or damaged")
    if start - LENGTH_BYTES > BUDGET.header_bytes:
        raise Refused(f"its header has {start - LENGTH_BYTES} bytes, more than {BUDGET.header_bytes}")
    text = bytes(view[LENGTH_BYTES:start])
    parts = sum(text.count(sign) for sign in (b"{", b"[", b","))
    if parts > BUDGET.header_parts:
        raise Refused(f"its header has {parts} brackets and commas, more than {BUDGET.header_parts}")
    # UTF-8 as the format demands: of bytes, the parser itself would guess another encoding, and import a codec for it.
    header = json.loads(text.decode("utf-8"), object_pairs_hook=distinct)
    if not isinstance(header, dict):
        raise Refused("its header is no table")
    metadata = header.pop(METADATA, None)
    if metadata is not None and not isinstance(metadata, dict):
        raise Refused("the metadata in its header is no table")
    if len(header) > BUDGET.tensors:
        raise Refused(f"it has {len(header)} tensors, more than {BUDGET.tensors}")
    value, runs = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.get("dtype") not in SAFETENSORS_TYPES:
            raise Refused(f"tensor {name[:80]!r} is of an unknown type")
        dtype, shape = SAFETENSORS_TYPES[entry["dtype"]], integers(entry.get("shape"), f"the shape of {name[:80]!r}")
        place = integers(entry.get("data_offsets"), f"the place of {name[:80]!r}")
        count = math.prod(shape)
        if len(place) != 2 or place[1] - place[0] != count * dtype.itemsize or start + place[1] > len(view):
            raise Refused(f"tensor {name[:80]!r} has other bytes than its shape needs: it is truncated or damaged")
        runs.append(place)
        storage = Storage(key=str(place[0]), dtype=dtype, count=count, whole=count)
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        value[name] = Tensor(storage=storage, offset=0, shape=shape, stride=stride)
    end = 0
    for first, past in sorted(runs):
        if first != end:
            raise Refused("its tensors overlap or leave gaps between them: it is damaged")
        end = past
    if start + end != len(view):
        raise Refused("there is something behind its tensors")
    made = StorageBytes(buffer, account, lambda storage: start + int(storage.key))
    as_text = None if metadata is None else {key: _text(text) for key, text in metadata.items()}
    return Contents(value=value, tensor=made.tensor, metadata=as_text)


def _header_length(view: memoryview) -> int:
    return int.from_bytes(view[:LENGTH_BYTES], "little")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else said(value)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a table of JSON. Errors: `Refused` where a name is there twice: readers differ in which one they take."""
    table = dict(pairs)
    if len(table) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise Refused(f"{reprlib.repr(name)} is there twice")
    return table
