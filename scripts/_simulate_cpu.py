"""Measure what the emulation needs of the loader: the CPU time of an image as recipes decode and augment it."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import seresnet_hub
from seresnet_hub.environment import code_commit, hardware
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import read_json, write_json
from seresnet_hub.recipes.recipe import override

CPU_FILE = "benchmark_loader_cpu.json"
ROWS = 24  # of a measured batch


def measure_cpu(source: str, trained: tuple[str, ...], *, images: int, code: str, path: Path) -> dict[str, Any]:
    """Measure on `source`, in this process, what is `trained`, and write it to `path` as the figures of `code`.

    Each is a recipe's name, with settings behind it. The others' figures in the file stay. Errors: `InputError` where
    the data set has too few rows for two batches.
    """
    torch.set_num_threads(1)
    measured = {one: _measure(source, *one.split(), images=images) for one in trained}
    known: dict[str, Any] = read_json(path) if path.exists() else {"benchmark": "loader_cpu", "loaders": {}}
    known["loaders"][code] = {"commit": code_commit(), "device": hardware(), "images": images, "recipes": measured}
    write_json(path, known)
    return known


def _measure(source: str, name: str, *settings: str, images: int) -> dict[str, Any]:
    recipe = override(seresnet_hub.get_recipe(name), settings)
    repeats = recipe.repeated_augmentation
    split = seresnet_hub.open_split(source, "train")
    # As in ImageNet, each lane has row groups of its own; a sample has fewer of them.
    lanes = min(recipe.lanes, len(split.unit_rows))
    recipe = replace(recipe, batch_size=ROWS * repeats, drop_last=True, lanes=lanes)
    means: list[float] = []
    spent, seen, epoch = 0.0, 0, 0
    while seen < images:
        began = looked = time.process_time()
        loader = seresnet_hub.loader(split, None, recipe, epoch=epoch)
        if len(loader) < 2:
            raise InputError(f"{source}: too few rows to measure on; {2 * ROWS * repeats} are needed")
        for number, batch in enumerate(loader):
            now = time.process_time()
            if number:  # the first one also reads the first window of rows
                means.append((now - looked) / len(batch.images))
            looked = now
            seen += len(batch.images)
        spent += looked - began
        epoch += 1
    # Rows are independent, so the mean of a batch of them varies less by the root of their number. The median distance
    # from the median, which hiccups of the machine leave as it is, is 0.6745 of a normal distribution's deviation.
    middle = statistics.median(means)
    spread = statistics.median(abs(mean - middle) for mean in means) / 0.6745 / middle * ROWS**0.5
    return {
        "cpu_seconds_per_image": round(spent / seen, 7), "cpu_spread": round(spread, 3), "decoder": recipe.decoder,
        "auto_augment": recipe.auto_augment, "repeats": repeats,
    }  # fmt: skip
