"""A run must go on as the same run alone: with its recipe, its data, and processes that agree."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from conftest import WriteSplit, write_numbers
from small_runs import SMALL, refused

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import override
from seresnet_hub.training import checkpoint, same_run
from seresnet_hub.training import train as training


@pytest.fixture(scope="module")
def first_step(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A data set, and a run over it that was stopped after its first step; neither to be written to."""
    folder = tmp_path_factory.mktemp("begun")
    data = write_numbers(folder)
    training.train(SMALL, data=data, output=folder / "run", max_steps=1)
    return data, folder / "run"


@pytest.fixture
def begun(first_step: tuple[str, Path], tmp_path: Path) -> tuple[str, Path]:
    """The data set, and a copy of the run."""
    return first_step[0], Path(shutil.copytree(first_step[1], tmp_path / "run"))


def test_resume_refuses_other_data(tmp_path: Path, write_split: WriteSplit, numbers: str) -> None:
    training.train(SMALL, data=numbers, output=tmp_path / "run", max_steps=1)
    training.train(SMALL, data=numbers + "/", output=tmp_path / "run", max_steps=2, resume=True)
    write_split([[9, 8], [17]])
    refused("training_images was 33, now 34", data=numbers, output=tmp_path / "run", resume=True)


def test_processes_that_drift_apart_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("seresnet20_cifar")
    other = timm.create_model("seresnet20_cifar")
    monkeypatch.setattr(same_run, "gather_object", lambda own: [*own, training_digest(other)])
    with pytest.raises(RuntimeError, match="drifted apart"):
        same_run.require_same_weights_everywhere(model)
    monkeypatch.setattr(same_run, "gather_object", lambda own: [*own, training_digest(model)])
    same_run.require_same_weights_everywhere(model)


def training_digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_resume_refuses_another_recipe_and_a_damaged_state(begun: tuple[str, Path]) -> None:
    numbers, out = begun
    refused(
        "cannot resume with another recipe or other data: learning_rate was 0.1, now 0.2",
        replace(SMALL, learning_rate=0.2),
        data=numbers,
        output=out,
        resume=True,
    )
    (state,) = checkpoint.list_checkpoints(out)
    state.write_bytes(state.read_bytes()[:1000])
    refused("step-00000001.safetensors is damaged", data=numbers, output=out, resume=True)


def test_a_run_begun_with_other_lanes_goes_on_with_them(tmp_path: Path, numbers: str) -> None:
    """Where the recipe's own lanes have changed since, the error says how to go on with those of the run."""
    out, before = tmp_path / "run", replace(SMALL, lanes=24, shuffle_window=2400, scale=(0.1, 1.0))
    training.train(before, data=numbers, output=out, max_steps=1)
    now = replace(SMALL, lanes=128, shuffle_window=12_800, scale=(0.08, 1.0))
    with pytest.raises(InputError, match="lanes was 24, now 128") as refusal:
        training.train(now, data=numbers, output=out, max_steps=2, resume=True)
    found = re.search(r"to go on with it, add --set (.*); another run needs another --output", str(refusal.value))
    assert found is not None
    assert override(now, shlex.split(found[1])) == before
    assert training.train(before, data=numbers, output=out, max_steps=2, resume=True)["steps"] == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("model", None, "is not one of this version"), ("step", 10**6, "the state is at step 1,000,000 of a run of 8"),
     ("settings", "[]", "is not one of this version"),
     ("model", {"fc.bias": torch.ones(1)}, "does not fit seresnet20_cifar")],
)  # fmt: skip
def test_an_incomplete_state_is_refused(begun: tuple[str, Path], key: str, value: object, message: str) -> None:
    numbers, out = begun
    state = checkpoint.latest_checkpoint(out)[0]
    if value is None:
        del state[key]
    else:
        state[key] = value
    checkpoint.save_checkpoint(out, state)
    refused(message, data=numbers, output=out, resume=True)


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path, numbers: str) -> None:
    training.train(SMALL, data=numbers, output=tmp_path / "run", max_steps=5)
    refused("max_steps=3: the run in .* is at step 5 already", data=numbers, output=tmp_path / "run", resume=True,
            max_steps=3)  # fmt: skip
    assert training.train(SMALL, data=numbers, output=tmp_path / "run", resume=True, max_steps=6)["steps"] == 6


def test_what_is_kept_of_the_data_may_change_at_resume(begun: tuple[str, Path]) -> None:
    numbers, out = begun
    limited = replace(SMALL, cache_gb=1.0)
    assert training.train(limited, data=numbers, output=out, resume=True, max_steps=2)["steps"] == 2
