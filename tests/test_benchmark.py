"""A benchmark says what it measured, as soon as it knows, with the settings that it was asked for and no others."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from _benchmark_settings import precision  # noqa: E402
from _benchmark_timing import Log, calls_in, seconds_a_call  # noqa: E402
from test_scripts import call  # noqa: E402

from seresnet_hub.errors import InputError  # noqa: E402
from seresnet_hub.models.compiling import INFERENCE_SETTINGS  # noqa: E402

SMALL = ["--model", "seresnet18", "--plain", "resnet18", "--batch-size", 2, "--size", 32, "--rounds", 2]


@pytest.mark.parametrize(("benchmark", "own"), [("inference", "fused"), ("training", "ours")])
def test_one_network_alone(benchmark: str, own: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log, picture = tmp_path / "log.jsonl", tmp_path / "alone.png"
    options = ["--network", "own", "--mode", "eager", "--seconds", 0.05, "--log", log, "--picture", picture]
    code, out, err = call("benchmark", benchmark, *SMALL, *options, capfd=capfd)
    assert code == 0, err
    result = json.loads(out)
    (measurement,) = result["measurements"]
    ((name, measured),) = measurement["networks"].items()
    assert (name, measured["times_timm"], measured["times_plain"]) == (own, None, None)
    assert len(measured["images_per_second_rounds"]) == 2
    assert result["seconds"] == 0.05
    ready, done = map(json.loads, log.read_text().splitlines())
    assert (ready["event"], done["event"]) == ("ready", "measured")
    assert ready["network"] == done["network"] == own
    assert ready["call_ms"] > 0
    assert (ready["compile_seconds"], ready["peak_bytes"]) == (None, None)
    assert done["images_per_second"] == measured["images_per_second"]
    assert picture.stat().st_size


def test_the_settings_that_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those for inference that the package compiles with, and on top of them those of the command line."""
    from torch._inductor import config

    used = []
    monkeypatch.setattr(
        torch, "compile", lambda module, **_: (used.append((config.freezing, config.epilogue_fusion)), module)[1]
    )
    words = ["--mode", "compiled", "--network", "own", "--network", "timm", "--inductor", "epilogue_fusion=false"]
    log = tmp_path / "log.jsonl"
    code, out, err = call("benchmark", "inference", *SMALL, *words, "--log", log, "--dtype", "bf16", capfd=capfd)
    assert code == 0, err
    result = json.loads(out)
    assert list(result["measurements"][0]["networks"]) == ["timm", "fused"]
    assert used == [(True, False)] * 2
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    expected = {**INFERENCE_SETTINGS["default"][kind], "epilogue_fusion": False}
    assert result["inductor"] == expected
    assert result["settings"] == "default"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["ready", "ready", "measured", "measured"]
    assert all(line["inductor"] == expected and line["dtype"] == "bf16" for line in lines)
    assert all(line["compile_seconds"] is not None for line in lines[:2])
    assert config.epilogue_fusion
    assert not config.freezing


@pytest.mark.slow
def test_kernels_are_listed_in_the_precision_that_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--mode", "eager", "--network", "own", "--kernels", "--dtype", "bf16", "--dtype", "fp32"]
    code, out, err = call("benchmark", "training", *SMALL, *words, capfd=capfd)
    assert code == 0, err
    kernels = json.loads(out)["kernels"]["ours"]
    assert {(one["dtype"], one["graph"]) for one in kernels} == {
        ("bf16", "forward"), ("bf16", "backward"), ("fp32", "forward"), ("fp32", "backward"),
    }  # fmt: skip
    convolutions = {
        dtype: [one["bytes"] for one in kernels if one["dtype"] == dtype and "convolution" in one["kernel"]]
        for dtype in ("bf16", "fp32")
    }
    assert sum(convolutions["fp32"]) > 1.5 * sum(convolutions["bf16"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inductor", "no_such=1"], "--inductor no_such=1: Inductor has no setting 'no_such'"),
        (["--inductor", "triton.cudagraph=true"], "did you mean 'triton.cudagraphs'"),
        (["--inductor", "triton.cudagraphs=1"], "expected true or false"),
        (["--inductor", "triton.max_tiles=two"], "triton.max_tiles=two: expected a whole number, or none"),
        (["--inductor", "freezing"], "--inductor freezing: write it as key=value"),
        (["--log", "/no/such/folder/log"], "--log /no/such/folder/log: No such file or directory"),
        (["--seconds", "-1"], "--seconds -1.0: must not be negative"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("benchmark", "inference", *SMALL, *words, capfd=capfd)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has TF32")
def test_tf32_is_refused_on_a_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = call("benchmark", "training", *SMALL, "--dtype", "tf32", capfd=capfd)
    assert (code, err) == (2, "error: --dtype tf32 is a precision of NVIDIA's GPUs: on a CPU, take fp32 or bf16\n")


@pytest.mark.parametrize(("dtype", "allowed"), [("fp32", False), ("tf32", True)])
def test_a_precision_is_set_and_restored(dtype: str, allowed: bool) -> None:
    def flags() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        products = torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()
        return cudnn.allow_tf32, *products, cudnn.benchmark

    def fail() -> None:
        assert flags() == (allowed, allowed, "high" if allowed else "highest", True)
        raise ZeroDivisionError

    before = flags()
    with pytest.raises(ZeroDivisionError), precision(dtype):
        fail()
    assert flags() == before


def test_calls_are_repeated_until_the_time_is_full() -> None:
    assert (calls_in(0.25, 0.001), calls_in(0.25, 3.0), calls_in(0.0, 0.001)) == (250, 1, 1)
    seen: list[int] = []
    seconds_a_call(lambda images: seen.append(len(images)), torch.zeros(3), calls=4)
    assert seen == [3] * 4


def test_a_log_has_whole_lines_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Log(path, benchmark="first")("ready", call_ms=1.5)
    with path.open("a") as file:
        file.write('{"event": "rea')  # of a process that was killed
    Log(path, benchmark="second")("measured")
    first, _, last = path.read_text().splitlines()
    assert json.loads(first) == {"event": "ready", "benchmark": "first", "call_ms": 1.5}
    assert json.loads(last) == {"event": "measured", "benchmark": "second"}
    Log(None)("ready")
    with pytest.raises(InputError, match="Is a directory"):
        Log(tmp_path)
