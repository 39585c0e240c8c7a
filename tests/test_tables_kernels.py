"""Predicted times must be compared like with like, and each network's best with the others' best."""

from __future__ import annotations

import json
from pathlib import Path

import _tables_kernels as kernel_tables


def write(folder: Path, benchmark: str, times: dict[str, tuple[float, float, float]]) -> None:
    graph = {"wide_reads": 2, "wide_writes": 1, **{kind: {"bytes": 10**6} for kind in ("library", "product")}}
    counted = {
        settings: {
            network: {
                "network": {"predicted": {"ms": ms, "cautious_ms": 2 * ms}},
                "block": {"graphs": {"forward": {**graph, "elementwise": {"bytes": 5 * 10**6}}}},
            }
            for network, ms in zip(kernel_tables.NETWORKS, of_settings, strict=True)
        }
        for settings, of_settings in times.items()
    }
    (folder / f"benchmark_{benchmark}_predicted.json").write_text(json.dumps({"counted": counted}))


def test_times_and_passes(tmp_path: Path) -> None:
    write(tmp_path, "inference", {"default": (9.0, 11.0, 10.0), "epilogue": (6.0, 9.0, 8.0)})
    write(tmp_path, "training", {"default": (30.0, 44.0, 40.0), "a=1": (36.0, 50.0, 32.0)})
    times = kernel_tables.predicted(tmp_path)
    assert "| inference | 9.00 (18.00) | 11.00 (22.00) | 10.00 (20.00) | 1.100 (1.100) | 0.900 (0.900) |" in times
    assert (
        "| training, `a=1` | 36.00 (72.00) | 50.00 (100.00) | 32.00 (64.00) | 1.562 (1.562) | 1.125 (1.125) |" in times
    )
    best = "| training, each network with its best settings |"
    assert f"{best} 30.00 (60.00) | 44.00 (88.00) | 32.00 (64.00) | 1.375 (1.375) |" in times
    assert "inference, each" not in times  # the row of `epilogue` is that already
    assert "| training, forward | 2 + 1, 7 MB | 2 + 1, 7 MB |" in kernel_tables.passes(tmp_path)
    assert kernel_tables.predicted_times(tmp_path)["training"]["a=1"] == {"plain": 36.0, "timm": 50.0, "own": 32.0}


def test_without_results_there_are_no_rows(tmp_path: Path) -> None:
    assert kernel_tables.predicted(tmp_path).count("\n") == kernel_tables.passes(tmp_path).count("\n") == 1
    assert kernel_tables.predicted_times(tmp_path) == {"inference": {}, "training": {}}
