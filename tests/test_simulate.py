"""The emulated epochs must follow from their inputs: a queue's own laws, the formula's figures, and nothing random."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import _simulate_runs as runs
import pytest
import simulate
from _simulate_cpu import CPU_FILE
from _simulate_epoch import Limit, Setup, Simulation, epoch_seconds

from seresnet_hub.errors import InputError

MEASURED = Path(__file__).parents[1] / "model_cards"
# Nothing holds this epoch up but what a test makes scarce: 40,000 images, 0.4 ms each on the GPUs, are 16 s.
PLENTY = Setup(
    gpus=2, gpu_images_per_second=1250.0, readers=8, cpu_seconds_per_image=1e-3, cpu_spread=0.0, batch_size=80,
    repeats=1, steps=500, batches_ahead=2, row_group_rows=100, row_group_bytes=1e7, files=4, requests_a_row_group=1.0,
    address_holders=0,
    address_seconds=3600.0, network=1e10, disk=1e10, seconds_a_request=0.01,
)  # fmt: skip
MANY = 1e9


def emulated(setup: Setup, requests: float = MANY, cached: float = 0.0, epochs: int = 1) -> Any:
    emulation = Simulation(setup, Limit(requests, 300.0))
    return [emulation.epoch(cached) for _ in range(epochs)][-1]


@pytest.mark.parametrize(("scarce", "requests", "cached", "resource"), [
    ({}, MANY, 0.0, "GPUs"),
    ({"cpu_seconds_per_image": 8e-3}, MANY, 0.0, "CPU"),
    ({}, 300, 0.0, "requests"),
    ({"network": 1e8}, MANY, 0.0, "network"),
    ({"disk": 1e8}, MANY, 1.0, "disk"),
    ({"repeats": 4, "batch_size": 128, "cpu_seconds_per_image": 8e-3}, MANY, 0.5, "CPU"),  # whole rows for each reader
])  # fmt: skip
def test_the_scarce_resource_decides_as_the_formula_says(
    scarce: dict[str, Any], requests: float, cached: float, resource: str
) -> None:
    """Where all images take equally long, queues add only what it takes to fill them: less than 4 % here."""
    setup = replace(PLENTY, **scarce)
    epoch = emulated(setup, requests, cached, epochs=4)  # a full bucket of requests is used up by then
    formula = epoch_seconds(setup, Limit(requests, 300.0), cached)
    assert formula <= epoch.seconds * 1.001
    assert epoch.seconds <= formula * 1.04
    assert epoch.held_up_by == resource
    assert max(epoch.shares.values()) <= 1.001


def test_a_step_waits_for_the_slowest_reader() -> None:
    """The formula knows means alone: what images differ by costs time, and less where parts of a batch are larger."""
    slow = replace(PLENTY, cpu_seconds_per_image=4e-3)
    even = emulated(slow).seconds
    uneven = emulated(replace(slow, cpu_spread=0.7)).seconds
    larger = emulated(replace(slow, cpu_spread=0.7, batch_size=800, steps=50)).seconds
    assert even * 1.02 < larger * 1.01 < uneven


def test_requests_are_granted_at_their_rate_after_the_first_bucket() -> None:
    limit = Limit(10, 100.0)
    assert limit.take(10, 0.0) == 0.0
    assert limit.take(1, 0.0) == pytest.approx(10.0)  # a tenth of a request comes back in a second
    assert limit.take(1, 5.0) == pytest.approx(20.0)  # behind the one before
    assert limit.left(1000.0) == 10  # no more than the bucket holds


def test_each_row_group_is_asked_for_once() -> None:
    """8 readers take 10 rows of each of 500 batches: 50 row groups each, 400 requests."""
    assert emulated(PLENTY).requests == 400


def test_an_address_is_asked_for_once_an_hour_by_each_that_holds_it() -> None:
    """Of few files, as often as there are files and holders; from the cache, never."""
    setup = replace(PLENTY, requests_a_row_group=0.0)
    assert emulated(replace(setup, address_holders=1), epochs=2).requests == 0  # 16 s after the first epoch asked
    assert emulated(replace(setup, address_holders=1)).requests == setup.files
    assert emulated(replace(setup, address_holders=8)).requests == pytest.approx(8 * setup.files, abs=1)
    assert emulated(replace(setup, address_holders=8), cached=1.0).requests == 0


def test_the_same_inputs_give_the_same_result() -> None:
    setup = replace(PLENTY, cpu_spread=0.7, address_holders=2)
    assert emulated(setup, cached=0.5) == emulated(setup, cached=0.5)


def test_what_repeated_augmentation_leaves_for_later_epochs_is_fetched_then() -> None:
    setup = runs.setup_of("rsb_a2", runs.LOADERS["now"], runs.Machine(), MEASURED)
    shares = list(runs.cached_shares(setup, 300, caches=True))
    assert shares[:2] == [0.0, pytest.approx(1 / 3, rel=0.01)]  # three copies of each image: a third of them an epoch
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    once = runs.setup_of("seresnet50_8xb32_in1k", runs.LOADERS["now"], runs.Machine(), MEASURED)
    assert list(runs.cached_shares(once, 3, caches=True)) == [0.0, 1.0, 1.0]
    assert list(runs.cached_shares(once, 3, caches=False)) == [0.0, 0.0, 0.0]


def test_the_setup_is_that_of_the_data_set_and_the_measurements() -> None:
    setup = runs.setup_of("seresnet50_8xb32_in1k", runs.LOADERS["before"], runs.Machine(), MEASURED)
    assert setup.row_groups == pytest.approx(12_811, rel=0.001)
    assert setup.row_group_bytes == pytest.approx(10.9e6, rel=0.01)
    assert (setup.readers, setup.batch_size, setup.steps) == (24, 256, 5004)
    figures = json.loads((MEASURED / CPU_FILE).read_text())["loaders"]["before"]["recipes"]
    assert setup.cpu_seconds_per_image == figures["seresnet50_8xb32_in1k"]["cpu_seconds_per_image"]
    crowded = runs.Machine(cores=36)
    slower = runs.setup_of("seresnet50_8xb32_in1k", runs.LOADERS["now"], crowded, MEASURED)
    assert slower.cpu_seconds_per_image == pytest.approx(2 * figures_of("now"))


def figures_of(code: str) -> float:
    recipes = json.loads((MEASURED / CPU_FILE).read_text())["loaders"][code]["recipes"]
    return float(recipes["seresnet50_8xb32_in1k"]["cpu_seconds_per_image"])


def test_the_committed_runs_are_those_of_the_committed_figures() -> None:
    """One of them is emulated again: `python scripts/simulate.py --output model_cards/simulated_runs.json`."""
    kept = json.loads((MEASURED / runs.RUNS_FILE).read_text())
    machine = runs.Machine(**kept["machine"])
    again = runs.runs_of("rsb_a2", "now, `cache_gb=0`", machine, MEASURED)
    assert again == [run for run in kept["runs"] if (run["trained"], run["loader"]) == ("rsb_a2", "now, `cache_gb=0`")]
    keys = [(run["trained"], run["loader"], run["account"]) for run in kept["runs"]]
    assert keys == [(*one, account) for one, account in product(runs.emulated_runs(), runs.ACCOUNTS)]
    assert kept["gpu_images_per_second"] == runs.gpu_images_per_second(MEASURED)


def test_missing_figures_and_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=CPU_FILE):
        simulate.main(["--measured", str(tmp_path)])
    with pytest.raises(InputError, match="--cores 0: it must be above 0"):
        simulate.main(["--cores", "0"])
    (tmp_path / CPU_FILE).write_text('{"loaders": {}}')
    with pytest.raises(InputError, match=r"no figures of seresnet50_8xb32_in1k, before: measure them with --measure"):
        simulate.main(["--measured", str(tmp_path)])


def test_the_loader_is_measured_as_the_recipe_says(tmp_path: Path) -> None:
    from _simulate_cpu import measure_cpu

    path = tmp_path / CPU_FILE
    before = measure_cpu("digits", ("digits",), images=500, code="before", path=path)
    both = measure_cpu("digits", ("digits",), images=500, code="now", path=path)
    assert json.loads(path.read_text()) == both
    assert both["loaders"]["before"] == before["loaders"]["before"]
    figures = both["loaders"]["now"]["recipes"]["digits"]
    assert figures["decoder"] == "fast"
    assert figures["cpu_seconds_per_image"] > 0
    assert figures["cpu_spread"] > 0
