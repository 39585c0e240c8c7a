"""Whatever is in a state, `--resume` goes on to the same bits from a good one, or says in one line why it does not."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzzing
import pytest
import torch
from fuzzing import Case, attack
from safetensors.torch import save_file

from seresnet_hub.errors import InputError
from seresnet_hub.files.locks import LOCK_NAME
from seresnet_hub.models.create import create
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import checkpoint
from seresnet_hub.training import train as training
from seresnet_hub.training.checkpoint_checks import Run, require_fitting
from seresnet_hub.training.optimizer_and_schedule import optimizer_of, schedule_of
from seresnet_hub.training.same_run import require_same_run
from seresnet_hub.training.start_or_resume import begin

FEW, MANY = 24, 1000
WHOLE = 25  # of so many cases, one goes through training as a whole, accepted or not
RECIPE = replace(
    get_recipe("digits"), epochs=2, batch_size=10, input_size=8, shuffle_window=20, workers=0, checkpoint_steps=3,
    ema_decay=0.8, model="seresnet20_cifar",
)  # fmt: skip
NEWEST = "step-00000006.safetensors"
# What training itself does: git for the commit, folders for scratch, modules that are imported late.
OWN = frozenset({"subprocess.Popen", "shutil.rmtree", "os.posix_spawn", "marshal.loads"})
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 10**30, -(10**30), 2**63, 0.5, -0.5, math.nan, math.inf, "", "x", "x" * 10**6,
    "\0\x1b[31m", [], [None], {}, {"x": 1}, [[[[]]]], {"tensor": {}},
)  # fmt: skip
TENSORS: tuple[Callable[[], torch.Tensor], ...] = (
    lambda: torch.zeros(0), lambda: torch.zeros(()), lambda: torch.zeros(3, 5), lambda: torch.full((1,), math.nan),
    lambda: torch.zeros(10, dtype=torch.int64), lambda: torch.zeros(1, dtype=torch.bool), lambda: torch.zeros(100_000),
)  # fmt: skip
Put = Callable[[Path], None]  # changes the folder of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps at step 6, with the state of step 4 beside; `whole` is one that went on to its end."""
    from PIL import Image

    root = tmp_path_factory.mktemp("states")
    draw = random.Random(1)
    for split, images in (("train", 33), ("validation", 7)):
        for number in range(images):
            path = root / "data" / split / str(number % 4) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.frombytes("RGB", (8, 8), draw.randbytes(192)).save(path)
    for name, steps in (("whole", None), ("run", 6)):
        training.train(RECIPE, data=str(root / "data"), output=root / name, max_steps=steps)
    assert [path.name for path in checkpoint.list_checkpoints(root / "run")] == [NEWEST, "step-00000004.safetensors"]
    return root


def written(state: Any) -> Put:
    """Return what writes a tree as a state with a valid sha256."""

    def put(output: Path) -> None:
        written_text(*checkpoint.serialized(state))(output)

    return put


def written_text(text: str, tensors: dict[str, torch.Tensor]) -> Put:
    def put(output: Path) -> None:
        metadata = {"state": text, "sha256": checkpoint.digest_of(text, tensors)}
        save_file(tensors, output / "training" / NEWEST, metadata=metadata)

    return put


def damaged(data: bytes, draw: random.Random) -> Put:
    """Return what writes a file whose bytes are not those that were written."""
    header = 8 + int.from_bytes(data[:8], "little")
    kind = draw.randrange(6)
    at = draw.randrange(header if draw.random() < 0.6 else len(data))
    length = draw.choice((1, 4, 512, 4096))
    changed = {
        0: lambda: data[:at],
        1: lambda: data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :],
        2: lambda: (data[:at] + draw.randbytes(length) + data[at + length :])[: len(data)],
        3: lambda: (data[:at] + bytes(length) + data[at + length :])[: len(data)],
        4: lambda: data + draw.randbytes(length),
        5: lambda: draw.choice((b"", bytes(len(data)), data[:8], data[:header], b"\xff" * 8 + data[8:])),
    }[kind]()
    return lambda output: (output / "training" / NEWEST).write_bytes(changed) and None


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each part of a tree."""
    if way:
        yield way
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*way, key))


def edited(state: dict[str, Any], draw: random.Random) -> tuple[str, Put]:
    """Return what writes a state of which one part is another, with a valid sha256."""
    state = copy.deepcopy(state)
    every = list(places(state))
    depth = draw.choice(sorted({len(way) for way in every}))
    way = draw.choice([way for way in every if len(way) == depth])
    around = state
    for key in way[:-1]:
        around = around[key]
    old, name = around[way[-1]], "/".join(map(str, way))
    kind = draw.choice(("remove", "add", "value", "value", "tensor", "tensor"))
    if kind == "remove":
        del around[way[-1]]
    elif kind == "add" and isinstance(around, dict):
        around[draw.choice(("more", "", 10**30, "x" * 1000))] = draw.choice(HOSTILE)
    elif kind == "add":
        around.insert(draw.randrange(len(around) + 1), draw.choice((*HOSTILE, copy.deepcopy(old))))
    elif kind == "tensor" and isinstance(old, torch.Tensor):
        changes: tuple[Callable[[], Any], ...] = (
            lambda: old[None], lambda: old.flatten()[:-1], lambda: old.to(torch.float16), lambda: old.double() + 0,
            lambda: torch.full_like(old, math.nan) if old.is_floating_point() else old.float(), lambda: old.tolist(),
        )  # fmt: skip
        around[way[-1]] = draw.choice(changes)()
    elif kind == "tensor":
        around[way[-1]] = draw.choice(TENSORS)()
    else:
        around[way[-1]] = draw.choice(HOSTILE)
    return f"{kind} {name}"[:100], written(state)


def misplaced(root: Path) -> Iterator[tuple[str, Put]]:
    """Yield what else can lie where a state is looked for."""
    newest, good = Path("training", NEWEST), root / "run" / "training"
    state = checkpoint.load_checkpoint(good / NEWEST)

    def renamed(name: str) -> Put:
        return lambda output: (output / newest).rename(output / "training" / name) and None

    def pipe(output: Path) -> None:
        (output / newest).unlink()
        os.mkfifo(output / newest)

    def folder(output: Path) -> None:
        (output / newest).unlink()
        (output / newest).mkdir()

    def ring(output: Path) -> None:
        (output / newest).unlink()
        (output / newest).symlink_to(NEWEST)

    yield "a name of 30 digits", renamed(f"step-{'9' * 30}.safetensors")
    yield "the name of another step", renamed("step-00000008.safetensors")
    yield "a pipe", pipe
    yield "a folder", folder
    yield "a link to itself", ring
    yield "nested too deep", written_text("[" * 100_000 + "]" * 100_000, {})
    yield "a tensor that is not there", written_text('{"items": [["step", {"tensor": "x"}]]}', {})
    yield "no tree", written_text('{"items": 5}', {})
    yield "keys that are lists", written_text('{"items": [[[], 5]]}', {})
    yield "groups too many", written({**state, "optimizer": {
        **state["optimizer"], "param_groups": state["optimizer"]["param_groups"] * 1000}})  # fmt: skip
    other = create("seresnet56_cifar", pretrained=False, num_classes=4).state_dict()
    yield "the weights of another model", written({**state, "model": other})
    yield "the settings of another recipe", written({**state, "settings": json.dumps({"seed": 7})})
    for step in (-1, 5, 7, 9, 2**70):
        yield f"step {step}", written({**state, "step": step})


def cases(root: Path, number: int) -> Iterator[Case]:
    data = (root / "run" / "training" / NEWEST).read_bytes()
    state = checkpoint.load_checkpoint(root / "run" / "training" / NEWEST)
    named = list(misplaced(root))
    for k in range(number):
        draw = random.Random(k)
        if k < len(named):
            name, put = named[k]
        elif k % 3 == 0:
            name, put = "damaged", damaged(data, draw)
        else:
            name, put = edited(state, draw)
        yield Case(f"{k} {name}", (put, k % WHOLE == WHOLE - 1), len(data))


def files_in(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Resume:
    """Go on with a copy of the run after a case's change: to the bits of the whole run, or with an `InputError`.

    What is refused is refused by the checks that training makes before it takes anything from a state, here with one
    network for all cases. It trains on where the state is another than those that were saved, and for `whole` ones.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        good = [checkpoint.load_checkpoint(path) for path in checkpoint.list_checkpoints(root / "run")]
        self.good, self.settings = {fingerprint(state) for state in good}, good[0]["settings"]
        network = create("seresnet20_cifar", pretrained=False, num_classes=4).train()
        optimizer = optimizer_of(network, RECIPE, device_type="cpu")
        schedule_of(optimizer, RECIPE, 4, 8)
        self.fits = Run(network, copy.deepcopy(network), optimizer, RECIPE)
        for state in good:
            self.check(state)

    def check(self, state: dict[str, Any]) -> None:
        require_same_run(state, self.settings, 8)
        require_fitting(state, self.fits)

    def __call__(self, case: tuple[Put, bool]) -> str:
        put, whole = case
        output = self.root / f"copy-{os.getpid()}"
        shutil.copytree(self.root / "run", output)
        try:
            put(output)
            before = files_in(output)
            try:
                return self.end_of(output, whole=whole)
            except InputError as refused:
                if files_in(output) != before or len(str(refused)) > 2000:
                    raise AssertionError("something was changed, or the line is too long") from refused
                raise
        finally:
            shutil.rmtree(output)

    def end_of(self, output: Path, *, whole: bool) -> str:
        if not whole:
            with ExitStack() as on_exit:
                found = begin(output, resume=True, say=lambda _: None, on_exit=on_exit)
            assert found is not None
            if fingerprint(found[0]) in self.good:
                return "a good state"
            self.check(found[0])
        training.train(RECIPE, data=str(self.root / "data"), output=output, resume=True)
        for name in ("model.safetensors", "raw/model.safetensors"):
            assert (output / name).read_bytes() == (self.root / "whole" / name).read_bytes(), name
        return "trained to the same bits"


def fingerprint(state: dict[str, Any]) -> str:
    return checkpoint.digest_of(*checkpoint.serialized(state))


def fuzz(root: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "FORBIDDEN", fuzzing.FORBIDDEN - OWN)
    report = attack(Resume(root), cases(root, number), seconds=60)
    print(json.dumps(report.summary()))
    print(Counter(outcome.detail for outcome in report.outcomes if outcome.kind == "accepted"))
    for found in report.findings:
        print(found.name, found.kind, found.detail[-1500:])
    assert not report.findings, [(found.name, found.kind, found.detail[-300:]) for found in report.findings[:5]]
    kinds = {outcome.kind for outcome in report.outcomes}
    assert kinds == {"accepted", "refused"}


def test_a_state_is_good_or_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(run, FEW, monkeypatch)


@pytest.mark.slow
def test_many_states_are_good_or_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(run, MANY, monkeypatch)
