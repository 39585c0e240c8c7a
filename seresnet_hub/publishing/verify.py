"""Compare the files of a model, on the Hub or in a folder, with what they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.snapshots import Snapshot, take_snapshot
from seresnet_hub.models.load import origin_of, recorded_hashes
from seresnet_hub.models.name_forms import NAME_FORMS
from seresnet_hub.models.names import parse_name, require_model_folder
from seresnet_hub.models.strict_loading import load_folder
from seresnet_hub.models.trial_forward import check_runs


def verify(name: str | Path) -> dict[str, Any]:
    """Compare a model's files with the hashes they must have, load it and run it, and return what was found.

    `name` is a repository or a folder, as `load` takes it, or a timm name whose weights are on the Hub. Of a
    repository these are all files but pickles, which are not fetched; without a network, those that the cache holds.
    Of a folder they are the files whose hashes `config.json` records. `ok` says whether everything holds: it is false
    where `config.json` is missing, too. Errors: `InputError` where there is nothing to compare.
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
    ok = not wrong
    if ok:
        try:
            check_runs(load_folder(meant.folder or snapshot.paths[WEIGHTS_NAME].parent, name, {}, copy=False), name)
        except InputError as error:
            say(str(error))
            ok = False
    files = {file: {"hash": snapshot.hashes[file], "ok": file not in wrong} for file in sorted(snapshot.paths)}
    return {"repo_id": snapshot.repo_id or meant.name, "commit": snapshot.commit, "files": files, "ok": ok}


def _recorded(directory: Path) -> Snapshot:
    """Return the files of a folder with the hashes that its `config.json` records."""
    require_model_folder(directory)
    hashes = recorded_hashes(directory)
    if not hashes:
        raise InputError(f"{directory / CONFIG_NAME} records no hashes: there is nothing to compare with")
    return Snapshot(repo_id="", commit="", paths={file: directory / file for file in hashes}, hashes=hashes)
