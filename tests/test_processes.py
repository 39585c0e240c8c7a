"""N processes must train the model that one would: the same images, each once an epoch, and the same losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import WriteSplit, encode
from PIL import Image
from sklearn.datasets import load_digits
from warm_python import free_port

from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import train as training
from seresnet_hub.training.checkpoint import latest_checkpoint, list_checkpoints

SCRIPT = Path(__file__).parent / "frozen_statistics.py"
TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"
IMAGES, BATCH, EPOCHS, STEPS_PER_EPOCH = 205, 64, 9, 4  # the last batch of an epoch holds 13
SETTINGS = [
    f"epochs={EPOCHS}", f"batch_size={BATCH}", "input_size=16", "crop_padding=2", "horizontal_flip=0.5", "workers=1",
    "shuffle_window=50", "learning_rate=0.012", "label_smoothing=0.1",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    losses: torch.Tensor
    model: dict[str, torch.Tensor]
    rows: list[list[int]]  # of each rank, the rows of its part of each batch
    seen: list[list[list[int]]]  # of each rank, the images in its part of each batch


@pytest.fixture
def digits(write_split: WriteSplit) -> Path:
    """205 real images in three shards of unequal row groups, and 40 to validate."""
    pictures, labels = load_digits(return_X_y=True)
    images = [encode(Image.fromarray(np.uint8(p.reshape(8, 8) * (255 / 16))).resize((16, 16))) for p in pictures]
    write_split([[50, 31], [64], [7, 53]], images=images[:IMAGES], labels=labels[:IMAGES].tolist())
    held_out = slice(IMAGES, IMAGES + 40)
    return write_split([[40]], split="validation", images=images[held_out], labels=labels[held_out].tolist())


@pytest.fixture
def run(digits: Path, tmp_path: Path) -> Callable[..., Run]:
    """Return a function that trains on a number of processes, from weights whose batch norms have statistics."""
    start = replace(get_recipe("digits"), epochs=8, batch_size=16, input_size=16, workers=0)
    training.train(start, data=str(digits), output=tmp_path / "start")

    def train(processes: int, *more: str) -> Run:
        output, notes = tmp_path / f"run{processes}", tmp_path / f"notes{processes}"
        notes.mkdir()
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        settings = [*SETTINGS, f"weights=local-dir:{tmp_path / 'start'}"]
        command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(notes), "--data", str(digits),
                   "--output", str(output), "--set", *settings, *more]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=os.environ)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"{processes} process" in done.stderr
        ranks = [
            [json.loads(line) for line in (notes / f"{rank}.jsonl").read_text().splitlines()]
            for rank in range(processes)
        ]
        for lines in ranks:
            expected = [[epoch, number] for epoch in range(EPOCHS) for number in range(STEPS_PER_EPOCH)]
            assert [line[:2] for line in lines] == expected
        return Run(
            rows=[[line[2] for line in lines] for lines in ranks],
            seen=[[line[3] for line in lines] for lines in ranks],
            **losses_and_model(output),
        )

    return train


def losses_and_model(output: Path) -> dict[str, object]:
    state = latest_checkpoint(output)[0]
    return {"losses": state["losses"], "model": state["model"]}


@pytest.mark.slow
def test_two_and_three_processes_train_the_model_that_one_would(run: Callable[..., Run], tmp_path: Path) -> None:
    one = run(1)
    assert len(one.losses) == EPOCHS * STEPS_PER_EPOCH >= 30
    first, last_epoch = one.losses[:3].mean(), one.losses[-4:-1].mean()
    print(f"mean loss of full batches: first epoch {first:.4f}, last {last_epoch:.4f}")
    assert last_epoch < 0.95 * first  # a loop that stands still proves nothing
    for processes, full, last in ((2, [32, 32], [7, 6]), (3, [22, 21, 21], [5, 4, 4])):
        several = run(processes)
        # Sums of three parts round otherwise than sums of halves, and a network makes rounding grow from step to step.
        compared = len(one.losses) if processes == 2 else 3 * STEPS_PER_EPOCH
        worst = ((several.losses - one.losses).abs() / one.losses)[:compared].max().item()
        print(f"{processes} processes: largest relative difference of {compared} losses {worst:.2g}")
        assert len(several.losses) == len(one.losses)
        assert worst < 1e-4
        for name, tensor in one.model.items():
            if processes == 2:
                torch.testing.assert_close(several.model[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
            if "running_" in name:  # they were frozen, else this test would be of something else
                # The mean of three equal numbers may differ from them in the last bit.
                torch.testing.assert_close(several.model[name], tensor, rtol=1e-6, atol=0, msg=name)

        for batch, rows in enumerate([full, full, full, last] * EPOCHS):
            parts = [several.seen[rank][batch] for rank in range(processes)]
            assert sorted(map(len, parts), reverse=True) == rows
            assert [image for part in parts for image in part] == one.seen[0][batch]
            # All parts are as long as the longest; the rows that fill them up are masked.
            assert {several.rows[rank][batch] for rank in range(processes)} == {rows[0]}
    for epoch in range(EPOCHS):
        batches = one.seen[0][epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]
        assert sorted(image for batch in batches for image in batch) == list(range(IMAGES))


@pytest.mark.slow
def test_copies_that_processes_exchange_train_the_model_that_one_process_would(run: Callable[..., Run]) -> None:
    """The same four copies of each of 16 images in a batch, dealt out among two processes."""
    settings = ["repeated_augmentation=4", "workers=0"]
    one, two = run(1, *settings), run(2, *settings)
    # Rows are summed in another order, and a network makes rounding grow from step to step.
    difference = ((two.losses - one.losses).abs() / one.losses)[: 2 * STEPS_PER_EPOCH]
    print("relative differences of losses:", " ".join(f"{value:.1g}" for value in difference.tolist()))
    assert difference[0] < 1e-6
    assert difference.max() < 1e-4


@pytest.mark.slow
def test_two_compiled_processes_train_with_either_blocks(digits: Path, tmp_path: Path) -> None:
    """Blocks that take norm and squeeze from the same sums, compiled within DistributedDataParallel."""
    settings = [*SETTINGS, "epochs=3", "compile=true", "workers=0"]
    losses = {}
    for blocks in ("false", "true"):
        output = tmp_path / blocks
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(TRAIN)),
            *("--data", str(digits), "--output", str(output), "--set", *settings, f"se_blocks={blocks}"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "2 processes" in done.stderr
        losses[blocks] = latest_checkpoint(output)[0]["losses"]
    assert len(losses["true"]) == 3 * STEPS_PER_EPOCH
    worst = ((losses["true"] - losses["false"]).abs() / losses["false"]).max().item()
    print(f"largest relative difference of {len(losses['true'])} losses {worst:.2g}")
    assert 0 < worst < 1e-4  # not the same operations, but the same training


# --- two machines -----------------------------------------------------------------------------------------------------


def start_machines(data: Path, folder: Path, *more: str) -> list[subprocess.Popen[bytes]]:
    """Start what two machines would: a launcher each, of one process each, that meet at an address and a port."""
    port = free_port()
    settings = ["epochs=4", "batch_size=16", "input_size=16", "workers=0", "checkpoint_steps=1", "shuffle_window=50"]
    started = []
    for machine in range(2):
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"),
            *("--machine_rank", str(machine), "--num_processes", "2", "--main_process_ip", "127.0.0.1"),
            *("--main_process_port", str(port), str(TRAIN), "--data", str(data)),
            *("--output", str(folder / f"machine{machine}"), "--set", *settings, *more),
        ]
        with (folder / f"{machine}.out").open("wb") as out:
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    return started


@pytest.mark.slow
def test_a_machine_may_be_lost(digits: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert [machine.wait(400) for machine in start_machines(digits, whole)] == [0, 0]
    assert not (whole / "machine1").exists()  # one machine keeps everything

    machines = start_machines(digits, parts)
    deadline = time.monotonic() + 300
    while not (states := list_checkpoints(parts / "machine0")) or int(states[0].stem.removeprefix("step-")) < 17:
        assert time.monotonic() < deadline
        assert [machine.poll() for machine in machines] == [None, None]
        time.sleep(0.01)
    lost = psutil.Process(machines[1].pid)
    for process in [*lost.children(recursive=True), lost]:
        process.kill()
    begin = time.monotonic()
    assert machines[0].wait(120) == 1
    machines[1].wait()
    print(f"the other machine ended after {time.monotonic() - begin:.0f} s")
    said = (parts / "0.out").read_text(errors="replace").replace("\r", "\n")
    (error,) = [line for line in said.splitlines() if "error: " in line and "another process is gone" in line]
    assert "start all of them again with --resume" in error
    assert "training.py" not in said  # no traceback of ours

    stopped = latest_checkpoint(parts / "machine0")[0]["step"]
    assert 17 <= stopped < 4 * 13
    assert [machine.wait(400) for machine in start_machines(digits, parts, "--resume")] == [0, 0]
    assert f"at step {stopped} of" in (parts / "0.out").read_text(errors="replace")
    first, second = (losses_and_model(folder / "machine0") for folder in (whole, parts))
    assert torch.equal(first["losses"], second["losses"])
    assert len(first["losses"]) == 4 * 13
    assert all(torch.equal(tensor, second["model"][name]) for name, tensor in first["model"].items())
