"""Decide whether a run begins, goes on, or must not touch what is in its output folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import errors_named
from seresnet_hub.files.durability import flush_way_to
from seresnet_hub.files.leftovers import PARTIAL, sweep
from seresnet_hub.files.locks import RUN_LOCK, STATES_FOLDER, acquire
from seresnet_hub.files.model_folder import CARD_NAME, CONFIG_NAME, CURVES_NAME, SUMMARY_NAME, WEIGHTS_NAME
from seresnet_hub.training.checkpoint import CHECKPOINT_NAME, latest_checkpoint, list_checkpoints

# Folders within the output: of the moving average's run also the raw weights, and of both the best beside the last.
BEST, RAW, BEST_RAW = "best", "raw", "best_raw"
FOLDERS = ("", BEST, RAW, BEST_RAW)
FILES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME, SUMMARY_NAME, CURVES_NAME)


def begin(
    output: Path, *, resume: bool, say: Callable[[str], None], on_exit: ExitStack
) -> tuple[dict[str, Any], list[str]] | None:
    """Lock `output` until `on_exit`; return the checkpoint to resume from and what is wrong with later ones, or None.

    None is a new run. What a killed run left half-written is removed. Errors: `InputError` where another run is in
    there, it holds what a new run would overwrite, or all checkpoints are damaged; nothing was changed then.
    """
    _require_writable(output)
    try:
        _require_ours(output, resume=resume)
        lock = acquire(output / RUN_LOCK, what=str(output), say=say)
        on_exit.callback(lock.release)
        _require_ours(output, resume=resume)  # another run may have ended while this one waited
        flush_way_to(output / STATES_FOLDER)
    except OSError as error:
        raise InputError(f"cannot use {output}: {error.strerror or error}") from error
    found = None
    if list_checkpoints(output):
        found = latest_checkpoint(output)
    elif resume:
        say(f"nothing to resume in {output} yet: beginning")
    for folder in (*(output / name for name in FOLDERS), output / STATES_FOLDER):
        sweep(folder, everyones=_is_of_a_run if lock.excludes else lambda _: False)
    return found


def _require_ours(output: Path, *, resume: bool) -> None:
    """Raise `InputError` where a run may not begin, or go on, in `output` as it is."""
    if list_checkpoints(output):
        if resume:
            return
        raise InputError(f"{output} already exists: continue it with --resume, or choose another --output")
    if not output.exists():
        return
    kept = _kept(output)
    if kept is None:
        return
    if resume:
        raise InputError(
            f"nothing to resume: {output} holds {kept}, but no state of a run in {STATES_FOLDER}/; choose another "
            "--output (of several machines, the one of rank 0 keeps the states)"
        )
    raise InputError(f"{output} already exists: choose another --output")


def _kept(output: Path) -> str | None:
    """Return the name of something in `output` that is not of a run that ended before its first checkpoint.

    Such a run leaves its lock, what it had half written, and whatever its trackers put beside the lock.
    """
    begun = (output / RUN_LOCK).is_file()
    for path in sorted(output.iterdir()):
        if path.name == STATES_FOLDER and path.is_dir():
            if begun or all(_is_partial(inner) for inner in path.iterdir()):
                continue
        elif _is_partial(path) or (begun and path.name not in (*FOLDERS, *FILES)):
            continue
        return path.name
    return None


def _is_partial(path: Path) -> bool:
    """Return whether a file or folder is what `files.atomic_writing.replacing` leaves where a run was killed."""
    match = PARTIAL.fullmatch(path.name)
    return match is not None and _is_of_a_run(match["name"])


def _is_of_a_run(name: str) -> bool:
    """Return whether a run writes files or folders of that name."""
    return name in (*FILES, *FOLDERS) or CHECKPOINT_NAME.fullmatch(name) is not None


def _require_writable(output: Path) -> None:
    """Raise `InputError` where nothing could be written to `output` after an epoch's work."""
    with errors_named(output, "write to"):
        if output.is_symlink() and not output.exists():
            raise InputError(f"cannot write to {output}: it is a link to nothing")
        existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
