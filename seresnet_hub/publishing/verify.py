"""Compare the files of a model, on the Hub or in a folder, with what they must be."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seresnet_hub.engines.exported_files import Record, read_record
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.files.model_folder import CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.snapshots import Snapshot, take_snapshot
from seresnet_hub.models.config_checks import checked_config
from seresnet_hub.models.load import origin_of, recorded_hashes
from seresnet_hub.models.name_forms import NAME_FORMS
from seresnet_hub.models.names import parse_name, require_model_folder
from seresnet_hub.models.strict_loading import load_folder
from seresnet_hub.models.trial_forward import check_runs
from seresnet_hub.publishing.exported_files_to_push import (
    first_file,
    record_names,
    recorded_exports,
    unlike_its_record,
    unlike_the_model,
)


def verify(name: str | Path) -> dict[str, Any]:
    """Compare a model's files with the hashes they must have, load it and run it, and return what was found.

    `name` is a repository or a folder, as `load` takes it, or a timm name whose weights are on the Hub. Of a
    repository these are all files but pickles, which are not fetched; without a network, those that the cache holds.
    Of a folder they are the files whose hashes `config.json` or the record of an export holds. An export must also be
    of the model beside it. `ok` says whether everything holds: it is false where `config.json` is missing, too. Errors:
    `InputError` where there is nothing to compare.
    """
    meant = parse_name(name)
    if meant.folder is not None:
        snapshot = _recorded(meant.folder)
    else:
        repo_id = meant.repo_id or origin_of(meant.name).repo_id
        if not repo_id:
            raise InputError(f"{name!r} has no files to verify: name a repository or a folder, {NAME_FORMS}")
        snapshot = take_snapshot(repo_id, meant.revision, names=None, check=False)
    wrong = snapshot.wrong()
    for file in wrong:
        say(f"{snapshot.paths[file]} is not what it must be ({snapshot.hashes[file]}): delete it and fetch it again")
    directory = meant.folder or snapshot.paths[WEIGHTS_NAME].parent
    exports, problems = _exports(snapshot, directory, wrong)
    ok = not wrong
    if ok:
        try:
            model = load_folder(directory, name, {}, copy=False)
            check_runs(model, name)
            weights, config = _sha256(snapshot, directory, WEIGHTS_NAME), checked_config(directory / CONFIG_NAME)
            for record, problem in unlike_the_model(exports, model, config, weights):
                problems[first_file(record)] = f"{record.name}: {problem}"
        except InputError as error:
            say(str(error))
            ok = False
    for problem in problems.values():
        say(f"{problem}: export it again")
    files = {
        file: {"hash": snapshot.hashes[file], "ok": file not in wrong and file not in problems}
        for file in sorted(snapshot.paths)
    }
    ok = ok and not problems
    return {"repo_id": snapshot.repo_id or meant.name, "commit": snapshot.commit, "files": files, "ok": ok}


def _recorded(directory: Path) -> Snapshot:
    """Return the files of a folder with the hashes that its `config.json` and the records of its exports hold."""
    require_model_folder(directory)
    hashes = recorded_hashes(directory)
    for name in record_names(directory):
        with suppress(InputError):  # which is said with the other exports'
            hashes |= recorded_exports(read_record(directory / name))
    if not hashes:
        raise InputError(f"{directory / CONFIG_NAME} records no hashes: there is nothing to compare with")
    return Snapshot(repo_id="", commit="", paths={file: directory / file for file in hashes}, hashes=hashes)


def _exports(snapshot: Snapshot, directory: Path, wrong: Sequence[str]) -> tuple[list[Record], dict[str, str]]:
    """Return the exports that are what their records say, and what is wrong with others, by the name of a file."""
    exports, problems = list[Record](), dict[str, str]()
    for name in record_names(directory):
        try:
            record = read_record(directory / name)
        except InputError as error:
            problems[name] = str(error)
            continue
        hashes = recorded_exports(record)
        unlike = [file for file in hashes if file not in wrong and _sha256(snapshot, directory, file) != hashes[file]]
        problems |= {file: f"{directory / file} is not the file that {name} describes" for file in unlike}
        if unlike or set(hashes) & set(wrong):
            continue
        if problem := unlike_its_record(record):
            problems[first_file(record)] = problem
        else:
            exports.append(record)
    return exports, problems


def _sha256(snapshot: Snapshot, directory: Path, name: str) -> str:
    """Return the sha256 of a file whose bytes were compared with the snapshot's hash, "" where there is none."""
    known = snapshot.hashes.get(name, "")
    if len(known) == 64:
        return known
    return sha256_of(directory / name) if (directory / name).is_file() else ""
