"""What runs hostile cases must notice each way in which one can go wrong, or a clean report would mean nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Case, Report, attack

from seresnet_hub.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")


class Boom:
    def __reduce__(self) -> Any:
        return os.getcwd, ()


def _act(value: str) -> str:
    match value:
        case "refused":
            raise InputError("no")
        case "traceback":
            raise ValueError("yes")
        case "exit":
            sys.exit(3)
        case "hang":
            time.sleep(60)
        case "died":
            os.abort()
        case "grows and stays":
            time.sleep(len(bytearray(300 * 2**20)) and 3)
        case "grows and shrinks":
            bytearray(300 * 2**20)
        case "starts":
            subprocess.run(["true"], check=True)
        case "unpickles":
            pickle.loads(pickle.dumps(Boom()))
        case "opens":
            Path("/etc/hostname").open().close()
    return value


def _attacked(*names: str) -> Report:
    return attack(
        _act, [Case(name, name) for name in names], seconds=1.0, most_bytes=lambda _: 200 * 2**20,
        may_open=lambda path: path != "/etc/hostname",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fine", "accepted"), ("refused", "refused"), ("traceback", "traceback"), ("exit", "traceback"),
        ("hang", "hang"), ("died", "died"), ("grows and stays", "memory"), ("grows and shrinks", "memory"),
        ("starts", "executed"), ("unpickles", "executed"), ("opens", "executed"),
    ],
)  # fmt: skip
def test_each_way_to_go_wrong_is_noticed(name: str, kind: str) -> None:
    report = _attacked("fine", name, "fine")
    assert [outcome.kind for outcome in report.outcomes] == ["accepted", kind, "accepted"]
    assert [outcome.name for outcome in report.findings] == ([name] if kind not in ("accepted", "refused") else [])


def test_a_summary_counts_the_kinds_and_names_the_slowest() -> None:
    """Protects figures that are reported."""
    summary = _attacked("fine", "refused", "hang", "fine", "traceback").summary()
    assert [summary[kind] for kind in ("cases", "accepted", "refused", "hang", "traceback")] == [5, 2, 1, 1, 1]
    assert summary["slowest"]["name"] == "hang"
