"""Read the exported files of a model folder that are to be uploaded, and check that they are of its model.

Their hashes are compared with those of their records, which are written by whoever knew the bytes: a file of keys has
none. What an ONNX or OpenVINO file says of itself has to be what its record says; that is read without their packages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from seresnet_hub.data import held_out
from seresnet_hub.data.class_names import class_names
from seresnet_hub.engines.export_facts import PRECISIONS, ExportFacts
from seresnet_hub.engines.exported_files import MOST_BYTES, Record, files_of, read_record, record_of
from seresnet_hub.errors import InputError, printable
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.hub.download_limits import LARGEST_TEXT, LARGEST_TOTAL, LARGEST_WEIGHTS
from seresnet_hub.hub.messages import say
from seresnet_hub.inference.model_identity import preparation_of, tensors_sha256
from seresnet_hub.models.load import licence_in
from seresnet_hub.publishing.exported_contents import metadata_of
from seresnet_hub.publishing.files_of_folder import content_of, inside

PUSHED_FORMATS = ("onnx", "openvino")  # those that a library of the Hub's reads
MOST_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class ExportedFiles:
    """The exported files of a folder, by their names in it: large ones where they lie, with their sha256, and others.

    `small` holds the bytes of the records and of the texts that describe OpenVINO's networks.
    """

    records: tuple[Record, ...] = ()
    large: Mapping[str, Path] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    small: Mapping[str, bytes] = field(default_factory=dict)


def exported_files(directory: Path) -> ExportedFiles:
    """Return the files in a folder's `onnx` and `openvino` that a record there names; others are named and left.

    Errors: `InputError` where a record is no record, or one of its files is missing, lies outside the folder, is no
    regular file, is too large, is not the one that the record describes, or is something else than its name says.
    """
    records: list[Record] = []
    large: dict[str, Path] = {}
    hashes: dict[str, str] = {}
    small: dict[str, bytes] = {}
    for name in record_names(directory):
        small[name] = content_of(inside(directory, name), MOST_BYTES)
        record = read_record(directory / name)
        records.append(record)
        for file, expected in recorded_exports(record).items():
            path = inside(directory, file)
            if file.endswith(".xml"):
                small[file] = content_of(path, LARGEST_TEXT)
                digest = hashlib.sha256(small[file]).hexdigest()
            else:
                if path.stat().st_size > LARGEST_WEIGHTS:
                    raise InputError(f"{directory / file} has more than the {LARGEST_WEIGHTS:,} bytes that it may have")
                large[file], digest = path, _sha256_of(path)
                hashes[file] = digest
            if digest != expected:
                raise InputError(f"{directory / file} is not the file that {name} describes: its sha256 differs")
        if problem := unlike_its_record(record):
            raise InputError(f"{problem}: export it again")
    total = sum(path.stat().st_size for path in large.values())
    if total > LARGEST_TOTAL:
        raise InputError(f"{directory}: its exports have {total:,} bytes; at most {LARGEST_TOTAL:,} are pushed")
    if left := [name for name in _all_names(directory) if name not in large and name not in small]:
        shown = ", ".join(map(printable, left[:MOST_LISTED])) + (" …" if len(left) > MOST_LISTED else "")
        say(f"{directory}: not pushed, as no record there names it: {shown}")
    return ExportedFiles(records=tuple(records), large=large, sha256=hashes, small=small)


def small_files_again(directory: Path, before: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the bytes that the folder's small exported files have now, of those that were read `before`."""
    return {name: content_of(inside(directory, name), max(MOST_BYTES, LARGEST_TEXT)) for name in before}


def record_names(directory: Path) -> list[str]:
    """Return the names of the records of a folder's exports, in the folder."""
    known = [record_of(format, precision) for format in PUSHED_FORMATS for precision in PRECISIONS]
    return [name for name in known if (directory / name).is_file()]


def recorded_exports(record: Record) -> dict[str, str]:
    """Return the sha256 of an export's files as its record has them, by name in the folder of the model."""
    return {f"{record.facts.format}/{name}": hash for name, hash in record.sha256.items()}


def first_file(record: Record) -> str:
    """Return the name of an export's first file in the folder of the model: that with its metadata."""
    return files_of(record.facts.format, record.facts.precision)[0]


def unlike_its_record(record: Record) -> str:
    """Return what is wrong with an exported file, whose bytes are those of its record: "" where nothing is."""
    path = Path(record.name)
    try:
        facts = ExportFacts.from_text(metadata_of(path))
    except InputError as error:
        return str(error) if str(path) in str(error) else f"{path}: {error}"
    return "" if facts == record.facts else f"{path} says something else of itself than {record.path.name}"


def unlike_the_model(
    records: Iterable[Record], model: nn.Module, config: Mapping[str, Any], weights_sha256: str, license: str = ""
) -> Iterator[tuple[Record, str]]:
    """Yield the exports that are not of the model beside them, and in what they differ.

    `config` is the model's, and `weights_sha256` that of its file; an export of a model that was made in Python has
    none, and is compared by its tensors. `license` is the card's, "" where it does not count.
    """
    records = tuple(records)
    tensors = tensors_sha256(model) if records else ""
    names, prepared = class_names(model), preparation_of(model)
    del prepared["input_size"]  # an export may be for another
    named = licence_in(config)
    for record in records:
        facts = record.facts
        if facts.tensors_sha256 != tensors or facts.sha256 not in (None, weights_sha256):
            yield record, "it was made of other weights than those beside it"
            continue
        expected: dict[str, Any] = {
            "architecture": config["architecture"], "num_classes": model.num_classes,
            "class_names": None if names is None else tuple(names),
            **{name: tuple(value) if isinstance(value, list) else value for name, value in prepared.items()},
        }  # fmt: skip
        other = [name for name, value in expected.items() if getattr(facts, name) != value]
        if facts.held_out not in (None, held_out.recorded(model)):
            other.append("held_out")
        if {named, license} - {"", facts.license} and (named or facts.license):
            other.append("license")
        if other:
            yield record, f"the model beside it has another {', another '.join(other)}"


def _all_names(directory: Path) -> list[str]:
    return sorted(
        f"{format}/{path.name}"
        for format in PUSHED_FORMATS
        if (directory / format).is_dir()
        for path in (directory / format).iterdir()
    )


def _sha256_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
