"""Emulate whole ImageNet runs on eight GPUs: measured figures, the Hub's limits, and loaders as they were and are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from _simulate_cpu import CPU_FILE
from _simulate_epoch import Epoch, Limit, Setup, Simulation, epoch_seconds

from seresnet_hub.data.loader_spec import LEAST_AHEAD, batches_ahead, fitting_ahead
from seresnet_hub.data.plan import Plan
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import read_json
from seresnet_hub.hub.signed_addresses import KEPT_SECONDS
from seresnet_hub.recipes.recipe import Recipe, get_recipe, override

RUNS_FILE = "simulated_runs.json"
# What is trained: recipes, the first one also with settings that make it faster. The first word is the recipe's name.
TRAINED = (
    "seresnet50_8xb32_in1k", "seresnet50_8xb32_in1k decoder=fast", "seresnet50_8xb32_in1k decoder=region", "rsb_a2",
)  # fmt: skip
ONLY_NOW = "decoder=region"  # which the loader before does not have
GPUS = 8

# ILSVRC/imagenet-1k on the Hub: its training split. The bytes are those of the files, divided among the row groups.
ROWS, FILES, ROW_GROUP_ROWS, BYTES = 1_281_167, 294, 100, 140e9

# Requests for a file ("Resolvers") in fixed windows of five minutes, as https://huggingface.co/docs/hub/rate-limits
# said in September 2025. Requests to the storage that such an answer leads to do not count.
ACCOUNTS = {"free": 5_000, "PRO": 12_000}
LIMIT_SECONDS = 300.0


class Loader(NamedTuple):
    """How a state of the code reads: `cpu` names its measured figures.

    It uses at most `most_workers` of each GPU. A row group costs `requests_a_row_group`, and a file's address one
    request of each of `address_holders` while it is kept (0: it is part of the former).
    """

    cpu: str
    most_workers: int
    requests_a_row_group: float
    address_holders: int
    caches: bool


# 2.2 requests a row group were counted on a loopback Hub, on files of 6 row groups.
LOADERS = {
    "before": Loader("before", 3, 2.2, 0, False),
    "now, `cache_gb=0`": Loader("now", 1000, 0.0, 1, False),
    "now": Loader("now", 1000, 0.0, 1, True),
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is assumed of the machine, and was not measured."""

    cores: int = 96
    workers: int = 8  # of each GPU
    network_gigabits: float = 25.0
    disk_gigabytes: float = 3.0
    seconds_a_request: float = 0.1


def recipe_of(trained: str) -> Recipe:
    """Return the recipe of an entry of `TRAINED`."""
    name, *settings = trained.split()
    return override(get_recipe(name), settings)


def setup_of(trained: str, loader: Loader, machine: Machine, measured: Path) -> Setup:
    """Return what is emulated for a recipe and a loader. Errors: `InputError` where a measured figure is missing."""
    recipe = recipe_of(trained)
    figures = read_json(measured / CPU_FILE)["loaders"].get(loader.cpu, {"recipes": {}})["recipes"].get(trained)
    if figures is None:
        raise InputError(
            f"{measured / CPU_FILE} has no figures of {trained}, {loader.cpu}: measure them with --measure"
        )
    workers = min(loader.most_workers, machine.workers)
    rows = recipe.batch_size // GPUS  # of each GPU's part of a batch
    ahead = fitting_ahead(batches_ahead(rows, workers), rows * 3 * recipe.input_size**2)
    plan = Plan(unit_rows=(ROWS,), batch_size=recipe.batch_size // recipe.repeated_augmentation, lanes=recipe.lanes,
                order=None)  # fmt: skip
    # Kept on this machine, a row group that several readers need is fetched once, and then in the system's memory.
    readings = plan.readings(GPUS, workers) if loader.cpu == "now" and not loader.caches else 1.0
    shared = max(1.0, (GPUS + GPUS * machine.workers) / machine.cores)  # each GPU's own process needs a core too
    return Setup(
        gpus=GPUS, gpu_images_per_second=gpu_images_per_second(measured), readers=GPUS * workers,
        cpu_seconds_per_image=figures["cpu_seconds_per_image"] * shared, cpu_spread=figures["cpu_spread"],
        batch_size=recipe.batch_size, repeats=recipe.repeated_augmentation, steps=ROWS // recipe.batch_size,
        batches_ahead=ahead if loader.cpu == "now" else LEAST_AHEAD,
        row_group_rows=ROW_GROUP_ROWS, row_group_bytes=readings * BYTES / ROWS * ROW_GROUP_ROWS, files=FILES,
        requests_a_row_group=loader.requests_a_row_group, address_holders=loader.address_holders,
        address_seconds=KEPT_SECONDS, network=machine.network_gigabits * 1e9 / 8,
        disk=machine.disk_gigabytes * 1e9, seconds_a_request=machine.seconds_a_request,
    )  # fmt: skip


def gpu_images_per_second(measured: Path) -> float:
    """Return how many images one GPU trains on in a second: this package's SE-ResNet-50, as it was measured."""
    for one in read_json(measured / "benchmark_training_gpu.json")["measurements"]:
        if one["part"] == "training" and one["dtype"] == "bf16" and one["batch_size"] == 256:
            return float(one["networks"]["ours"]["images_per_second"])
    raise InputError(f"{measured}: no training in bf16 was measured on a GPU")


def simulated_runs(machine: Machine, measured: Path) -> dict[str, Any]:
    """Return the hours of each recipe, loader and account, with and without the emulation, and what was assumed."""
    runs = [run for one in emulated_runs() for run in runs_of(*one, machine, measured)]
    gpu = read_json(measured / "benchmark_training_gpu.json")["device"]
    return {
        "benchmark": "simulated_runs", "gpus": GPUS, "device": gpu,
        "gpu_images_per_second": gpu_images_per_second(measured), "machine": asdict(machine), "runs": runs,
    }  # fmt: skip


def emulated_runs() -> list[tuple[str, str]]:
    """Return each entry of `TRAINED` with each of the `LOADERS` that can train it."""
    return [
        (trained, kind) for trained, kind in product(TRAINED, LOADERS)
        if LOADERS[kind].cpu == "now" or ONLY_NOW not in trained
    ]  # fmt: skip


def runs_of(trained: str, kind: str, machine: Machine, measured: Path) -> list[dict[str, Any]]:
    """Return what a whole run takes on each account: `hours` as emulated, and beside them those of the formula."""
    setup, epochs = setup_of(trained, LOADERS[kind], machine, measured), int(recipe_of(trained).epochs)
    runs: list[dict[str, Any]] = []
    waited = True
    for account, requests in ACCOUNTS.items():
        limit = Limit(requests, LIMIT_SECONDS)
        if not waited:  # more requests would change nothing
            runs.append({**runs[-1], "account": account})
            continue
        results, formula, waited = _emulated(setup, limit, epochs, caches=LOADERS[kind].caches)
        runs.append({
            "trained": trained, "loader": kind, "account": account, "epochs": epochs,
            "hours": round(sum(one.seconds for one in results) / 3600, 2), "hours_by_formula": round(formula / 3600, 2),
            "first_epoch_minutes": round(results[0].seconds / 60, 2),
            "last_epoch_minutes": round(results[-1].seconds / 60, 2),
            "held_up_by": results[-1].held_up_by, "first_held_up_by": results[0].held_up_by,
            "requests_in_the_first_epoch": results[0].requests, "requests_in_the_last_epoch": results[-1].requests,
            "busy": {name: round(float(share), 3) for name, share in results[-1].shares.items() if name != "requests"},
            "hours_of_gpus_alone": round(epochs * setup.steps * setup.step_seconds / 3600, 2),
        })  # fmt: skip
    return runs


def _emulated(setup: Setup, limit: Limit, epochs: int, *, caches: bool) -> tuple[list[Epoch], float, bool]:
    """Return each epoch, the seconds of all by the formula, and whether any request had to wait."""
    emulation = Simulation(setup, limit)
    results: list[Epoch] = []
    formula, steady_at = 0.0, None
    for cached in cached_shares(setup, epochs, caches=caches):
        # An epoch that used no more requests than came back meanwhile stands for all that read from the same places.
        if cached == steady_at:
            results.append(results[-1])
        else:
            before = limit.left(emulation.now)
            results.append(emulation.epoch(cached))
            steady_at = cached if limit.left(emulation.now) >= before - 1 else None
        formula += epoch_seconds(setup, limit, cached)
    return results, formula, limit.waited > 0


def cached_shares(setup: Setup, epochs: int, *, caches: bool) -> Iterator[float]:
    """Yield for each epoch which share of its row groups is on this machine by then.

    With repeated augmentation an epoch reads only a part of the data set, drawn anew each time.
    """
    read = min(1.0, setup.row_groups * setup.row_group_rows / ROWS * (1 + setup.batch_size / ROWS))
    missing = 1.0
    for _ in range(epochs):
        yield 1 - missing if caches else 0.0
        missing *= 1 - read
        if missing < 1e-3:  # the last few row groups hold nothing up
            missing = 0.0
