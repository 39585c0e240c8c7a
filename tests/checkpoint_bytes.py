"""Write the bytes of checkpoint files instruction by instruction, so that they can be what no library writes."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

MILLION = 10**6
PRIME = 2**61 - 1  # the modulus of Python's hashes of numbers
FLOATS = b"ctorch\nFloatStorage\n"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def as_zip(payload: bytes, members: dict[str, bytes] | None = None) -> bytes:
    """Return a zip as torch.save writes it, around the bytes of a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/byteorder", "little")
        for name, data in (members or {}).items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def as_legacy(payload: bytes, storages: dict[str, tuple[int, bytes]] | None = None) -> bytes:
    """Return a legacy file around the bytes of a pickle; `storages` have their number of values and their bytes."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    found = storages or {}
    tail = b"".join(struct.pack("<Q", count) + data for count, data in found.values())
    return b"".join(pickle.dumps(part, 2) for part in head) + payload + pickle.dumps(list(found), 2) + tail


def storage(key: str, count: int, kind: bytes = FLOATS) -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(made: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Return the instructions for a tensor of the storage that the instructions `made` put on the stack."""
    sizes = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + made + number(offset) + sizes + b"\x89}tR"


def repeated(setup: bytes, step: bytes, size: int = MILLION) -> bytes:
    """Return a pickle of a list that `step` adds to until the file has `size` bytes."""
    return b"\x80\x02" + setup + b"](" + step * (size // len(step)) + b"e."


def kept(value: bytes, place: int) -> bytes:
    return value + b"q" + bytes([place]) + b"0"
