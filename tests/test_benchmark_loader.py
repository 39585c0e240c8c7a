"""The benchmark of loaders measures all of them on the same images, near or far, and counts what they asked for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from test_scripts import call

SMALL = ["--images", 400, "--rounds", 1, "--workers", 1, "--batch-size", 100]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latency-ms", "5"], "--latency-ms and --mbit are of --remote cold or --remote cached"),
        (["--mbit", "5"], "--latency-ms and --mbit are of --remote"),
        (["--remote", "cold", "--mbit", "0"], "--mbit must be positive"),
        (["--remote", "cold", "--peer", "litdata"], "--peer litdata: --remote measures timm, datasets"),
        (["--peer-python", "timm"], "--peer-python timm: write NAME=PATH"),
        (["--peer-python", "timm=/no/python"], "--peer-python timm=/no/python: write NAME=PATH"),
        (["--peer-python", f"nobody={sys.executable}"], "--peer-python nobody=.*: write NAME=PATH, a peer"),
        (["--rounds", "0"], "--rounds 0 --repeats 1: at least one is needed"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("benchmark", "loader", *words, capfd=capfd)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err


@pytest.mark.slow
def test_local_loaders_take_turns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    words = ["--peer", "datasets", "--peer-python", f"datasets={sys.executable}", "--step-time", 0.01]
    code, out, err = call("benchmark", "loader", *SMALL, *words, "--picture", picture, capfd=capfd)
    assert code == 0, err
    result = json.loads(out)
    ours, theirs = result["loaders"]["seresnet_hub"], result["loaders"]["datasets"]
    assert ours["images"] == theirs["images"] == 400
    assert theirs["ours_times_as_fast"] > 0
    assert "ours_times_as_fast" not in ours
    assert 0 <= ours["stall_share"] <= 1
    assert "file_bytes" not in ours
    assert picture.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cold", "cached"])
def test_what_remote_loaders_ask_for_is_counted(mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--remote", mode, "--latency-ms", 2, "--mbit", 1000, "--peer", "datasets"]
    code, out, err = call("benchmark", "loader", *SMALL, *words, capfd=capfd)
    assert code == 0, err
    loaders = json.loads(out)["loaders"]
    for one in loaders.values():
        assert one["images"] == 400
        assert one["resolver_requests"] >= 0
    # It keeps nothing: each epoch fetches both shards.
    assert loaders["datasets"]["storage_requests"] >= 2
    ours, theirs = (loaders[name]["file_bytes"] for name in ("seresnet_hub", "datasets"))
    assert ours < (1.1 if mode == "cold" else 0.5) * theirs
