"""A run must set torch's own settings for its time alone, and promise equal bits only where no operation breaks it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seresnet_hub import torch_settings as backends
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.torch_settings import float32_arithmetic, settings_of_run
from seresnet_hub.training import learner
from seresnet_hub.training import train as training
from seresnet_hub.training.checkpoint import latest_checkpoint, save_checkpoint

SMALL = replace(get_recipe("digits"), epochs=1, batch_size=10, input_size=8, shuffle_window=20, workers=0)


def flags() -> dict[str, Any]:
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "products": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
    }


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(backends.WORKSPACE, raising=False)
    before = flags()
    yield
    os.environ.pop(backends.WORKSPACE, None)
    assert flags() == before


@pytest.mark.parametrize("failing", [False, True])
def test_a_run_on_cuda_is_fast_while_it_lasts(failing: bool) -> None:
    try:
        with settings_of_run("cuda", deterministic=False):
            during = flags()
            with float32_arithmetic("cuda", "exact"):
                assert not torch.backends.cuda.matmul.allow_tf32
                assert not torch.backends.cudnn.allow_tf32
            assert flags() == during
            if failing:
                raise KeyError
    except KeyError:
        pass
    assert (during["cudnn.benchmark"], during["tf32"], during["products"]) == (True, True, "high")
    assert during["convolutions"]
    assert (during["deterministic"], during["cudnn.deterministic"]) == (False, False)


def test_a_run_on_a_cpu_changes_nothing() -> None:
    before = flags()
    with settings_of_run("cpu", deterministic=False), float32_arithmetic("cpu", "exact"):
        assert flags() == before


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_deterministic_run_keeps_to_one_algorithm(device_type: str) -> None:
    torch.backends.cudnn.benchmark = True  # as a program may have it
    try:
        with settings_of_run(device_type, deterministic=True):
            during = flags()
            workspace = os.environ.get(backends.WORKSPACE)
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert (during["deterministic"], during["warn_only"]) == (True, False)
    assert (during["cudnn.deterministic"], during["cudnn.benchmark"]) == (True, False)
    assert workspace == (":4096:8" if device_type == "cuda" else None)


def test_a_program_with_torchs_newer_setting_keeps_it() -> None:
    """torch raises where its older setting is read beside its newer one."""
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with settings_of_run("cuda", deterministic=False):
            assert matmul.fp32_precision == "tf32"
            with float32_arithmetic("cuda", "exact"):
                assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_a_workspace_that_comes_too_late_or_is_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with (
        pytest.raises(InputError, match=r"too late.*with CUBLAS_WORKSPACE_CONFIG=:4096:8 in its environment"),
        settings_of_run("cuda", deterministic=True),
    ):
        pass
    with settings_of_run("cuda", deterministic=False):  # only what was asked for needs it
        pass
    monkeypatch.setenv(backends.WORKSPACE, ":16:8")
    with settings_of_run("cuda", deterministic=True):
        assert os.environ[backends.WORKSPACE] == ":16:8"
    monkeypatch.setenv(backends.WORKSPACE, ":0:0")
    with (
        pytest.raises(InputError, match="CUBLAS_WORKSPACE_CONFIG=:0:0 must be :4096:8 or :16:8"),
        settings_of_run("cuda", deterministic=True),
    ):
        pass


def test_train_sets_and_restores_them(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    losses = learner.image_losses

    def noting(*arguments: Any) -> torch.Tensor:
        seen.append(flags())
        return losses(*arguments)

    monkeypatch.setattr(learner, "image_losses", noting)
    for deterministic in (False, True):
        recipe = replace(SMALL, deterministic=deterministic)
        training.train(recipe, data=numbers, output=tmp_path / str(deterministic), max_steps=1)
        assert (seen[-1]["deterministic"], seen[-1]["cudnn.deterministic"]) == (deterministic, deterministic)
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_form_is_named(
    tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = learner.image_losses

    def scattering(*arguments: Any) -> torch.Tensor:
        return losses(*arguments).put_(torch.tensor([0]), torch.tensor([0.0]))

    monkeypatch.setattr(learner, "image_losses", scattering)
    with pytest.raises(InputError, match=r"^deterministic=true: put_ has no deterministic algorithm on cpu in torch"):
        training.train(replace(SMALL, deterministic=True), data=numbers, output=tmp_path / "run")
    training.train(SMALL, data=numbers, output=tmp_path / "without", max_steps=1)


def test_a_run_goes_on_as_deterministic_as_it_was(tmp_path: Path, numbers: str) -> None:
    training.train(replace(SMALL, deterministic=True), data=numbers, output=tmp_path / "run", max_steps=2)
    with pytest.raises(InputError, match="deterministic was True, now False"):
        training.train(SMALL, data=numbers, output=tmp_path / "run", resume=True)
    training.train(replace(SMALL, deterministic=True), data=numbers, output=tmp_path / "run", resume=True)


def test_a_state_older_than_the_field_is_of_a_run_without_it(tmp_path: Path, numbers: str) -> None:
    training.train(SMALL, data=numbers, output=tmp_path / "run", max_steps=2)
    state = latest_checkpoint(tmp_path / "run")[0]
    settings = json.loads(state["settings"])
    del settings["deterministic"]
    save_checkpoint(tmp_path / "run", {**state, "settings": json.dumps(settings)})
    with pytest.raises(InputError, match="deterministic was False, now True"):
        training.train(replace(SMALL, deterministic=True), data=numbers, output=tmp_path / "run", resume=True)
    assert training.train(SMALL, data=numbers, output=tmp_path / "run", resume=True)["steps"] == 4
