"""The same command, killed at any moment and given again, ends with the same bits and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from seresnet_hub.files.leftovers import PARTIAL

KILLS = 50
# Does one thing in a child for each line it is given, [what, seconds, event]: it kills the child after so many seconds,
# or at the event of that number in `output`, such as an opening or a renaming. What is half-written then is cut at some
# byte, as a write may have been. A line says how the child ended and how many events there were.
SERVER = """
import json, os, random, signal, sys, time
from pathlib import Path
output = Path(sys.argv[1])
from dataclasses import replace
import torch
from seresnet_hub.conversion import convert as conversion
from seresnet_hub.training import checkpoint
from seresnet_hub.training import train as training
from seresnet_hub.recipes.recipe import get_recipe
recipe = replace(get_recipe("digits"), epochs=2, batch_size=10, input_size=8, shuffle_window=20, workers=0,
                 checkpoint_steps=1, ema_decay=0.8)
acts = {
    "train": lambda: training.train(recipe, data=sys.argv[2], output=output, resume=True),
    "convert": lambda: conversion.convert(sys.argv[2], output, model="seresnet20_cifar", source="timm", force=True),
}

def be_child(what, seconds, event, report):
    events = [0]
    def hook(name, arguments):
        if name not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if not isinstance(arguments[0], str | os.PathLike):
            return
        if not os.path.abspath(arguments[0]).startswith(str(output.parent)):
            return
        events[0] += 1
        if events[0] == event:
            for path in output.parent.rglob("*.partial"):
                if path.is_file():
                    os.truncate(path, random.Random(event).randrange(path.stat().st_size + 1))
            os.kill(os.getpid(), signal.SIGKILL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    sys.addaudithook(hook)
    acts[what]()
    os.write(report, str(events[0]).encode())
    os._exit(0)

print("ready", flush=True)
for line in sys.stdin:
    what, seconds, event = json.loads(line)
    reading, writing = os.pipe()
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            be_child(what, seconds, event, writing)
        except BaseException:
            import traceback
            os.write(writing, traceback.format_exc().encode())
            os._exit(1)
    os.close(writing)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if seconds is not None and time.monotonic() - begun > seconds:
            os.kill(child, signal.SIGKILL)
            seconds = None
        time.sleep(0.001)
    said = os.fdopen(reading).read()
    print(json.dumps([os.waitstatus_to_exitcode(status), said, time.monotonic() - begun]), flush=True)
"""
Do = Callable[..., tuple[int, str, float]]


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """Return a function that starts a server for an output folder; it returns what does one thing and says its end."""
    started: list[subprocess.Popen[str]] = []

    def start(output: Path, given: str) -> Do:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(output), given], text=True, **pipes)  # type: ignore[call-overload]
        started.append(process)
        assert process.stdout.readline() == "ready\n"

        def do(what: str, *, seconds: float | None = None, event: int | None = None) -> tuple[int, str, float]:
            process.stdin.write(json.dumps([what, seconds, event]) + "\n")
            process.stdin.flush()
            code, said, passed = json.loads(process.stdout.readline())
            assert code in (0, -signal.SIGKILL), said
            return code, said, passed

        return do

    yield start
    for process in started:
        process.kill()
        process.communicate()


def half_written(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if PARTIAL.fullmatch(path.name)]


def weights_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("model.safetensors")}


@pytest.mark.slow
def test_fifty_kills_change_no_bit(tmp_path: Path, numbers: str, server: Callable[[Path, str], Do]) -> None:
    """Half of them at some time, half at a write; a run that ends is compared, and another begins."""
    do = server(tmp_path / "whole" / "run", numbers)
    (tmp_path / "whole").mkdir()
    _, events, seconds = do("train")
    whole, number = weights_in(tmp_path / "whole" / "run"), int(events)
    print(f"undisturbed: {number} events, {seconds:.1f} s")
    draw = random.Random(0)
    do = server(tmp_path / "parts" / "run", numbers)
    (tmp_path / "parts").mkdir()
    kills, runs, left = {"time": 0, "write": 0}, 0, 0
    while sum(kills.values()) < KILLS:
        kind = "time" if kills["time"] <= kills["write"] else "write"
        early = draw.random() < 0.3
        if kind == "time":
            code, _, _ = do("train", seconds=draw.uniform(0, seconds))
        else:
            code, _, _ = do("train", event=draw.randrange(1, 12 if early else number // 2))
        kills[kind] += code != 0
        left += len(half_written(tmp_path / "parts"))
        if code == 0:
            runs += 1
            assert weights_in(tmp_path / "parts" / "run") == whole
            assert not half_written(tmp_path / "parts")
            (tmp_path / "parts" / "run").rename(tmp_path / f"ended-{runs}")
    code, _, _ = do("train")
    assert code == 0
    assert weights_in(tmp_path / "parts" / "run") == whole
    assert not half_written(tmp_path / "parts")
    print(f"kills {kills}, {runs + 1} runs ended, {left} half-written files or folders seen")
    assert left


@pytest.mark.slow
def test_a_run_killed_at_each_event_before_its_first_states(
    tmp_path: Path, numbers: str, server: Callable[[Path, str], Do]
) -> None:
    do = server(tmp_path / "parts" / "run", numbers)
    (tmp_path / "parts").mkdir()
    for event in range(1, 26):
        code, _, _ = do("train", event=event)
        assert code == -signal.SIGKILL
        # The same command is the way on from there, whatever that left: it goes on, and is killed at the next one.
    code, _, _ = do("train")
    assert code == 0
    assert not half_written(tmp_path / "parts")


@pytest.mark.slow
def test_a_conversion_killed_at_each_event(tmp_path: Path, server: Callable[[Path, str], Do]) -> None:
    """A new folder is there as a whole or not at all, and the same command ends what a killed one began."""
    torch.manual_seed(0)
    model = timm.create_model("seresnet20_cifar", num_classes=10)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "given.safetensors")
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "model"
    do = server(output, str(tmp_path / "given.safetensors"))
    names = {"model.safetensors", "config.json", "README.md"}
    event, whole, kills = 0, 0, 0
    while True:
        event += 1
        code, _, _ = do("convert", event=event)
        if code == 0:
            break
        kills += 1
        if output.exists():
            whole += 1
            assert names <= {path.name for path in output.iterdir()}
    assert {path.name for path in output.iterdir()} == names
    assert not half_written(tmp_path / "out")
    assert [path.name for path in output.parent.iterdir()] == ["model"]
    given = safetensors.torch.load_file(output / "model.safetensors")
    assert all(torch.equal(given[name], tensor) for name, tensor in model.state_dict().items())
    print(f"{kills} kills, {whole} of them with a model folder there")
    assert kills > 10
    assert os.listdir(output.parent) == ["model"]
