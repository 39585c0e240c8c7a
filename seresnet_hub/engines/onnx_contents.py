"""Read an ONNX file's metadata, and find tensors in other files, without the onnx package or weights in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# ONNX is a protobuf message: which of its fields, by number, lead to tensors, and to what message (onnx.proto).
LEADS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
IR_VERSION, METADATA = 1, 14  # of the model
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # kinds of fields
LONGEST_TEXT = 2**24


class _Field(NamedTuple):
    """A field of a message: its number, and where its bytes lie, or, of a number, its value."""

    number: int
    start: int
    end: int
    value: int | None


def onnx_metadata(file: BinaryIO) -> dict[str, str]:
    """Return the metadata of an ONNX file by name.

    Errors: `ValueError` or `RecursionError` where it is none, or has tensors in other files, which may be any of this
    machine.
    """
    whole = file.seek(0, 2)
    if not {IR_VERSION, min(LEADS["model"])} <= {field.number for field in _fields(file, 0, whole)}:
        raise ValueError("it has no graph")
    if _has_external_data(file, "model", 0, whole):
        raise ValueError("it has tensors in other files")
    metadata = {}
    for field in _fields(file, 0, whole):
        if field.number == METADATA:
            entry = {one.number: _text(file, one) for one in _fields(file, field.start, field.end)}
            metadata[entry.get(1, "")] = entry.get(2, "")
    return metadata


def _has_external_data(file: BinaryIO, kind: str, start: int, end: int) -> bool:
    if kind == "tensor":
        numbers = {field.number: field.value for field in _fields(file, start, end)}
        return EXTERNAL_DATA in numbers or bool(numbers.get(DATA_LOCATION))
    return any(
        _has_external_data(file, LEADS[kind][field.number], field.start, field.end)
        for field in _fields(file, start, end)
        if field.number in LEADS[kind]
    )


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message that lies between two places of a file; nothing but their heads is read."""
    while start < end:
        file.seek(start)
        tag = _varint(file)
        if tag >= 2**32:  # protobuf may leave out the upper bits
            raise ValueError("it is damaged")
        number, kind = divmod(tag, 8)
        value = _varint(file) if kind == VARINT else None
        length = {VARINT: 0, EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind)
        if length is None:
            if kind != BYTES:
                raise ValueError("it is damaged")
            length = _varint(file)
        begin = file.tell()
        start = begin + length
        if start > end:
            raise ValueError("it ends too early")
        yield _Field(number, begin, start, value)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends too early")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("it is damaged")


def _text(file: BinaryIO, field: _Field) -> str:
    if field.end - field.start > LONGEST_TEXT:
        raise ValueError(f"its metadata has a text of more than {LONGEST_TEXT:,} bytes")
    file.seek(field.start)
    return file.read(field.end - field.start).decode()
