"""Checkpoint files that ask for more time or memory than they should get: a function for each trick."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from checkpoint_bytes import FLOATS, MILLION, as_legacy, as_zip, kept, storage, tensor, text
from hostile_pickles import PICKLES

# --- storages ---------------------------------------------------------------------------------------------------------


def storage_of_many_small_tensors() -> bytes:
    """Ten thousand tensors of one value each, in one storage of 16 MB that is out of alignment."""
    made = storage("1", 4 * MILLION)
    odd = text("odd") + tensor(storage("0", 1, b"ctorch\nByteStorage\n"), (1,), (1,))
    small = b"".join(text(f"w{k}") + tensor(made, (1,), (1,), k) for k in range(10_000))
    payload = b"\x80\x02}(" + odd + small + b"u."
    return as_legacy(payload, {"0": (1, b"\0"), "1": (4 * MILLION, bytes(16 * MILLION))})


def long_storage_names() -> bytes:
    setup = kept(text("k" * MILLION), 0)
    made = b"(" + text("storage") + FLOATS + b"h\x00" + text("cpu") + b"K\x01tQ"
    tensors = b"".join(text(f"w{k}") + tensor(made, (1,), (1,)) for k in range(10_000))
    return as_zip(b"\x80\x02" + setup + b"}(" + tensors + b"u.")


def overflowing_halves() -> bytes:
    """Half-precision values that are finite and whose sum is not, out of alignment."""
    count = 100 * MILLION
    payload = b"\x80\x02}" + text("w") + tensor(storage("0", count, b"ctorch\nHalfStorage\n"), (count,), (1,)) + b"s."
    data = struct.pack("<e", 65_000.0) * count
    for pad in ("", "x"):
        content = as_zip(payload, {f"pad{pad}": b"", "data/0": data})
        if content.index(data[:64]) % 2:
            break
    return content


def scattered_values() -> bytes:
    """A tensor whose values lie 4 KB apart and are read many times."""
    made = storage("0", 25 * MILLION)
    tensors = b"".join(text(f"w{k}") + tensor(made, (5000, 5000), (1, 4000)) for k in range(3))
    return as_zip(b"\x80\x02}(" + tensors + b"u.", {"data/0": bytes(100 * MILLION)})


def too_many_tensors() -> bytes:
    made = kept(storage("0", 1), 0)
    setup = b"\x80\x02" + made + kept(tensor(b"h\x00", (1,), (1,)), 1)
    return as_zip(
        setup + b"}(" + b"".join(text(str(k)) + b"h\x01" for k in range(300_000)) + b"u.", {"data/0": bytes(4)}
    )


def empty_tensors_of_absurd_shape() -> bytes:
    shape = (0, *(2**39,) * 7)
    return as_zip(b"\x80\x02}" + text("w") + tensor(storage("0", 1), shape, shape) + b"s.", {"data/0": bytes(4)})


# --- zip archives -----------------------------------------------------------------------------------------------------


def _archive(entries: list[tuple[bytes, int]], body: bytes, *, count: int | None = None) -> bytes:
    """Return an archive with a directory of any names and places."""
    empty = zlib.crc32(b"")
    directory = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 0, 0, 0, 0, 0, 0, empty, 0, 0, len(name), 0, 0, 0, 0, 0, at) + name
        for name, at in entries
    )
    total = len(entries) if count is None else count
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, total, total, len(directory), len(body))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(body) + len(directory), 1)
    short = min(total, 65_535)
    sizes = min(len(directory), 2**32 - 1), min(len(body), 2**32 - 1)
    return body + directory + record + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, short, short, *sizes, 0)


LOCAL = struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"


def million_members() -> bytes:
    return _archive([(b"%d" % k, 0) for k in range(2 * MILLION)], LOCAL)


def more_members_than_said() -> bytes:
    return _archive([(b"%d" % k, 0) for k in range(2 * MILLION)], LOCAL, count=10)


def many_members_of_one_place() -> bytes:
    return _archive([(b"a", 0)] * 60_000, LOCAL)


def overlapping_members() -> bytes:
    """A thousand members that share the bytes of one."""
    content = bytearray(as_zip(b"\x80\x02}.", {"data/0": bytes(MILLION), **{f"data/{k}": b"" for k in range(1, 1000)}}))
    at, first = content.index(b"PK\x01\x02"), 0
    while content[at : at + 4] == b"PK\x01\x02":
        length, extra = struct.unpack_from("<2H", content, at + 28)
        name = bytes(content[at + 46 : at + 46 + length])
        if name == b"archive/data/0":
            first = struct.unpack_from("<L", content, at + 42)[0]
        elif name.startswith(b"archive/data/"):
            struct.pack_into("<L", content, at + 42, first)
        at += 46 + length + extra
    return bytes(content)


# --- safetensors ------------------------------------------------------------------------------------------------------


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def long_header() -> bytes:
    entry = b'"%07d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]},'
    header = b"{" + b"".join(entry % (k, 4 * k, 4 * k + 4) for k in range(3 * MILLION))
    return _safetensors(header[:-1] + b"}", bytes(12 * MILLION))


def header_of_lists() -> bytes:
    return _safetensors(b'{"a":[' + b"[]," * 30 * MILLION + b"[]]}", bytes(8))


def header_of_wide_text() -> bytes:
    return _safetensors(('{"__metadata__":{"a":"' + "x" * 95 * MILLION + '\U0001f600"}}').encode(), bytes(8))


def deep_header() -> bytes:
    return _safetensors(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", bytes(8))


def million_entries() -> bytes:
    entry = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    return _safetensors(("{" + ",".join(entry.format(k) for k in range(MILLION)) + "}").encode(), bytes(8))


def long_number_in_header() -> bytes:
    return _safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 90 * MILLION + b"]}}", bytes(8))


# --- configurations beside the weights --------------------------------------------------------------------------------


def _with_config(config: str) -> bytes:
    weights = b"}" + text("backbone.layer1.0.se_layer.conv1.conv.weight") + tensor(storage("0", 1), (1,), (1,)) + b"s"
    meta = b"}" + text("cfg") + text(config) + b"s"
    payload = b"\x80\x02}(" + text("state_dict") + weights + text("meta") + meta + b"u."
    return as_zip(payload, {"data/0": bytes(4)})


def long_config() -> bytes:
    return _with_config("model = [" + "0," * 2 * MILLION + "]")


def deep_config() -> bytes:
    return _with_config("model = " + "-" * MILLION + "1")


def deep_lists_in_config() -> bytes:
    return _with_config("model = " + "[" * MILLION)


def dotted_config() -> bytes:
    return _with_config("model = a" + ".a" * (MILLION // 2))


def config_of_a_long_number() -> bytes:
    return _with_config("model = " + "9" * MILLION)


def long_similar_names() -> bytes:
    """Names that no rule knows and that resemble each other, which the search for similar ones compares."""
    made = storage("0", 1)
    known = "backbone.layer1.0.se_layer.conv1.conv.weight"
    names = [known, *(f"backbone.layer{k}.{'ab' * 480}{k}" for k in range(3000))]
    return as_zip(
        b"\x80\x02}(" + b"".join(text(name) + tensor(made, (1,), (1,)) for name in names) + b"u.", {"data/0": bytes(4)}
    )


BOMBS: dict[str, Callable[[], bytes]] = PICKLES | {
    function.__name__: function
    for function in (
        storage_of_many_small_tensors, long_storage_names, overflowing_halves, scattered_values, too_many_tensors,
        empty_tensors_of_absurd_shape, million_members, more_members_than_said, many_members_of_one_place,
        overlapping_members, long_header, header_of_lists, header_of_wide_text, deep_header, million_entries,
        long_number_in_header, long_config, deep_config, deep_lists_in_config, dotted_config, config_of_a_long_number,
        long_similar_names,
    )
}  # fmt: skip
