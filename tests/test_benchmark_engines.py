"""A benchmark of engines compares within rounds, names what it left out, and keeps what it measured so far."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import _tables_engines as engine_tables  # noqa: E402
from _benchmark_inference_contenders import BASE, Contender  # noqa: E402
from _benchmark_inference_engines import summary  # noqa: E402
from _benchmark_inference_picture import draw_engines  # noqa: E402
from test_scripts import call  # noqa: E402

OWN = Contender(engine="openvino", how="export", precision="int8", network="own")
USUAL = Contender(engine="openvino", how="usual", precision="int8", network="timm")
PLAIN = Contender(engine="openvino", how="export", precision="int8", network="plain")
# Seconds of three calls in each of three rounds; in the second the machine is ten times as slow for all.
TIMES = {
    one: [[seconds, seconds, 2 * seconds], [10 * seconds] * 3, [seconds] * 3]
    for one, seconds in {BASE: 0.4, OWN: 0.1, USUAL: 0.2, PLAIN: 0.08}.items()
}


def by_network(result: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["engine"], one["network"]): one for one in result}


def test_ratios_are_those_within_rounds() -> None:
    found = by_network(summary({16: TIMES}))
    own = found["openvino", "own"]
    assert (own["times_base"], own["share_of_plain"]) == (4.0, 0.8)
    assert (own["calls"], own["p50_ms"], own["images_per_second"]) == (9, 100.0, 160.0)
    assert own["images_per_second_rounds"] == [160.0, 16.0, 160.0]
    assert own["p95_ms"] == 1000.0
    assert found["openvino", "timm"]["share_of_plain"] == 0.4
    assert (found["torch", "timm"]["times_base"], found["torch", "timm"]["share_of_plain"]) == (1.0, None)


def test_a_ratio_to_what_was_not_measured_is_none() -> None:
    (own,) = summary({1: {OWN: TIMES[OWN]}})
    assert (own["times_base"], own["share_of_plain"]) == (None, None)


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    assert "not measured" in engine_tables.engines(tmp_path)
    result = {
        "device": "CPU", "rounds": 3, "model": "seresnet50", "plain": "resnet50",
        "measurements": summary({1: TIMES, 16: TIMES}),
    }  # fmt: skip
    (tmp_path / engine_tables.RESULT).write_text(json.dumps(result))
    rows = engine_tables.engines(tmp_path).splitlines()
    assert rows[-1] == "| OpenVINO, int8, batch 16: images/s | 200.0 | 80.0 | 160.0 | 0.40 | 0.80 | 4.00 |"
    assert rows[3].startswith("| OpenVINO, int8, batch 1: ms (95 % of calls within) | 80.0 (800.0) | 200.0 (2000.0)")
    draw_engines(result, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int8"], "--precision is of exported networks: name an engine as well, with --peer"),
        (["--peer", "openvino", "--kernels"], "--kernels is of torch alone, and does not go with --peer"),
        (["--peer", "openvino", "--dtype", "tf32"], "--dtype tf32 is a precision of NVIDIA's GPUs"),
        (["--peer", "openvino", "--rounds", "0"], "--rounds and --batch-size must be at least 1"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("benchmark", "inference", *words, capfd=capfd)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.slow
def test_an_engine_beside_torch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With a second run that takes the exported files from the folder of the first."""
    for name in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(name, reason="exports need the packages of [onnx] and [openvino]")
    output = tmp_path / "result.json"
    words = ["--model", "seresnet18", "--plain", "resnet18", "--size", 32, "--rounds", 2, "--seconds", 0.01,
             "--mode", "eager", "--peer", "openvino", "--peer", "onnxruntime", "--precision", "fp32",
             "--precision", "bf16", "--exports", tmp_path / "exports", "--output", output]  # fmt: skip
    for _ in range(2):
        code, out, err = call("benchmark", "inference", *words, capfd=capfd)
        assert code == 0, err
        result = json.loads(out)
        assert json.loads(output.read_text()) == result
        assert result["rounds"] == 2
        assert [name.split()[:3] for name in result["left_out"]] == [
            ["onnxruntime", how, "bf16"] for how in ("export", "usual", "usual", "export")
        ]
        assert len(result["measurements"]) == 2 * (3 + 3 * 4)
