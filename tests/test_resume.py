"""A run that is killed at any moment must end, when resumed, with the very bits of the run that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import WriteSplit

SCRIPT = str(Path(__file__).parents[1] / "scripts" / "train.py")
SETTINGS = {
    "epochs": 4, "batch_size": 16, "input_size": 16, "workers": 0, "checkpoint_steps": 1, "accumulation": 2,
    "ema_decay": 0.8, "mixup": 0.2, "cutmix": 1.0, "drop_path": 0.2, "shuffle_window": 30, "learning_rate": 0.05,
}  # fmt: skip
STEPS = 24


def start(data: Path, output: Path, processes: int, *more: str) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, *launcher, SCRIPT, "--data", str(data), "--output", str(output), *settings, *more]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, env=os.environ.copy(), **quiet)  # type: ignore[call-overload]


def step_of(output: Path) -> int:
    try:
        state = torch.load(output / "training" / "state.pt", weights_only=True)
    except FileNotFoundError:
        return 0
    step: int = state["step"]
    return step


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_five_kills_change_no_bit(tmp_path: Path, write_split: WriteSplit, processes: int) -> None:
    write_split([[30, 26], [40]])
    data = write_split([[7]], split="validation")
    assert start(data, tmp_path / "whole", processes).wait(300) == 0
    kills = sorted(random.Random(processes).sample([k for k in range(1, STEPS) if k % 6], 5))
    for number, kill in enumerate(kills):
        process = start(data, tmp_path / "parts", processes, *(["--resume"] if number else []))
        deadline = time.monotonic() + 200
        while step_of(tmp_path / "parts") < kill:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"killed at step {step_of(tmp_path / 'parts')} of {STEPS}, wanted {kill}")
    assert start(data, tmp_path / "parts", processes, "--resume").wait(300) == 0
    whole, parts = (torch.load(tmp_path / name / "training" / "state.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == STEPS
    assert torch.equal(whole["losses"], parts["losses"])
    for kind in ("model", "average"):
        assert whole[kind]
        assert all(torch.equal(whole[kind][name], tensor) for name, tensor in parts[kind].items()), kind
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
