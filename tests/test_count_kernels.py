"""Kernels counted for a GPU that is not there must be Inductor's own: their bytes, their operations, whole programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import _benchmark_counts
import benchmark
import pytest
import torch
from _count_kernels import _predicted
from _pretend_gpu import TARGETS

from seresnet_hub.errors import InputError

SCRIPTS = Path(benchmark.__file__).parent
H100 = TARGETS["sm_90"]
BATCH, SIZE = 256, 224


def kernel(read: int, written: int, flops: int = 0) -> dict[str, int]:
    return {"read": read, "written": written, "flops": flops}


def counted(what: str, kind: str, **changes: Any) -> dict[str, Any]:
    """Counts are of processes of their own: counting changes torch for the whole process."""
    arguments = {
        "what": what, "network": "resnet50" if kind == "plain" else "seresnet50", "kind": kind, "target": "sm_90",
        "batch_size": BATCH, "size": SIZE, "settings": {}, "parts": ["block"], **changes,
    }  # fmt: skip
    pytest.importorskip("triton", reason="torch's CPU builds have no Triton, which makes a GPU's kernels")
    command = [sys.executable, str(SCRIPTS / "_count_kernels.py"), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def moved(block: dict[str, Any], graph: str) -> int:
    return sum(block["graphs"][graph][kind]["bytes"] for kind in ("library", "product", "elementwise"))


def test_a_kernel_takes_as_long_as_its_bytes_or_its_operations() -> None:
    a_millisecond_of = {"bytes": round(H100.bandwidth / 1e3), "flops": round(H100.flops / 1e3)}
    moving = kernel(a_millisecond_of["bytes"] // 2, a_millisecond_of["bytes"] // 2)
    computing = kernel(8, 8, a_millisecond_of["flops"])
    assert _predicted([moving], H100) == {"ms": pytest.approx(1), "cautious_ms": pytest.approx(1)}
    assert _predicted([computing], H100) == {"ms": pytest.approx(1), "cautious_ms": pytest.approx(600 / 250)}
    assert _predicted([moving, computing], H100)["ms"] == pytest.approx(2)
    assert _predicted([kernel(4, 4)] * 1000, H100) == {
        "ms": pytest.approx(0, abs=1e-3),
        "cautious_ms": pytest.approx(2),
    }


def test_what_cannot_be_counted_is_refused() -> None:
    pytest.importorskip("triton")
    for words in (["--dtype", "fp32"], ["--batch-size", "1", "--batch-size", "2"]):
        with pytest.raises(InputError, match="bf16, and one --batch-size"):
            benchmark.main(["training", "--target", "sm_90", *words])


def test_a_network_that_does_not_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    with pytest.raises(InputError, match="kernels of no_such_network were not generated"):
        _benchmark_counts.count_networks(
            "training", benchmark.parser().parse_args(["training", "--target", "sm_90", "--plain", "no_such_network"])
        )


@pytest.mark.slow
def test_the_training_block_moves_what_a_plain_one_does() -> None:
    plain, timms, own = (counted("training", kind, build=kind == "own")["block"] for kind in ("plain", "timm", "own"))
    a_map = BATCH * (SIZE // 4) ** 2 * 256 * 2  # bytes of a block's output
    for graph, of_timm in (("forward", 2), ("backward", 2)):
        assert moved(own, graph) < 1.005 * moved(plain, graph), graph
        assert moved(timms, graph) > moved(plain, graph) + (of_timm - 0.5) * a_map, graph
    # 2 x 2 x output values x weights of one, for three convolutions and for the gradients by input and by weight.
    convolutions = 2 * BATCH * (SIZE // 4) ** 2 * (256 * 64 + 64 * 64 * 9 + 64 * 256)
    assert plain["graphs"]["forward"]["flops"] == convolutions
    assert plain["graphs"]["backward"]["flops"] == 2 * convolutions
    assert own["built"] > 10


@pytest.mark.slow
def test_inference_makes_one_kernel_of_convolution_gate_sum_and_activation() -> None:
    options = benchmark.parser().parse_args(["inference", "--target", "sm_90"])
    settings = _benchmark_counts._settings("inference", options)
    default, epilogue = (counted("inference", "own", settings=settings[name], build=True)["block"]
                         for name in ("default", "epilogue"))  # fmt: skip
    (last,) = [one for one in epilogue["kernels"] if one["wide_writes"]]
    assert last["kind"] == "product"
    assert all(word in last["operations"] for word in ("convolution_4", "sigmoid", "mul", "add", "relu_3"))
    assert len([one for one in default["kernels"] if one["wide_writes"]]) == 2
    assert moved(epilogue, "forward") < 0.75 * moved(default, "forward")
    assert epilogue["built"] > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "over_timm", "over_plain"), [({}, 1.15, 0.99), ({"realize_reads_threshold": 2}, 1.19, 1.02)]
)
def test_predicted_training_is_faster_than_timms(settings: dict[str, Any], over_timm: float, over_plain: float) -> None:
    """In the whole network the sum of two gradients between blocks is as narrow as the maps."""
    if settings and torch.__version__ >= "2.12":  # there all three networks' first layers move 2 GB more backward
        over_timm = 1.185
    own = counted("training", "own", settings=settings, parts=["network"])["network"]["predicted"]["ms"]
    timms, plain = (counted("training", kind, parts=["network"])["network"]["predicted"]["ms"]
                    for kind in ("timm", "plain"))  # fmt: skip
    assert timms / own > over_timm
    assert plain / own > over_plain
