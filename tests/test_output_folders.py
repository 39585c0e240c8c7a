"""A run's folder may hold anything, and go away while it runs: one line says so, and nothing that was good is lost."""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from seresnet_hub.errors import InputError
from seresnet_hub.evaluation import report
from seresnet_hub.files.locks import LOCK_NAME, only_writer
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import checkpoint
from seresnet_hub.training import start_or_resume as starting
from seresnet_hub.training import train as training
from seresnet_hub.training.start_or_resume import begin

SMALL = replace(get_recipe("digits"), epochs=2, batch_size=10, input_size=8, shuffle_window=20, workers=0)


def test_what_is_no_file_under_a_states_name_is_named_and_nothing_begins_anew(tmp_path: Path) -> None:
    """A pipe would be read for ever, and states that are links to a disk which is gone are no empty folder."""
    state = tmp_path / "run" / "training" / "step-00000004.safetensors"
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(tmp_path / "gone", path)):
        state.parent.mkdir(parents=True)
        make(state)
        for resume in (False, True):
            with pytest.raises(InputError, match=f"{state.name} is no file"), ExitStack() as on_exit:
                begin(tmp_path / "run", resume=resume, say=print, on_exit=on_exit)
        assert [path.name for path in (tmp_path / "run").rglob("*")] == ["training", state.name]
        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("kind", ["file", "link to nothing", "ring"])
def test_a_training_folder_that_is_none(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "run"
    output.mkdir()
    if kind == "file":
        (output / "training").write_text("mine")
    else:
        (output / "training").symlink_to(output / "training" if kind == "ring" else tmp_path / "gone")
    for resume in (False, True):
        with pytest.raises(InputError, match="run"), ExitStack() as on_exit:
            begin(output, resume=resume, say=print, on_exit=on_exit)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "training"]


def test_states_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`training` may be a link to a folder elsewhere; two runs that share it are told."""
    for name in ("disk", "run", "other"):
        (tmp_path / name).mkdir()
    for name in ("run", "other"):
        (tmp_path / name / "training").symlink_to(tmp_path / "disk")
    with ExitStack() as on_exit:
        assert begin(tmp_path / "run", resume=False, say=print, on_exit=on_exit) is None
        checkpoint.save_checkpoint(tmp_path / "run", {"step": 3})
        monkeypatch.setattr(starting, "acquire", partial(starting.acquire, patience=0))
        with pytest.raises(InputError, match="other is in use by process"):
            begin(tmp_path / "other", resume=True, say=print, on_exit=on_exit)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "run")] == ["step-00000003.safetensors"]


@pytest.mark.parametrize("way", ["removed", "read-only"])
def test_a_run_whose_folder_goes_meanwhile_is_one_line(
    tmp_path: Path, numbers: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, steps, step = tmp_path / "run", [], torch.optim.SGD.step

    def meanwhile(self: torch.optim.SGD, *args: object) -> object:
        steps.append(1)
        if len(steps) == 6 and way == "removed":
            shutil.rmtree(output)
        elif len(steps) == 6:
            monkeypatch.setattr(os, "replace", read_only)
        return step(self, *args)

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(torch.optim.SGD, "step", meanwhile)
    message = "no longer the folder of this run" if way == "removed" else "cannot write .*Read-only file system"
    with pytest.raises(InputError, match=message):
        training.train(SMALL, data=numbers, output=output)
    if way == "removed":
        assert not output.exists()
    else:
        assert [path.name for path in checkpoint.list_checkpoints(output)] == ["step-00000004.safetensors"]
        assert not [path for path in output.rglob("*") if path.name.endswith(".partial")]


def test_what_lies_beside_good_states_may_be_damaged(tmp_path: Path, numbers: str) -> None:
    """A run goes on from its states alone."""
    training.train(SMALL, data=numbers, output=tmp_path / "whole")
    training.train(SMALL, data=numbers, output=tmp_path / "parts", max_steps=6)
    for name, data in (("config.json", b""), ("summary.csv", b"\xff\0"), ("model.safetensors", b"half"),
                       ("README.md", b"\0"), (f"training/{LOCK_NAME}", b"[[[")):  # fmt: skip
        (tmp_path / "parts" / name).write_bytes(data)
    training.train(SMALL, data=numbers, output=tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_clock_that_stands_still_ends_no_run(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: 5.0)
        result = training.train(SMALL, data=numbers, output=tmp_path / "run")
    assert (result["steps"], result["images_per_second"]) == (8, None)


def test_two_reports_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "only_writer", partial(only_writer, patience=0.4))
    confusion = np.array([[3, 1], [0, 4]])
    report.write_report(tmp_path / "report", confusion)
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    with only_writer(tmp_path / "report"), pytest.raises(InputError, match="report is in use by another process"):
        report.write_report(tmp_path / "report", confusion.T)
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before
    report.write_report(tmp_path / "report", confusion.T)
