"""What the name of an exported file means, `onnx:DIR` or `openvino:NS/NAME`: the record of one export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from seresnet_hub.engines.export_facts import FORMATS, PRECISIONS
from seresnet_hub.engines.exported_files import Record, files_of, find_export, read_record, record_of
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import CONFIG_NAME
from seresnet_hub.hub.revisions import check_repo_id, require_revision
from seresnet_hub.hub.snapshots import take_snapshot

HUB = "hf-hub:"  # may stand before NS/NAME, where there is a folder NS


class ExportedName(NamedTuple):
    """The format of an exported file, and its path: a folder, a file, or `NS/NAME[@rev]` on the Hub."""

    format: str
    path: str


def exported_name(given: str | Path) -> ExportedName | None:
    """Return what a name says, `None` where it is none of an exported file; a `Path` never is."""
    format, colon, path = ("", "", "") if isinstance(given, Path) else given.partition(":")
    return ExportedName(format.lower(), path) if colon and format.lower() in FORMATS else None


class FoundExport(NamedTuple):
    """The record of an export, and the commit where it came from the Hub."""

    record: Record
    commit: str | None


def found_export(name: str) -> FoundExport:
    """Return the export that a name means; a path that exists wins, and any other may be of the Hub.

    On the Hub, `NS/NAME/onnx/model_int8.onnx` is one of several. Errors: `InputError` where there is no such export,
    several of which one has to be named, or its record cannot be used.
    """
    meant = exported_name(name)
    if meant is None or not meant.path.strip():
        raise InputError(f"{name!r} names no exported file: it is onnx:PATH or openvino:PATH, or NS/NAME for PATH")
    format, path = meant.format, os.path.expanduser(meant.path)
    commit = None
    if path.lower().startswith(HUB) or _is_of_the_hub(format, path):
        record, commit = _from_the_hub(format, path[len(HUB) :] if path.lower().startswith(HUB) else path)
    else:
        record = read_record(find_export(Path(path), format))
    if record.facts.format != format:
        raise InputError(f"{record.path} is the record of an export to {record.facts.format}, not to {format}")
    return FoundExport(record, commit)


def _is_of_the_hub(format: str, path: str) -> bool:
    """Return whether a path may be a repository: it is not here, its first folder neither, and its depth fits."""
    if "\0" in path or os.path.lexists(path) or path.startswith((".", "~", os.sep)):
        return False
    namespace, slash, rest = path.partition("@")[0].partition("/")
    file = rest.partition("/")[2]
    return bool(slash and rest) and not os.path.isdir(namespace) and (not file or _precision_of(format, file) != "")


def _precision_of(format: str, file: str) -> str:
    """Return the precision of the export that a file belongs to, "" where it is called like none."""
    named = {name: one for one in PRECISIONS for name in (*files_of(format, one), record_of(format, one))}
    return named.get(file, "")


def _from_the_hub(format: str, path: str) -> tuple[Record, str]:
    given, _, revision = path.partition("@")
    repo_id, rest = "/".join(given.split("/")[:2]), given.split("/", 2)[2:]
    check_repo_id(repo_id)
    if revision:
        require_revision(revision)
    precision = _precision_of(format, rest[0]) if rest else ""
    if rest and not precision:
        raise InputError(f"{given}: an export to {format} is called {files_of(format, 'fp32')[0]}, or alike")
    if not precision:
        records = {record_of(format, one): one for one in PRECISIONS}
        there = take_snapshot(repo_id, revision or None, names=(CONFIG_NAME,), optional=tuple(records))
        found = [one for file, one in records.items() if file in there.paths]
        if not found:
            raise InputError(
                f"{repo_id} has no export to {format}: it lacks a record such as {record_of(format, 'fp32')}"
            )
        if len(found) > 1:
            at = f"@{revision}" if revision else ""
            ways = " or ".join(f"{format}:{repo_id}/{files_of(format, one)[0]}{at}" for one in found)
            raise InputError(f"{repo_id} has several exports: name one, {ways}")
        precision, revision = found[0], there.commit
    record = record_of(format, precision)
    snapshot = take_snapshot(repo_id, revision or None, names=(record, *files_of(format, precision)))
    return read_record(snapshot.paths[record]), snapshot.commit
