"""Where the files of an export lie, and the record beside them that says what they are and how they were proven."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seresnet_hub.checkpoints.checked_json import checked_json
from seresnet_hub.engines.export_facts import PRECISIONS, ExportFacts, is_sha256
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import errors_named

# The file of each format without its ending, and its endings. In fp32 the name is as here, and the Hub's libraries know
# it; the other precisions are written behind it.
STEMS = {"onnx": "model", "openvino": "openvino_model", "torch-export": "model"}
ENDINGS = {"onnx": (".onnx",), "openvino": (".xml", ".bin"), "torch-export": (".pt2",)}
RECORD_ENDING = ".json"
KEYS = ("facts", "sha256", "proof", "accuracy", "quantization")
MOST_BYTES = 2**24  # of a record: the names of some ten thousand classes take one of them
MOST_FILE_BYTES = 2**31  # a network of one file, as ONNX limits it


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one export: its `facts`, the `sha256` of each of its files by name, and how it was proven.

    `path` is the record's own, and the files lie beside it. `proof`, `accuracy` and `quantization` are as they were
    written; the last two are None where nothing was measured or quantised.
    """

    path: Path
    facts: ExportFacts
    sha256: Mapping[str, str]
    proof: Mapping[str, Any]
    accuracy: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The first of the files, for messages."""
        return str(self.path.parent / next(iter(self.sha256)))


def files_of(format: str, precision: str) -> tuple[str, ...]:
    """Return the files of an export within its folder, without the record: `("onnx/model_int8.onnx",)`."""
    return tuple(_stem(format, precision) + ending for ending in ENDINGS[format])


def record_of(format: str, precision: str) -> str:
    """Return the record of an export within its folder: `onnx/model_int8.json`."""
    return _stem(format, precision) + RECORD_ENDING


def _stem(format: str, precision: str) -> str:
    return f"{format}/{STEMS[format]}" + ("" if precision == "fp32" else f"_{precision}")


def record_text(
    facts: ExportFacts,
    sha256: Mapping[str, str],
    proof: Mapping[str, Any],
    accuracy: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a record; `sha256` are the hashes of the files by name, without folders."""
    record = dict(zip(KEYS, (asdict(facts), dict(sha256), proof, accuracy, quantization), strict=True))
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def read_record(path: Path) -> Record:
    """Return the record in a file, which has to be called as its facts say.

    Errors: `InputError` where it is missing, too large, or not as `record_text` writes it.
    """
    values = checked_json(path, most_bytes=MOST_BYTES, parse_constant=_no_constant)
    if not isinstance(values, dict):
        raise InputError(f"{path} is no record of an export: it holds no JSON object")
    if sorted(values) != sorted(KEYS):
        raise InputError(f"{path} is no record of an export: it must have {', '.join(KEYS)}")
    for key in KEYS:
        if not isinstance(values[key], dict) and (values[key] is not None or key in KEYS[:3]):
            raise InputError(f"{path}: {key!r} is no table")
    try:
        facts = ExportFacts.from_json(values["facts"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if path.name != os.path.basename(record_of(facts.format, facts.precision)):
        raise InputError(f"{path}: it is the record of {facts.format} in {facts.precision}, and not called so")
    hashes, names = values["sha256"], [os.path.basename(name) for name in files_of(facts.format, facts.precision)]
    if sorted(hashes) != sorted(names) or not all(is_sha256(value) for value in hashes.values()):
        raise InputError(f"{path}: 'sha256' must have the hash of {' and '.join(names)}")
    return Record(path=path, **{**values, "facts": facts, "sha256": {name: hashes[name] for name in names}})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def checked_bytes(record: Record) -> dict[str, bytes]:
    """Return the bytes of the export's files by name, read once and compared with the record.

    Errors: `InputError` where a file is missing or not the one that the record describes.
    """
    found: dict[str, bytes] = {}
    for name, expected in record.sha256.items():
        path = record.path.parent / name
        with errors_named(path, "read"), path.open("rb") as file:
            found[name] = file.read(MOST_FILE_BYTES + 1)
        if len(found[name]) > MOST_FILE_BYTES:
            raise InputError(f"{path} has more than {MOST_FILE_BYTES:,} bytes")
        if hashlib.sha256(found[name]).hexdigest() != expected:
            raise InputError(f"{path} is damaged or exchanged: {record.path} records another sha256; export it anew")
    return found


def require_facts(record: Record, texts: Mapping[str, str]) -> None:
    """Raise `InputError` unless a file's own metadata, written by `ExportFacts.to_text`, says what its record does."""
    try:
        same = ExportFacts.from_text(texts) == record.facts
    except InputError as error:
        raise InputError(f"{record.name}: {error}") from error
    if not same:
        raise InputError(f"{record.name} and {record.path} say different things of it: export it anew")


def exports_in(directory: Path, format: str) -> list[Path]:
    """Return the paths of the records in a folder of exports, or in the one of this format, in order of precision."""
    names = [record_of(format, precision) for precision in PRECISIONS]
    inner = [directory / name for name in names if (directory / name).is_file()]
    return inner or [path for name in names if (path := directory / os.path.basename(name)).is_file()]


def find_export(path: Path, format: str) -> Path:
    """Return the record of the export that a path means: its folder, the folder in that, or one of its files.

    Errors: `InputError` where there is none, or several of which one has to be named.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: no path has a zero byte in it")
    with errors_named(path, "read"):
        if path.is_file():
            return _record_beside(path, format)
        if not path.is_dir():
            raise InputError(f"{path}: there is no such file or folder")
        found = exports_in(path, format)
        if len(found) > 1:
            ways = " or ".join(f"{format}:{one.with_suffix(ENDINGS[format][0])}" for one in found)
            raise InputError(f"{path} has several exports: name one, {ways}")
        if not found:
            whole = path / record_of(format, "fp32")
            raise InputError(f"{path} has no export to {format}: there is no record such as {whole}")
        return found[0]


def _record_beside(path: Path, format: str) -> Path:
    record = path.with_suffix(RECORD_ENDING)
    known = [name for precision in PRECISIONS for name in (*files_of(format, precision), record_of(format, precision))]
    if path.name not in map(os.path.basename, known):
        raise InputError(f"{path} is not called as an export to {format} is: {known[0]}, {files_of(format, 'int8')[0]}")
    if not record.is_file():
        raise InputError(f"{path} has no record beside it, {record.name}: export it anew")
    return record
