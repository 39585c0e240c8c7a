"""A profile must hold what ran in its steps, be written whole or not at all, and cost nothing where none is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from seresnet_hub.errors import InputError
from seresnet_hub.models.create import create
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import profiling
from seresnet_hub.training import train as training
from seresnet_hub.training.profiling import Profile, covered, require_profile

SMALL = replace(
    get_recipe("digits"), epochs=12, eval_every=6, save_every=12, batch_size=10, input_size=8, shuffle_window=20,
    workers=0,
)  # fmt: skip
KEYS = ["steps", "wall_ms_a_step", "busy_ms_a_step", "idle_share", "kernels_a_step"]


def test_busy_is_the_union_of_overlapping_spans() -> None:
    assert covered([(5, 7), (0, 2), (1, 3), (1, 2), (3, 4)]) == 4 + 2
    assert covered([]) == 0


def test_a_run_is_profiled_once_it_is_steady(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, operators = tmp_path / "profiles" / "a.json", []
    original = profiling.kernels_of

    def kernels(*args: Any, **options: Any) -> Any:
        operators.append(original(*args, **options))
        return operators[-1]

    monkeypatch.setattr(profiling, "kernels_of", kernels)
    result = training.train(SMALL, data=numbers, output=tmp_path / "run", profile=file)
    written = json.loads(file.read_text())
    table = written.pop("kernels")
    assert list(result)[-1] == "profile"
    assert list(result["profile"]) == KEYS
    assert {key: written.pop(key) for key in KEYS} == result["profile"]
    assert written.pop("device").startswith("CPU")
    assert written == {
        "torch": torch.__version__, "recipe": "digits", "model": "seresnet20_cifar", "batch_size": 10, "processes": 1,
        "mixed_precision": "no", "compile": False,
    }  # fmt: skip
    found = result["profile"]
    assert found["steps"] == 20  # five epochs of four steps, with an evaluation after the first of them
    assert len(operators) == 5
    assert 0 < found["busy_ms_a_step"] < found["wall_ms_a_step"]
    assert found["idle_share"] == pytest.approx(1 - found["busy_ms_a_step"] / found["wall_ms_a_step"], abs=1e-3)
    assert [list(row) for row in table] == [["name", "ms_a_step", "calls_a_step"]] * len(table)
    times = [row["ms_a_step"] for row in table]
    assert times == sorted(times, reverse=True)
    own = sum(microseconds for interval in operators for _, microseconds in interval) / 1000 / found["steps"]
    assert own == pytest.approx(found["busy_ms_a_step"], rel=0.02)
    assert 0.9 * own < sum(times) < 1.001 * own  # the longest ones alone are listed
    # The network's convolutions, and the classifier's product.
    model = create("seresnet20_cifar", num_classes=10)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    calls = {row["name"]: row["calls_a_step"] for row in table}
    assert calls["aten::convolution_backward"] == convolutions
    assert result["images_per_second"] > 0


def test_on_a_gpu_its_kernels_count(tmp_path: Path) -> None:
    """Events as a profile of a GPU has them, from torch's description of them: no GPU is needed."""

    def event(name: str, begin: float, end: float, device: DeviceType, annotation: bool = False) -> SimpleNamespace:
        span = SimpleNamespace(start=begin, end=end, elapsed_us=lambda: end - begin)
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=annotation)

    events = [
        event("gemm", 0, 30, DeviceType.CUDA), event("copy", 20, 40, DeviceType.CUDA),
        event("gemm", 60, 70, DeviceType.CUDA), event("cudaLaunchKernel", 0, 100, DeviceType.CPU),
        event("Optimizer.step", 0, 100, DeviceType.CUDA, annotation=True),
    ]  # fmt: skip
    kernels = profiling.kernels_of(SimpleNamespace(events=lambda: events), on_gpu=True)
    assert [(kernel.name, microseconds) for kernel, microseconds in kernels] == [
        ("gemm", 30),
        ("copy", 20),
        ("gemm", 10),
    ]


def test_a_run_that_ends_too_soon_says_so_and_leaves_the_file(
    tmp_path: Path, numbers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text("an earlier one")
    result = training.train(replace(SMALL, epochs=7, eval_every=7), data=numbers, output=tmp_path / "run", profile=file)
    assert result["profile"] is None
    assert file.read_text() == "an earlier one"
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "no profile" in line]
    assert "ended before there were 20 steps to profile" in line


def test_what_cannot_be_is_refused_before_any_work(tmp_path: Path, numbers: str) -> None:
    (tmp_path / "file").touch()
    for path, steps, message in [
        (tmp_path, None, "is a folder: name a file"),
        (tmp_path / "file" / "a.json", None, "cannot write the profile to"),
        (Path("/proc/a.json"), None, "cannot write the profile to /proc/a.json"),
        (tmp_path / "a.json", 39, "--max-steps 39 ends the run before its profile: .* make it 40 or more"),
    ]:
        with pytest.raises(InputError, match=message):
            training.train(SMALL, data=numbers, output=tmp_path / "run", profile=path, max_steps=steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "numbers"]
    require_profile(tmp_path / "new" / "a.json", 40)
    assert not (tmp_path / "new").exists()


def test_no_profiler_runs_where_none_was_asked_for(
    tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a profiler was made")

    monkeypatch.setattr(profiling, "profile", never)
    monkeypatch.setattr(Profile, "__init__", never)
    result = training.train(replace(SMALL, epochs=7, eval_every=7), data=numbers, output=tmp_path / "run")
    assert "profile" not in result
    assert result["steps"] == 28
