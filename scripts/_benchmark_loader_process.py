"""Measure one loader, in a process of its own, which `_benchmark_loader.py` starts, perhaps by another Python."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for an interpreter that does not have this package

from _benchmark_loader_data import write_litdata, write_mosaicml
from _benchmark_loader_peers import LOADERS, Source


def _measure(name: str, source: Source, step_time: float) -> dict[str, float]:
    """Run one epoch; with a step time, sleep so long after every batch and see how long the next one lets wait."""
    import psutil

    torch.set_num_threads(1)

    imported = psutil.Process().memory_info().rss
    peak, peak_above, proportional, looked = 0, 0, 0, 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak, peak_above, proportional, looked
        while not done.wait(0.25):
            try:
                tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
                resident = sum(process.memory_info().rss for process in tree)
                above = resident - len(tree) * imported
                if time.perf_counter() - looked > 1:
                    proportional, looked = max(proportional, sum(map(_pss, tree))), time.perf_counter()
            except psutil.Error:  # a worker has just ended
                continue
            peak, peak_above = max(peak, resident), max(peak_above, above)

    watcher = threading.Thread(target=watch, daemon=True)
    start = time.perf_counter()
    watcher.start()
    images, first, first_images, waited, asked, cpu = 0, 0.0, 0, 0.0, start, 0.0
    for batch in LOADERS[name](source):
        now = time.perf_counter()
        if not images:
            first, first_images, cpu = now, len(batch), _cpu_seconds() + _cpu_seconds_of_children()
        else:
            waited += now - asked
        images += len(batch)
        if step_time:
            time.sleep(step_time)
        asked = time.perf_counter()
    end = time.perf_counter()
    done.set()
    watcher.join()
    return {
        "images_per_second": (images - first_images) / (end - first),
        "images": images,
        "cpu_seconds_per_image": (_cpu_seconds() - cpu) / (images - first_images),
        "seconds_to_first_batch": first - start,
        "peak_rss_bytes": peak,
        "peak_pss_bytes": proportional,
        "peak_above_imports_bytes": peak_above,
        "stall_share": waited / (end - first),
    }


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its workers that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _pss(process: Any) -> int:
    """Return a process's memory, with pages that several processes share divided among them."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _cpu_seconds_of_children() -> float:
    """Return the CPU time of the workers that are alive."""
    import psutil

    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)


def main(what: str, name: str, scratch: Path, settings: str) -> dict[str, float]:
    if what == "measure":
        given = json.loads(settings)
        step_time = given.pop("step_time")
        return _measure(name, Source(scratch, **given), step_time)
    {"litdata": write_litdata, "mosaicml-streaming": write_mosaicml}[name](scratch)
    return {}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])))
