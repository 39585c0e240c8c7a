"""Measure loaders side by side: images/s, CPU time, memory, time to the first batch, and what a training step waits."""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from _benchmark_options import PEERS

from seresnet_hub.errors import InputError

OURS, AGAINST = "seresnet_hub", "against"  # this package, and the same in another checkout
SIZE = 224
ROWS_PER_SHARD, ROWS_PER_GROUP = 300, 100
# Ratios of this package to a peer, or of the peer to this package.
RATIOS = {
    "ours_times_as_fast": ("images_per_second", 1), "ours_times_less_cpu": ("cpu_seconds_per_image", -1),
    "ours_share_of_pss": ("peak_pss_bytes", 1), "ours_share_above_imports": ("peak_above_imports_bytes", 1),
    "ours_share_of_rss": ("peak_rss_bytes", 1),
}  # fmt: skip
DECODERS = ("pil", "region")  # this package with another decoder
# Rows in a shuffle window or in the buffers of all workers: one row group in each of the plan's 24 lanes. timm keeps
# its default of 4,096 in each worker.
SHUFFLE = 2400


def benchmark_loader(options: argparse.Namespace) -> dict[str, Any]:
    """Run every loader over one epoch of the same images, in a process of its own, all in turn in each round.

    Images/s and CPU time count from the first batch on, over the process and its workers.
    Ratios are medians over rounds of (this package / peer) within a round, so that a busy machine weighs on both.
    """
    if options.rounds < 1 or options.repeats < 1:
        raise InputError(f"--rounds {options.rounds}, --repeats {options.repeats}: at least one is needed")
    peers = PEERS if "all" in options.peer else tuple(dict.fromkeys(options.peer))
    if options.repeats > 1 and (others := set(peers) - set(DECODERS)):
        raise InputError(f"--repeats {options.repeats}: {', '.join(sorted(others))} augments each image once")
    peers += (AGAINST,) * bool(options.against)
    names = (OURS, *peers)
    with tempfile.TemporaryDirectory() as scratch:
        _prepare(Path(scratch), options, peers)
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in names:
                one = _in_a_process(name, scratch, options, step_time=0.0)
                measured[name].append(one)
                print(f"round {number + 1}: {name}: {one['images_per_second']:.0f} images/s", file=sys.stderr)
        stalls = {}
        if options.step_time:
            for name in names:
                stalls[name] = _in_a_process(name, scratch, options, step_time=options.step_time)["stall_share"]
    loaders: dict[str, dict[str, Any]] = {}
    for name, rounds in measured.items():
        loaders[name] = {
            key: round(statistics.median(one[key] for one in rounds), 6) for key in rounds[0] if key != "stall_share"
        }
        loaders[name]["images_per_second_range"] = [
            round(extreme(one["images_per_second"] for one in rounds), 1) for extreme in (min, max)
        ]
        if name in stalls:
            loaders[name]["stall_share"] = round(stalls[name], 4)
        if name in peers:
            pairs = list(zip(measured[OURS], rounds, strict=True))
            for label, (key, power) in RATIOS.items():
                ratios = [(ours[key] / theirs[key]) ** power for ours, theirs in pairs]
                loaders[name][label] = round(statistics.median(ratios), 3)
    result = {
        "benchmark": "loader", "images": options.images, "batch_size": options.batch_size, "workers": options.workers,
        "repeats": options.repeats, "rounds": options.rounds, "cores": os.cpu_count(), "step_time": options.step_time,
        "loaders": loaders,
    }  # fmt: skip
    if options.picture:
        _draw(result, measured, options.picture)
    return result


# --- the same images in every format ----------------------------------------------------------------------------------


def _prepare(scratch: Path, options: argparse.Namespace, peers: tuple[str, ...]) -> None:
    """Write `--images` images, those of the source over and over, as parquet, tar and litdata's chunks."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    from seresnet_hub.data.open_split import open_split
    from seresnet_hub.data.units import read_unit

    split = open_split(options.source, options.split)
    rows = [row for unit in range(len(split.unit_rows)) for row in read_unit(split, unit)]
    repeated = list(islice(cycle(rows), options.images))
    shards = [repeated[k : k + ROWS_PER_SHARD] for k in range(0, len(repeated), ROWS_PER_SHARD)]
    for kind in ("parquet", "tar"):
        (scratch / kind).mkdir()
    schema = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}).arrow_schema
    for number, shard in enumerate(shards):
        encoded = [bytes((row.image or {})["bytes"]) for row in shard]
        table = pyarrow.table(
            {"image": [{"bytes": data, "path": None} for data in encoded], "label": [row.label for row in shard]},
            schema,
        )
        name = f"train-{number:05d}-of-{len(shards):05d}"
        pyarrow.parquet.write_table(table, scratch / "parquet" / f"{name}.parquet", row_group_size=ROWS_PER_GROUP)
        if "webdataset" in peers:
            with tarfile.open(scratch / "tar" / f"{name}.tar", "w") as archive:
                for k, row in enumerate(shard):
                    for suffix, content in (("jpg", encoded[k]), ("cls", str(row.label).encode())):
                        member = tarfile.TarInfo(f"{number:05d}{k:05d}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
    (scratch / "images").write_text(str(len(repeated)))
    if "litdata" in peers:
        _run("prepare-litdata", str(scratch))


def _write_litdata(scratch: Path) -> None:
    import litdata

    files = sorted(str(file) for file in (scratch / "parquet").glob("*.parquet"))
    litdata.optimize(
        fn=_litdata_rows, inputs=files, output_dir=str(scratch / "litdata"), chunk_bytes="64MB", num_workers=1
    )


def _litdata_rows(file: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    for image, label in zip(table.column("image").to_pylist(), table.column("label").to_pylist(), strict=True):
        yield {"image": image["bytes"], "label": label}


# --- the loaders: each yields uint8 images of a batch -----------------------------------------------------------------


def _transform() -> Any:
    from seresnet_hub.data.transforms import training_transform

    return training_transform(
        crop="resized", input_size=(3, SIZE, SIZE), interpolation="bilinear", crop_padding=0, scale=(0.08, 1.0),
        horizontal_flip=0.5,
    )  # fmt: skip


def _decode(data: bytes) -> torch.Tensor:
    """Decode as this package's fast way does, one picture into a tensor of its own."""
    global _decoder
    from seresnet_hub.data.decoding import Decoder

    if _decoder is None:
        _decoder = Decoder(_transform(), "fast")
    out = torch.empty(3, SIZE, SIZE, dtype=torch.uint8, memory_format=torch.contiguous_format)
    return out.flip(-1) if _decoder.apply(_decoder.decode(data), out) else out


_decoder: Any = None


def _ours(decoder: str, scratch: Path, batch_size: int, workers: int, repeats: int = 1) -> Iterator[torch.Tensor]:
    from dataclasses import replace
    from importlib import import_module

    try:
        loader, recipes = import_module("seresnet_hub.data.loader").loader, import_module("seresnet_hub.recipes.recipe")
    except ModuleNotFoundError:  # an older checkout
        loader, recipes = import_module("seresnet_hub.data").loader, import_module("seresnet_hub.recipes")
    recipe = replace(
        recipes.get_recipe("digits"), crop="resized", input_size=SIZE, batch_size=batch_size, horizontal_flip=0.5,
        decoder=decoder, shuffle_window=SHUFFLE, repeated_augmentation=repeats,
    )  # fmt: skip
    for batch in loader(str(scratch / "parquet"), "train", recipe, workers=workers):
        for row in batch.mirror.nonzero().flatten().tolist():  # the other loaders do this in their workers
            batch.images[row] = batch.images[row].flip(-1)
        yield batch.images


def _timm(scratch: Path, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    from timm.data import create_dataset, create_loader

    dataset = create_dataset(
        f"hfids/{scratch / 'parquet'}", root=None, split="train", is_training=True, batch_size=batch_size,
        num_samples=int((scratch / "images").read_text()),
    )  # fmt: skip
    batches = create_loader(
        dataset, (3, SIZE, SIZE), batch_size, is_training=True, color_jitter=None, hflip=0.5, interpolation="bilinear",
        num_workers=workers, device=torch.device("cpu"), persistent_workers=False, pin_memory=False,
    )  # fmt: skip
    for images, _ in batches.loader:  # uint8; the prefetcher around it only normalises
        yield images


def _datasets(scratch: Path, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    import datasets
    from torch.utils.data import DataLoader

    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    stream = datasets.load_dataset(str(scratch / "parquet"), split="train", streaming=True)
    stream = stream.decode(False).shuffle(seed=0, buffer_size=SHUFFLE // workers)
    stream = stream.map(
        lambda row: {"image": _decode(row["image"]["bytes"]), "label": row["label"]}, features=datasets.Features()
    )
    for batch in DataLoader(stream, batch_size=batch_size, num_workers=workers, worker_init_fn=_one_thread):
        yield batch["image"]


def _webdataset(scratch: Path, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    import webdataset

    shards = sorted(str(file) for file in (scratch / "tar").glob("*.tar"))
    stream = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(SHUFFLE // workers)
    stream = stream.to_tuple("jpg", "cls").map_tuple(_decode, int).batched(batch_size)
    for images, _ in webdataset.WebLoader(stream, batch_size=None, num_workers=workers, worker_init_fn=_one_thread):
        yield images


def _litdata(scratch: Path, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    import litdata

    class Decoded(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            return _decode(row["image"]), row["label"]

    stream = Decoded(str(scratch / "litdata"), shuffle=True)
    batches = litdata.StreamingDataLoader(
        stream, batch_size=batch_size, num_workers=workers, worker_init_fn=_one_thread
    )
    for images, _ in batches:
        yield images


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


LOADERS: dict[str, Callable[..., Iterator[torch.Tensor]]] = {
    OURS: partial(_ours, "fast"),
    **{name: partial(_ours, name) for name in DECODERS},
    "timm": _timm,
    "datasets": _datasets,
    "webdataset": _webdataset,
    "litdata": _litdata,
}


# --- one measurement --------------------------------------------------------------------------------------------------


def _in_a_process(name: str, scratch: str, options: argparse.Namespace, *, step_time: float) -> dict[str, float]:
    settings = {"batch_size": options.batch_size, "workers": options.workers, "step_time": step_time}
    if options.repeats > 1:
        settings["repeats"] = options.repeats
    folder = options.against if name == AGAINST else None
    return _run(OURS if name == AGAINST else name, scratch, json.dumps(settings), folder=folder)


def _run(*arguments: str, folder: Path | None = None) -> dict[str, float]:
    """Measure in a process of its own; given the folder of another checkout, with the package that it holds."""
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder)} if folder else None
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise InputError(f"the measured process {arguments[0]!r} failed: {done.stderr[-600:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(
    name: str, scratch: Path, *, batch_size: int, workers: int, step_time: float, **more: int
) -> dict[str, float]:
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
    for batch in LOADERS[name](scratch, batch_size, workers, **more):
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


def _draw(result: dict[str, Any], measured: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(measured)
    panels = (
        ("images_per_second", "images/s", 1.0),
        ("cpu_seconds_per_image", "CPU ms per image", 1e3),
        ("peak_pss_bytes", "memory of all processes (PSS), GB", 1e-9),
        ("seconds_to_first_batch", "seconds to the first batch", 1.0),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(14, 0.5 * len(names) + 1.6), sharey=True)
    for axis, (key, label, scale) in zip(axes, panels, strict=True):
        values = [result["loaders"][name][key] * scale for name in names]
        bars = axis.barh(names, values, color=["tab:blue" if name == OURS else "tab:gray" for name in names])
        axis.bar_label(bars, fmt="%.3g", padding=2)
        for number, name in enumerate(names):
            axis.plot([one[key] * scale for one in measured[name]], [number] * len(measured[name]), "k.", markersize=3)
        axis.set_title(label, fontsize=10)
        axis.margins(x=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(
        f"{result['images']:,} images, {result['workers']} workers on {result['cores']} cores, "
        f"batches of {result['batch_size']}; medians of {result['rounds']} interleaved rounds (dots)", fontsize=10,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if sys.argv[1] == "prepare-litdata":
        _write_litdata(Path(sys.argv[2]))
        print("{}")
    else:
        print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), **json.loads(sys.argv[3]))))
