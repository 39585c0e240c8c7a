"""A loss of power at any moment leaves a run that goes on from a state it had saved, or one clear line; never less."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from power_loss import Recording, losses, recorded, written_to

from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import write_model
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import checkpoint, loop
from seresnet_hub.training import train as training
from seresnet_hub.training.start_or_resume import begin

SMALL = replace(get_recipe("digits"), epochs=2, batch_size=10, input_size=8, shuffle_window=20, workers=0)


def state_of(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.full((4,), float(step))}}


def resumed(output: Path) -> dict[str, Any] | None:
    """Return the state that a run goes on from, None where it begins."""
    with ExitStack() as on_exit:
        found = begin(output, resume=True, say=lambda _: None, on_exit=on_exit)
    return found and found[0]


def fingerprint(state: dict[str, Any]) -> str:
    return checkpoint.digest_of(*checkpoint.serialized(state))


def run_of(root: Path, recording: Recording, *, steps: int, keep: int) -> None:
    """Save states as a run does, in folders that are not there yet; say of each that it is saved."""
    with ExitStack() as on_exit:
        begin(root / "runs" / "one", resume=False, say=print, on_exit=on_exit)
        for step in range(1, steps + 1):
            checkpoint.save_checkpoint(root / "runs" / "one", state_of(step), keep=keep)
            recording.mark(str(step))


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_saved_is_there_after_a_loss_of_power(tmp_path: Path, keep: int) -> None:
    """Also the very first state, whose folders are new: their names must be on the disk as well."""
    (tmp_path / "disk").mkdir()
    with recorded(tmp_path / "disk") as recording:
        run_of(tmp_path / "disk", recording, steps=3, keep=keep)
    tried = 0
    for claimed, state in losses(recording):
        tried += 1
        folder = written_to(tmp_path / "left", state)
        found = resumed(folder / "runs" / "one")
        if claimed:
            assert found is not None, claimed
            assert found["step"] >= int(claimed[-1])
        if found is not None:
            assert torch.equal(found["model"]["weight"], torch.full((4,), float(found["step"])))
        shutil.rmtree(tmp_path / "left", ignore_errors=True)
    print(f"{tried} disks after a loss of power in {len(recording.log)} changes")
    assert tried > 40


@pytest.mark.parametrize("broken", ["file", "folder", "made"])
def test_the_recording_finds_what_is_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Without one of the flushes, some loss of power takes a state that had been saved."""
    from seresnet_hub.files import atomic_writing as folder
    from seresnet_hub.files import durability, locks
    from seresnet_hub.training import start_or_resume as starting

    nothing: Callable[[Path], None] = lambda _: None  # noqa: E731
    if broken == "file":
        monkeypatch.setattr(folder, "flush_tree", nothing)
    elif broken == "folder":
        monkeypatch.setattr(folder, "flush_folder", nothing)
    else:
        monkeypatch.setattr(starting, "flush_way_to", nothing)
        for module in (folder, locks):
            monkeypatch.setattr(module, "make_folders", lambda path: path.mkdir(parents=True, exist_ok=True))
        assert durability.make_folders is not locks.make_folders
    (tmp_path / "disk").mkdir()
    with recorded(tmp_path / "disk") as recording:
        run_of(tmp_path / "disk", recording, steps=2, keep=1)
    lost = 0
    for claimed, state in losses(recording):
        left = written_to(tmp_path / "left", state)
        try:
            found = resumed(left / "runs" / "one")
        except InputError:
            found = None
        lost += bool(claimed) and (found is None or found["step"] < int(claimed[-1]))
        shutil.rmtree(tmp_path / "left", ignore_errors=True)
    assert lost


def test_a_model_folder_is_whole_or_tells_that_it_is_not(tmp_path: Path) -> None:
    """A new one is whole; in one that is replaced file by file, the recorded sha256 tells weights of another time."""

    def write(value: float) -> None:
        tensors = {"weight": torch.full((64,), value)}
        write_model(tmp_path / "disk" / "model", tensors, config={"value": value}, card=lambda _: f"# {value}\n")

    (tmp_path / "disk").mkdir()
    with recorded(tmp_path / "disk") as recording:
        for value in (1.0, 2.0):
            write(value)
            recording.mark(str(value))
    seen = set()
    for claimed, state in losses(recording):
        files = {name[1]: content for name, content in state.items() if name[0] == "model" and len(name) == 2}
        if claimed:
            assert {"model.safetensors", "config.json", "README.md"} <= files.keys()
        if "config.json" in files and "model.safetensors" in files:
            weights = safetensors.torch.load(files["model.safetensors"])["weight"]
            recorded_hash = hashlib.sha256(files["model.safetensors"]).hexdigest().encode() in files["config.json"]
            told = b'"value": %.1f' % weights[0].item() in files["config.json"]
            assert recorded_hash == told
            seen.add((len(claimed), recorded_hash))
    assert seen - {(0, True)} == {(1, True), (1, False), (2, True)}


@pytest.mark.slow
def test_a_real_run_goes_on_after_a_loss_of_power_to_the_same_bits(tmp_path: Path, numbers: str) -> None:
    """What is there is one of its states, bit for bit, not older than the last one that it went on from.

    A run that goes on from such a state ends as the others did: tried for one loss of each state and of each kind.
    """
    recipe = replace(SMALL, checkpoint_steps=2)
    (tmp_path / "disk").mkdir()
    save, saved = checkpoint.save_checkpoint, {}
    with recorded(tmp_path / "disk") as recording:

        def marked(output: Path, state: dict[str, Any], **options: int) -> Path:
            path = save(output, state, **options)
            found = checkpoint.load_checkpoint(path)
            saved.setdefault(state["step"], set()).add(fingerprint(found))
            recording.mark(str(state["step"]))
            return path

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", marked)
            training.train(recipe, data=numbers, output=tmp_path / "disk" / "run")
    whole = (tmp_path / "disk" / "run" / "model.safetensors").read_bytes()
    tried, continued = 0, set()
    for claimed, state in losses(recording):
        tried += 1
        folder = written_to(tmp_path / "left", state)
        output = folder / "run"
        kind = (claimed[-1] if claimed else "", "model" if (output / "model.safetensors").exists() else "")
        found = resumed(output)
        if claimed:
            assert found is not None, claimed
            assert found["step"] >= int(claimed[-1])
        if found is not None:
            assert fingerprint(found) in saved[found["step"]]
        if kind not in continued:
            continued.add(kind)
            training.train(recipe, data=numbers, output=output, resume=True)
            assert (output / "model.safetensors").read_bytes() == whole
        shutil.rmtree(tmp_path / "left", ignore_errors=True)
    print(f"{tried} disks after a loss of power in {len(recording.log)} changes, {len(continued)} of them trained on")
    assert tried > 200
