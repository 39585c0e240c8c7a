"""What a GPU machine brings back must become figures as it is, and nothing may be called a GPU's that is not."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import _tables_gpu as gpu_tables
import pytest

from seresnet_hub.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "gpu"))

import collect

# Nobody measured these: they are as the kit writes them.
NETWORK = {"images_per_second": 1000.0, "images_per_second_rounds": [1000.0], "times_timm": 1.0, "times_plain": 0.5,
           "peak_bytes": 5, "least_bytes": 3}  # fmt: skip
EVENT = {"benchmark": "inference", "mode": "compiled", "dtype": "bf16", "batch_size": 256, "peak_bytes": 5}


def measurement(own: str) -> dict[str, Any]:
    networks = {"plain": NETWORK, "timm": NETWORK, own: {**NETWORK, "times_timm": 1.25}}
    return {"mode": "compiled", "dtype": "bf16", "batch_size": 256, "networks": networks}


def made_up() -> list[dict[str, Any]]:
    machine = {
        "device": "Imagined GPU",
        "python": "3.12",
        "cuda": "13",
        "versions": {"torch": "2.11"},
        "copy_TB_per_s": 3,
    }
    variant = {**measurement("ours"), "networks": {"ours": {**NETWORK, "times_timm": None, "times_plain": None}}}
    run = {"images_per_second": 900.0, "waiting_share": 0.01, "profile": {"idle_share": 0.02}}
    return copy.deepcopy([
        {"part": "kit", "at": 1, "small": False, "parts": [], "commit": "abc"},
        {"part": "env", "at": 2, "rc": 0, "result": machine},
        {"part": "tests", "at": 3, "rc": 1, "result": ["= 1 failed, 10 passed in 9s ="]},
        {"part": "smoke_deterministic", "at": 4, "rc": 0, "same_bits": True},
        {"part": "kernels_training", "at": 5, "rc": 0, "result": {"kernels": {"plain": []}}},
        {"part": "training", "at": 6, "rc": 0, "result": {"measurements": [measurement("ours")]}},
        {"event": "ready", **EVENT, "network": "plain", "call_ms": 200.0},
        {"event": "ready", **EVENT, "network": "fused", "call_ms": 128.0},
        {"event": "measured", **EVENT, "network": "plain", **NETWORK, "images_per_second": 2560.0},
        {"part": "epilogue", "at": 7, "rc": 124, "result": []},
        {"part": "e2e", "at": 8, "rc": 0, "result": run},
        {"part": "evaluation_cifar10", "at": 8, "rc": 1, "result": []},
        {"part": "variants", "at": 9, "rc": 0, "given": ["a=1", "b=2"], "result": {"measurements": [variant]}},
        {"part": "cifar_resnet56_cifar", "at": 9, "rc": 0, "epochs": 7, "result": {"top1": 50.0}},
    ])  # fmt: skip


def write_results(folder: Path, lines: list[dict[str, Any]], cut_off: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + cut_off)
    return folder


def test_figures_stand_beside_the_predicted_ones(tmp_path: Path) -> None:
    back = write_results(tmp_path / "back", made_up(), cut_off='{"part": "ci')
    predicted = {
        "training": {"default": (36.0, 42.0, 37.0), "a=1,b=2": (35.5, 41.0, 35.0)},
        "inference": {"default": (9.0, 10.0, 9.5), "epilogue": (6.0, 9.0, 7.0)},
    }
    for benchmark, by_settings in predicted.items():
        settings = {
            name: {network: {"network": {"predicted": {"ms": ms}}}
                   for network, ms in zip(("plain", "timm", "own"), times, strict=True)}
            for name, times in by_settings.items()
        }  # fmt: skip
        (tmp_path / f"benchmark_{benchmark}_predicted.json").write_text(json.dumps({"counted": settings}))
    answer = collect.main([str(back), "--output", str(tmp_path)])
    assert answer["device"] == "Imagined GPU"
    assert (tmp_path / "benchmark_gpu.png").read_bytes().startswith(b"\x89PNG")
    training = json.loads((tmp_path / "benchmark_training_gpu.json").read_text())
    assert (training["commit"], training["versions"]["torch"]) == ("abc", "2.11")
    first, variant = training["measurements"]
    assert [(one["ms"], one["predicted_ms"]) for one in first["networks"].values()] == [(256, 36), (256, 42), (256, 37)]
    assert variant["networks"]["ours"]["predicted_ms"] == 35
    assert training["kernels"] == {"plain": []}
    # The part that was cut off: what it had measured, else the single call it had timed.
    (epilogue,) = json.loads((tmp_path / "benchmark_inference_gpu.json").read_text())["measurements"]
    assert not epilogue["complete"]
    assert {name: (one["ms"], one["predicted_ms"]) for name, one in epilogue["networks"].items()} == {
        "plain": (100, 6), "fused": (128, 7)
    }  # fmt: skip
    speed = gpu_tables.speed(tmp_path)
    assert "| training, compiled, bf16, batch 256 | Imagined GPU | 256.00 (36.00) | 256.00 (42.00) | " in speed
    assert "| 256.00 (37.00) | 1.250 | 0.500 |" in speed
    assert "`epilogue` | Imagined GPU | 100.00 (6.00) |  | 128.00 (7.00) |  |  |" in speed
    assert "`a=1`, `b=2` | Imagined GPU |  |  | 256.00 (35.00) |  |  |" in speed
    runs = gpu_tables.runs(tmp_path)
    assert "| tests that need a GPU | 1 failed, 10 passed in 9s |" in runs
    assert "the same bits | yes |" in runs
    assert "| 900 images/s, waits 1.0 % for batches, the GPU idles 2.0 % |" in runs
    assert "| … `seresnet20_cifar` on CIFAR-10 | failed, exit code 1 |" in runs
    assert "| `resnet56_cifar` on CIFAR-10, 7 epochs: top-1 | 50.00 |" in runs
    assert "| … without it | not measured |" in runs


def test_without_results_the_tables_say_so(tmp_path: Path) -> None:
    assert gpu_tables.speed(tmp_path).count("not measured") == 2
    assert gpu_tables.runs(tmp_path).count("not measured") == len(gpu_tables.RUNS)


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("tests", {"rc": 124, "result": ["tests/test_gpu.py::test_one PASSED [ 9%]"]}, "1 passed, then time was up"),
        ("e2e", {"rc": 124, "result": ["Traceback"]}, "failed, exit code 124"),
        ("e2e", {"rc": 124, "result": {"images_per_second": 7.0}}, "7 images/s"),
        ("tests", {"rc": 2, "result": ["= 1 error in 1s ="]}, "failed, exit code 2"),
        ("tests", {"rc": 0, "result": ["= 11 passed in 9s ="]}, "11 passed in 9s"),
        ("tests", {"rc": 1, "result": []}, "nothing was said"),
        ("e2e", {"result": {"images_per_second": None, "waiting_share": None}}, "too short"),
        ("e2e", {"result": {"images_per_second": None, "waiting_share": 0.5, "profile": None}},
         "too short, waits 50.0 % for batches"),
    ],
    ids=["cut off", "run cut off", "run at its end", "not begun", "passed", "silent", "short run", "short profile"],
)  # fmt: skip
def test_a_run_without_an_answer_is_said_to_be_one(
    part: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    lines = made_up()
    next(line for line in lines if line.get("part") == part).update(changes)
    collect.main([str(write_results(tmp_path / "back", lines)), "--output", str(tmp_path)])
    what = next(what for what, name, _ in gpu_tables.RUNS if name == part)
    assert f"| {what} | {says} |" in gpu_tables.runs(tmp_path)


@pytest.mark.parametrize(
    ("number", "changes", "says"),
    [
        (0, {"small": True}, "tiny sizes"),
        (1, {"result": {"python": "3.12", "cuda": None, "versions": {}}}, "must be of one GPU"),
        (1, {"rc": 1}, "must be of one GPU"),
    ],
    ids=["a try", "a CPU", "an unknown machine"],
)
def test_what_is_no_gpus_is_refused(number: int, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    lines = made_up()
    lines[number] |= changes
    back = write_results(tmp_path / "back", lines)
    with pytest.raises(InputError, match=says):
        collect.main([str(back), "--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_two_gpus_or_versions_are_refused(tmp_path: Path) -> None:
    lines = made_up()
    other = copy.deepcopy(lines)
    other[1]["result"]["device"] = "Another GPU"
    newer, cuda = copy.deepcopy(lines), copy.deepcopy(lines)
    newer[1]["result"]["versions"]["torch"] = "2.12"
    cuda[1]["result"]["cuda"] = "12"
    given = {"a": lines, "b": other, "c": newer, "d": cuda}
    folders = [str(write_results(tmp_path / name, some)) for name, some in given.items()]
    with pytest.raises(InputError, match="one version of torch; here: 2.11, 2.12"):
        collect.main([folders[0], folders[2], "--output", str(tmp_path)])
    with pytest.raises(InputError, match="one version of CUDA; here: 12, 13"):
        collect.main([folders[0], folders[3], "--output", str(tmp_path)])
    with pytest.raises(InputError, match="Another GPU, Imagined GPU"):
        collect.main([*folders[:2], "--output", str(tmp_path)])
    with pytest.raises(InputError, match="results.jsonl"):
        collect.main([str(tmp_path), "--output", str(tmp_path)])
