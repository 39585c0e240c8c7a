"""A run that is killed at any moment must end, when resumed, with the very bits of the run that never was."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import timm
import torch
from conftest import WriteSplit

from seresnet_hub.training.checkpoint import latest_checkpoint, list_checkpoints, save_checkpoint

SCRIPT = str(Path(__file__).parents[1] / "scripts" / "train.py")
SETTINGS = {
    "epochs": 4, "batch_size": 16, "input_size": 16, "workers": 0, "checkpoint_steps": 1, "accumulation": 2,
    "ema_decay": 0.8, "mixup": 0.2, "cutmix": 1.0, "drop_path": 0.2, "shuffle_window": 30, "learning_rate": 0.05,
    "repeated_augmentation": 2,
}  # fmt: skip
STEPS = 24


def start(data: Path, output: Path, processes: int, *more: str) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, *launcher, SCRIPT, "--data", str(data), "--output", str(output), *settings, *more]
    with output.with_suffix(".json").open("wb") as result:
        return subprocess.Popen(command, stdout=result, stderr=subprocess.DEVNULL)


def step_of(output: Path) -> int:
    found = list_checkpoints(output)
    return int(found[0].stem.removeprefix("step-")) if found else 0


def wait_for(output: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while step_of(output) < step:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same_run(first: Path, second: Path, *, steps: int = STEPS) -> None:
    whole, parts = (latest_checkpoint(folder)[0] for folder in (first, second))
    assert whole["step"] == parts["step"] == steps
    assert torch.equal(whole["losses"], parts["losses"])
    assert whole["history"] == parts["history"]
    for kind in ("model", "average"):
        assert whole[kind]
        assert all(torch.equal(whole[kind][name], tensor) for name, tensor in parts[kind].items()), kind
    for name in (".", "best", "raw", "best_raw"):
        files = [(folder / name / "model.safetensors").read_bytes() for folder in (first, second)]
        assert files[0] == files[1], name


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_five_kills_change_no_bit(tmp_path: Path, write_split: WriteSplit, processes: int) -> None:
    write_split([[30, 26], [40]])
    data = write_split([[7]], split="validation")
    assert start(data, tmp_path / "whole", processes).wait(300) == 0
    kills = sorted(random.Random(processes).sample([k for k in range(1, STEPS) if k % 6], 5))
    for number, kill in enumerate(kills):
        process = start(data, tmp_path / "parts", processes, *(["--resume"] if number else []))
        wait_for(tmp_path / "parts", kill, process)
        for member in [
            *trainers_of(process),
            psutil.Process(process.pid),
        ]:  # the launcher last: it would end the others
            member.kill()
        process.wait()
        print(f"killed at step {step_of(tmp_path / 'parts')} of {STEPS}, wanted {kill}")
    assert start(data, tmp_path / "parts", processes, "--resume").wait(300) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "number"), [(1, signal.SIGTERM), (1, signal.SIGUSR1), (2, signal.SIGUSR1), (2, signal.SIGTERM)]
)
def test_a_schedulers_signal_saves_and_ends_the_run(
    tmp_path: Path, write_split: WriteSplit, processes: int, number: signal.Signals
) -> None:
    """The whole job gets the signal, loader workers too; nothing but the signal makes a state within an epoch.

    Of two processes the launcher gets SIGTERM as well, and passes it on: they get it twice.
    """
    write_split([[30, 26], [40]])
    data = write_split([[7]], split="validation")
    settings = ["--set", "checkpoint_steps=0", "workers=1", "--max-steps", str(STEPS)]
    assert start(data, tmp_path / "whole", processes, *settings).wait(300) == 0
    process = start(data, tmp_path / "parts", processes, *settings, "--stopped-exit-code", "75")
    wait_for(tmp_path / "parts", 1, process)
    launched = processes > 1 and number == signal.SIGTERM
    for member in [*trainers_of(process), *([psutil.Process(process.pid)] if launched else [])]:
        member.send_signal(number)
    process.wait(120)
    result = json.loads((tmp_path / "parts.json").read_text())
    print(f"{number.name} on {processes} process(es): stopped at step {result['steps']} of {STEPS}")
    assert result["stopped"] == number.name
    assert process.returncode == (75 if processes == 1 else 1)  # torch's launcher has one code for every failure
    assert step_of(tmp_path / "parts") == result["steps"] < STEPS
    assert start(data, tmp_path / "parts", processes, *settings, "--resume").wait(300) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_run_cut_short_within_an_epoch_goes_on_to_the_same_bits(tmp_path: Path, write_split: WriteSplit) -> None:
    """Of two processes, each has statistics of its own there; what is measured is their mean."""
    write_split([[30, 26], [40]])
    data = write_split([[7]], split="validation")
    settings = ["--set", "checkpoint_steps=0"]
    assert start(data, tmp_path / "whole", 2, *settings).wait(300) == 0
    for steps in ("9", "16"):
        assert start(data, tmp_path / "parts", 2, *settings, "--resume", "--max-steps", steps).wait(300) == 0
        gathered = latest_checkpoint(tmp_path / "parts")[0]["statistics"]
        assert gathered.keys() == {"model", "average"}
        assert all(len(rows) == 2 and not torch.equal(*rows) for rows in gathered.values())
        measured = timm.create_model(f"local-dir:{tmp_path / 'parts' / 'raw'}", pretrained=True)
        own = torch.cat([b for name, b in measured.named_buffers() if "running_" in name])
        torch.testing.assert_close(own, gathered["model"].mean(dim=0))
    assert start(data, tmp_path / "parts", 2, *settings, "--resume").wait(300) == 0
    whole, parts = (latest_checkpoint(tmp_path / name)[0] for name in ("whole", "parts"))
    assert torch.equal(whole["losses"], parts["losses"])  # the history has the rows of the measurements in between
    for kind in ("model", "average"):
        assert all(torch.equal(whole[kind][name], tensor) for name, tensor in parts[kind].items()), kind


def trainers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that train, loader workers too, but no launcher."""
    started = psutil.Process(process.pid)
    family = [started, *started.children(recursive=True)]
    alive = [member for member in family if member.status() != psutil.STATUS_ZOMBIE]
    return [member for member in alive if "torch.distributed.run" not in member.cmdline()]


def test_states_of_a_run_that_went_back_are_replaced(tmp_path: Path) -> None:
    """The newest state was damaged, so the run went on from the one before; what it saves now must not be deleted."""
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, {"step": step, "model": {"weight": torch.ones(2)}}, keep=3)
    list_checkpoints(tmp_path)[0].write_bytes(b"damaged")
    state, damaged = latest_checkpoint(tmp_path)
    assert (state["step"], len(damaged)) == (2, 1)
    for keep, left in ((1, [2]), (2, [3, 2])):
        save_checkpoint(tmp_path, {**state, "step": left[0]}, keep=keep)
        assert [int(path.stem[5:]) for path in list_checkpoints(tmp_path)] == left
    assert latest_checkpoint(tmp_path)[1] == []


@pytest.mark.slow
def test_an_epoch_that_was_trained_but_not_measured_is_measured_first(tmp_path: Path, write_split: WriteSplit) -> None:
    """Killed while it evaluates: the state of the epoch's last step has no row in the history yet."""
    write_split([[30, 26], [40]])
    data = write_split([[7]], split="validation")
    assert start(data, tmp_path / "whole", 1).wait(300) == 0
    assert start(data, tmp_path / "parts", 1, "--max-steps", "12").wait(300) == 0
    state = latest_checkpoint(tmp_path / "parts")[0]
    assert (state["step"], len(state["history"])) == (12, 2)
    (measured,) = [row.pop("top1") for row in state["history"][1:]]
    assert 0 <= measured <= 100
    save_checkpoint(tmp_path / "parts", state)
    assert start(data, tmp_path / "parts", 1, "--resume").wait(300) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


# Ends rank 1 in the third step of the first start, and rank 0 in the fourth step of the second.
DYING = """
import os, signal, sys, torch
from pathlib import Path
from seresnet_hub.commands import train
from seresnet_hub.commands.result_or_error import run
step, made = torch.optim.SGD.step, []
def dying(self, *args):
    made.append(1)
    for number, (rank, steps) in enumerate(((1, 3), (0, 4))):
        if int(os.environ["TORCHELASTIC_RESTART_COUNT"]) == number:
            if int(os.environ["RANK"]) == rank and len(made) == steps:
                os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args)
torch.optim.SGD.step = dying
sys.exit(run(train.main))
"""


@pytest.mark.slow
@pytest.mark.parametrize("first_state", [1, 6])
def test_a_launcher_that_restarts_its_processes_changes_no_bit(
    tmp_path: Path, write_split: WriteSplit, first_state: int
) -> None:
    """`torchrun --max_restarts`: rank 1 dies, then rank 0, once before the first state; the command stays the same."""
    write_split([[30, 26], [40]])
    data = write_split([[7]], split="validation")
    (tmp_path / "dying.py").write_text(DYING)
    settings = {**SETTINGS, "checkpoint_steps": first_state, "epochs": 2}
    for script, output in ((SCRIPT, "whole"), (str(tmp_path / "dying.py"), "parts")):
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("--max_restarts", "3", script, "--data", str(data), "--output", str(tmp_path / output), "--resume"),
            *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")),
        ]
        path = f"{Path(SCRIPT).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=400, check=False, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout.splitlines()[-1])["steps"] == 12
    begun = done.stderr.count("yet: beginning")
    resumed = [int(step) for step in re.findall(r"resuming \S+ at step (\d+) of 12", done.stderr)]
    print(f"begun {begun} times, resumed at steps {resumed}")
    assert begun + len(resumed) == 3
    assert begun == (1 if first_state == 1 else 3)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", steps=12)
