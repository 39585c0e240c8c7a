"""Measure a conversion: its time and memory, against loading and saving the same file."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from seresnet_hub.conversion.convert import convert
from seresnet_hub.errors import InputError


def benchmark_convert(options: argparse.Namespace) -> dict[str, Any]:
    """Compare a conversion with `torch.load` and `save_file` of the same file, each in processes of their own.

    Times are of the work alone, without the interpreter's start and imports; memory is the peak of the resident set
    above what the process held before the work. Both kinds take turns; the fastest of each counts, since other work on
    the machine only adds time, and the median of the memory.
    """
    if options.repeats < 1:
        raise InputError(f"--repeats {options.repeats}: at least one is needed")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch, "checkpoint.pth")
        _write_mmpretrain_checkpoint(checkpoint, legacy=options.legacy)
        size = checkpoint.stat().st_size
        converted = "convert-unverified" if options.no_verify else "convert"
        plain_runs: list[dict[str, float]] = []
        conversions: list[dict[str, float]] = []
        for k in range(options.repeats):
            for work, runs in (("load-and-save", plain_runs), (converted, conversions)):
                output = Path(scratch, f"{work}-{k}")
                runs.append(_measured(work, checkpoint, output))
                # Files left behind would make the disk's queue of one run the wait of the next.
                shutil.rmtree(output) if output.is_dir() else output.unlink()
    plain_seconds, seconds = (min(one["seconds"] for one in runs) for runs in (plain_runs, conversions))
    plain_peak, peak = (statistics.median(one["peak_bytes"] for one in runs) for runs in (plain_runs, conversions))
    return {
        "benchmark": "convert",
        "file_bytes": size,
        "format": "legacy" if options.legacy else "zip",
        "verified": not options.no_verify,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "load_and_save_seconds": round(plain_seconds, 3),
        "convert_seconds": round(seconds, 3),
        "time_ratio": round(seconds / plain_seconds, 2),
        "load_and_save_peak_bytes": round(plain_peak),
        "peak_bytes": round(peak),
        "peak_ratio": round(peak / size, 2),
    }


def _write_mmpretrain_checkpoint(path: Path, *, legacy: bool) -> None:
    """Write an SE-ResNet-50 with random weights under mmpretrain's names: about 110 MB."""
    torch.manual_seed(0)
    state = {}
    for name, tensor in timm.create_model("seresnet50", num_classes=1000).state_dict().items():
        renamed = re.sub(r"\.se\.fc([12])\.", r".se_layer.conv\1.conv.", name)
        state["head." + renamed if renamed.startswith("fc.") else "backbone." + renamed] = tensor
    torch.save({"meta": {}, "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)


def _measured(work: str, checkpoint: Path, output: Path) -> dict[str, float]:
    """Run one piece of work in a process of its own and return what it took."""
    command = [sys.executable, __file__, work, str(checkpoint), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"the measured process failed: {done.stderr[-300:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _work(name: str, checkpoint: Path, output: Path) -> None:
    """Do one piece of work and print its time and memory."""
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    start = time.perf_counter()
    if name == "load-and-save":
        save_file(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"], output)
    else:
        convert(checkpoint, output, verify=name == "convert")
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_bytes": _resident("VmHWM") - before}))


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    if found is None:
        raise InputError(f"this system does not say how much memory a process has ({field} in /proc/self/status)")
    return int(found.group(1)) * 1024


if __name__ == "__main__":  # a measured process, started by this file
    _work(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
