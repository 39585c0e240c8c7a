"""One command begins a run or goes on with it, after a kill at any moment, and overwrites nothing else."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, weights
from warm_python import run_python

from seresnet_hub.errors import InputError
from seresnet_hub.files.locks import LOCK_NAME
from seresnet_hub.recipes.recipe import Recipe
from seresnet_hub.training import checkpoint, loop
from seresnet_hub.training import start_or_resume as starting
from seresnet_hub.training import train as training
from seresnet_hub.training.launchers import processes_started, require_launcher
from seresnet_hub.training.start_or_resume import begin

SCRIPT = str(Path(__file__).parents[1] / "scripts" / "train.py")
PARTIAL = ".step-00000004.safetensors.4194304.partial"  # no system gives this process id


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def started(output: Path, *, resume: bool) -> list[str]:
    """Return what is said where a run may start in `output`; it had no state before."""
    said: list[str] = []
    with ExitStack() as on_exit:
        assert begin(output, resume=resume, say=said.append, on_exit=on_exit) is None
        assert (output / "training" / LOCK_NAME).is_file()
    return said


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "left",
    [
        [],
        ["training"],
        [f"training/{LOCK_NAME}", "training/seresnet_hub/events.out.tfevents.1"],
        [f"training/{PARTIAL}"],
        [f"training/{LOCK_NAME}", f"training/{PARTIAL}", ".best.4194304.partial/.model.safetensors.4194304.partial"],
        [f"training/{LOCK_NAME}", "notes.txt", "training/mine.partial", "training/.mine.123.partial"],
    ],
    ids=["nothing", "an empty folder", "a tracker's files", "half a state", "half a folder", "other files"],
)
def test_what_a_killed_run_left_is_in_the_way_of_nothing(tmp_path: Path, left: list[str], resume: bool) -> None:
    output = tmp_path / "run"
    for name in left:
        path = output / name
        if "." in path.name or path.parent.name == "seresnet_hub":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("left")
        else:
            path.mkdir(parents=True)
    said = started(output, resume=resume)
    assert said == ([f"nothing to resume in {output} yet: beginning"] if resume else [])
    after = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert after - {f"training/{LOCK_NAME}"} == {
        name for name in left if "4194304" not in name and name not in ("training", f"training/{LOCK_NAME}")
    }


@pytest.mark.parametrize(
    "there",
    [["thesis.txt"], ["model.safetensors", "config.json"], [f"training/{LOCK_NAME}", "model.safetensors"],
     [f"training/{LOCK_NAME}", "README.md"], ["training/photos/1.jpg"], ["training/.mine.123.partial"]],
    ids=["a stranger's file", "a model", "a model whose states were deleted", "a README", "another training folder",
         "another partial file"],
)  # fmt: skip
def test_what_is_no_run_is_refused_and_left_as_it_is(tmp_path: Path, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    for resume, message in ((True, f"nothing to resume: {tmp_path} holds "), (False, f"{tmp_path} already exists: ")):
        with pytest.raises(InputError, match=message), ExitStack() as on_exit:
            begin(tmp_path, resume=resume, say=print, on_exit=on_exit)
        assert tree(tmp_path) == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for resume in (False, True):
        with pytest.raises(InputError, match="cannot write to .*file: Not a directory"), ExitStack() as on_exit:
            begin(tmp_path / "file", resume=resume, say=print, on_exit=on_exit)


def test_a_run_goes_on_and_a_damaged_one_does_not_begin_anew(tmp_path: Path) -> None:
    path = checkpoint.save_checkpoint(tmp_path, {"step": 3, "model": {"weight": torch.ones(2)}})
    (tmp_path / "training" / PARTIAL).write_text("half")
    with pytest.raises(InputError, match="already exists: continue it with --resume"), ExitStack() as on_exit:
        begin(tmp_path, resume=False, say=print, on_exit=on_exit)
    with ExitStack() as on_exit:
        found = begin(tmp_path, resume=True, say=print, on_exit=on_exit)
    assert found is not None
    assert (found[0]["step"], found[1]) == (3, [])
    assert not (tmp_path / "training" / PARTIAL).exists()
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot resume: .* is damaged"), ExitStack() as on_exit:
        begin(tmp_path, resume=True, say=print, on_exit=on_exit)
    assert path.read_bytes() == b"damaged"


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_while_the_first_one_runs(
    tmp_path: Path, numbers: str, resume: bool, monkeypatch: pytest.MonkeyPatch, whole_run: Path
) -> None:
    """The second starts in the middle of the first, which must not notice."""
    monkeypatch.setattr(starting, "acquire", partial(starting.acquire, patience=0))
    recipe = replace(SMALL, checkpoint_steps=1 if resume else 0)
    step, steps = torch.optim.SGD.step, []

    def intrude(self: torch.optim.SGD, *args: object) -> object:
        steps.append(1)
        if len(steps) == 3:
            before = tree(tmp_path / "run")
            assert len(before) == (3 if resume else 1)
            with pytest.raises(InputError, match=f"run is in use by process {os.getpid()} on "):
                training.train(recipe, data=numbers, output=tmp_path / "run", resume=resume)
            assert tree(tmp_path / "run") == before
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", intrude)
    training.train(recipe, data=numbers, output=tmp_path / "run")
    assert len(steps) == 8
    assert_same(whole_run, tmp_path / "run")


SETTINGS = [f"{name}={getattr(SMALL, name)}" for name in ("epochs", "batch_size", "input_size", "workers")]
# Ends the process where it is, as kill -9 does: at a step before the first state, or within that state's write.
KILLED = """
import os, sys, torch
import seresnet_hub.training.checkpoint as checkpoint
from seresnet_hub.commands import train
from seresnet_hub.commands.result_or_error import run
moment = sys.argv.pop(1)
if moment == "step":
    torch.optim.SGD.step = lambda *_: os._exit(9)
else:
    checkpoint.save_file = lambda tensors, path, **_: (open(path, "wb").write(b"half"), os._exit(9))
sys.exit(run(train.main))
"""


@pytest.mark.parametrize(
    ("moment", "resume"),
    [
        ("state", True),
        pytest.param("step", True, marks=pytest.mark.slow),
        *(pytest.param(moment, False, marks=pytest.mark.slow) for moment in ("step", "state")),
    ],
)
def test_a_run_with_a_tracker_that_is_killed_before_its_first_state(
    tmp_path: Path, numbers: str, moment: str, resume: bool, capsys: pytest.CaptureFixture[str], whole_run: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    output = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, moment, "--data", numbers, "--output", str(output), "--tracker",
               "tensorboard", *(["--resume"] if resume else []), "--set", *SETTINGS, "shuffle_window=20"]  # fmt: skip
    assert run_python(command).returncode == 9
    left = [path.name for path in output.rglob("*") if path.is_file()]
    assert any(name.startswith("events.out") for name in left)
    assert any(name.endswith(".partial") for name in left) == (moment == "state")
    training.train(SMALL, data=numbers, output=output, resume=resume, trackers=["tensorboard"])
    assert (f"nothing to resume in {output} yet: beginning" in capsys.readouterr().err) == resume
    assert_same(whole_run, output)
    assert not [path for path in output.rglob("*") if path.name.endswith(".partial")]


def test_tasks_of_a_step_that_know_nothing_of_each_other_are_refused() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_PROCID": "3"}
    with pytest.raises(InputError, match="srun started 8 processes that are not joined: .*scripts/cluster/slurm.sh"):
        require_launcher(step)
    require_launcher({**step, "WORLD_SIZE": "8", "RANK": "3"})  # a launcher started this process
    require_launcher({**step, "SLURM_STEP_NUM_TASKS": "1"})
    require_launcher({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"})  # what the script of a batch job has
    require_launcher({})


def test_srun_without_a_launcher_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK")}
    environment |= {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}
    command = [sys.executable, SCRIPT, "--output", str(tmp_path / "run")]
    done = run_python(command, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: srun started 8 processes that are not joined: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_mpi_says_how_many_it_started() -> None:
    assert processes_started({}) == 0
    assert processes_started({"OMPI_COMM_WORLD_SIZE": "4"}) == 4
    assert processes_started({"PMI_SIZE": "2"}) == 2
    assert processes_started({"PMI_SIZE": "2", "WORLD_SIZE": "16"}) == 16


def counted(recipe: Recipe, numbers: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """Train; return the steps after which states were saved, and those of the history that were measured."""
    saved: list[int] = []
    save = loop.save_checkpoint

    def record(folder: Path, state: dict[str, int], **options: int) -> Path:
        saved.append(state["step"])
        return save(folder, state, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", record)
        training.train(recipe, data=numbers, output=output)
    history = checkpoint.latest_checkpoint(output)[0]["history"]
    assert [row["step"] for row in history] == [4 * epoch for epoch in range(1, recipe.epochs + 1)]
    assert all("train_loss" in row for row in history)
    return saved, [int(row["step"]) for row in history if "top1" in row]


def test_it_is_saved_once_an_epoch_or_less_often(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And at the end once more, with the last measurement. How often is not what is learnt."""
    recipe = replace(SMALL, epochs=5)
    assert counted(recipe, numbers, tmp_path / "each", monkeypatch) == ([4, 8, 12, 16, 20, 20], [4, 8, 12, 16, 20])
    seldom = replace(recipe, eval_every=3, save_every=2)
    assert counted(seldom, numbers, tmp_path / "seldom", monkeypatch) == ([8, 16, 20, 20], [12, 20])
    assert_same(tmp_path / "each", tmp_path / "seldom")
    training.train(seldom, data=numbers, output=tmp_path / "parts", max_steps=9)
    # Neither has to stay as it was.
    training.train(replace(seldom, eval_every=4, save_every=1), data=numbers, output=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "each", tmp_path / "parts")


def test_a_model_folder_is_never_without_a_state(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured more often than saved: a run that is killed after its first model must be able to go on."""

    class Killed(BaseException):
        pass

    recipe = replace(SMALL, epochs=3, save_every=3)
    training.train(recipe, data=numbers, output=tmp_path / "whole")
    step, steps = torch.optim.SGD.step, []

    def killed(self: torch.optim.SGD, *args: object) -> object:
        steps.append(1)
        if len(steps) == 6:
            raise Killed
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", killed)
    with pytest.raises(Killed):
        training.train(recipe, data=numbers, output=tmp_path / "parts")
    assert (tmp_path / "parts" / "model.safetensors").is_file()
    monkeypatch.undo()
    training.train(recipe, data=numbers, output=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("moment", ["evaluation", "folders"])
def test_an_evaluation_that_was_lost_is_repeated(
    tmp_path: Path, numbers: str, moment: str, monkeypatch: pytest.MonkeyPatch, whole_run: Path
) -> None:
    """The process ends between an epoch's state and its measurements, or while it writes the best model."""

    class Killed(BaseException):
        pass

    name = "measure" if moment == "evaluation" else "save_run"
    original = getattr(loop, name)
    for epoch in (1, 2):
        calls: list[int] = []

        def fail(*given: object, calls: list[int] = calls, **options: object) -> object:
            calls.append(1)
            if moment == "evaluation" or len(calls) == 2:
                raise Killed
            return original(*given, **options)

        monkeypatch.setattr(loop, name, fail)
        with pytest.raises(Killed):
            training.train(SMALL, data=numbers, output=tmp_path / "parts", resume=epoch == 2)
    monkeypatch.setattr(loop, name, original)
    training.train(SMALL, data=numbers, output=tmp_path / "parts", resume=True)
    assert_same(whole_run, tmp_path / "parts")
    assert_same(whole_run / "best", tmp_path / "parts" / "best")
    assert (whole_run / "summary.csv").read_text() == (tmp_path / "parts" / "summary.csv").read_text()
