"""The plan must place every row exactly once, the same for any readers and restarts, well mixed, and read little."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seresnet_hub.data.plan import Order, Plan, Reader

ROW_GROUPS = st.lists(st.integers(1, 30) | st.just(1), min_size=1, max_size=6)
SHARDS = st.lists(ROW_GROUPS, min_size=1, max_size=20)


def batches(plan: Plan, world_size: int = 1, workers: int = 0, start: int = 0) -> list[list[tuple[int, int]]]:
    """The (unit, row) in each place of each global batch, as the readers of all ranks fill them; gaps are an error."""
    parts = plan.workers_in_use(world_size, max(workers, 1))
    filled: list[dict[int, tuple[int, int]]] = [{} for _ in range(plan.steps)]
    for number in range(world_size * parts):
        reader = Reader(number, world_size * parts)
        for window in plan.windows(reader, start):
            for batch, place, unit, row in zip(*(a.tolist() for a in window[2:]), strict=True):
                low, high = plan.places(batch, reader)
                assert low <= place < high
                assert place not in filled[batch]
                assert batch >= window.first_batch >= start
                filled[batch][place] = (unit, row)
    assert all(sorted(places) == list(range(plan.batch_rows(k))) for k, places in enumerate(filled[start:], start))
    return [[places[place] for place in sorted(places)] for places in filled[start:]]


@settings(max_examples=150, deadline=None)
@given(
    shards=SHARDS, batch_size=st.integers(1, 70), lanes=st.sampled_from([1, 5, 8, 24]), window=st.integers(1, 400),
    shuffle=st.booleans(), drop_last=st.booleans(), world_size=st.integers(1, 8), workers=st.integers(0, 4),
    others=st.tuples(st.integers(1, 8), st.integers(0, 4)), data=st.data(),
)  # fmt: skip
def test_no_row_is_lost_or_doubled(
    shards: list[list[int]], batch_size: int, lanes: int, window: int, shuffle: bool, drop_last: bool,
    world_size: int, workers: int, others: tuple[int, int], data: st.DataObject,
) -> None:  # fmt: skip
    """Any shards, readers and stop position: each row once, the same batches, also resumed by other readers."""
    unit_rows = tuple(rows for shard in shards for rows in shard)
    order = Order(3, 1, window) if shuffle else None
    plan = Plan(unit_rows=unit_rows, batch_size=batch_size, lanes=lanes, order=order, drop_last=drop_last)
    whole = batches(plan)
    seen = Counter(row for batch in whole for row in batch)
    everything = Counter((unit, row) for unit, rows in enumerate(unit_rows) for row in range(rows))
    assert all(times == 1 for times in seen.values())
    if drop_last:
        assert seen.total() == sum(unit_rows) // batch_size * batch_size
        assert not seen - everything
    else:
        assert seen == everything
    assert batches(plan, world_size, workers) == whole
    stop = data.draw(st.integers(0, plan.steps))
    assert batches(plan, *others, start=stop) == whole[stop:]


def read_units(plan: Plan, reader: Reader) -> Counter[int]:
    """How often a reader must read each unit that forgets it after its last use."""
    return Counter(set(plan.unit_uses(reader)))


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2), (8, 1), (8, 3)])
def test_a_reader_needs_its_own_units_and_one_at_each_end(world_size: int, workers: int) -> None:
    plan = Plan(unit_rows=(7, 100, 64, 1) * 300, batch_size=96, order=Order(0, 0, 2000))
    readers = world_size * workers
    read = [read_units(plan, Reader(number, readers)) for number in range(readers)]
    rows = [sum(plan.unit_rows[unit] for unit in units) for units in read]
    assert max(rows) <= plan.rows / readers + 2 * 100
    assert sum(map(len, read)) <= len(plan.unit_rows) + readers - 1  # only a unit at a boundary is read twice
    assert plan.workers_in_use(world_size, workers) == workers


def test_eight_ranks_read_their_share_of_294_shards() -> None:
    plan = Plan(unit_rows=(100,) * (294 * 4), batch_size=512, order=Order(0, 0, 16384))
    for rank in range(8):
        rows = sum(plan.unit_rows[unit] for unit in read_units(plan, Reader(rank, 8)))
        assert rows <= 1.02 * plan.rows / 8


@pytest.mark.parametrize("world_size", [5, 7])
def test_ranks_that_do_not_divide_the_lanes_share_one_at_each_end(world_size: int) -> None:
    plan = Plan(unit_rows=(50,) * 1200, batch_size=480, order=Order(0, 0, 1))
    for rank in range(world_size):
        units = len(read_units(plan, Reader(rank, world_size)))
        assert units <= 1200 * (1 / world_size + 2 / 24) + 2


def test_a_resumed_reader_leaves_out_what_was_used_up() -> None:
    plan = Plan(unit_rows=(20,) * 480, batch_size=96, order=Order(0, 0, 480))
    assert len(plan.unit_uses(Reader(), 0)) == 480
    assert len(plan.unit_uses(Reader(), plan.steps * 3 // 4)) <= 480 // 4 + 48
    assert not plan.unit_uses(Reader(), plan.steps)


def test_a_unit_that_two_lanes_share_is_needed_at_one_time() -> None:
    plan = Plan(unit_rows=(30,) * 100, batch_size=48, order=Order(0, 0, 1))
    needed: dict[int, list[int]] = {}
    for window in plan.windows(Reader()):
        for unit in set(window.unit.tolist()):
            needed.setdefault(unit, []).append(window.first_batch)
    shared = [times for times in needed.values() if len(times) > 1]
    assert len(shared) > 10
    assert max(max(times) - min(times) for times in shared) <= 30 // 2


def test_workers_without_whole_lanes_are_left_out() -> None:
    plan = Plan(unit_rows=(10,), batch_size=8, order=None, lanes=24)
    assert [plan.workers_in_use(8, workers) for workers in (1, 2, 3, 4)] == [1, 1, 3, 3]
    assert [plan.workers_in_use(5, workers) for workers in (1, 4)] == [1, 4]
    assert [plan.workers_in_use(16, workers) for workers in (1, 8)] == [
        1,
        1,
    ]  # more readers than lanes would read them all
    assert plan.workers_in_use(64, 4) == 1


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = {
        tuple(
            row
            for batch in batches(Plan(unit_rows=(30, 40, 50), batch_size=20, order=Order(*key, 40)))
            for row in batch
        )
        for key in ((0, 0), (0, 1), (1, 0))
    }
    assert len(orders) == 3


def test_class_sorted_shards_are_mixed_as_well_as_the_window_allows() -> None:
    """On class-sorted shards a batch has as many classes as one drawn from the whole data set, or from its window."""
    label = np.repeat(np.arange(100), 500).reshape(500, 100)  # 500 row groups of 100 rows, five of each class
    random = np.random.default_rng(0)

    def classes(window: int) -> float:
        plan = Plan(unit_rows=(100,) * 500, batch_size=256, order=Order(0, 0, window))
        return float(np.mean([len({int(label[row]) for row in batch}) for batch in batches(plan)[:-1]]))

    def classes_of_draws_from(units: int) -> float:
        drawn = (random.permutation(label[random.permutation(500)[:units]].ravel())[:256] for _ in range(200))
        return float(np.mean([len(set(batch.tolist())) for batch in drawn]))

    assert classes(50_000) == pytest.approx(classes_of_draws_from(500), rel=0.01)
    assert classes(16_384) == pytest.approx(classes_of_draws_from(24 * 7), rel=0.05)  # 7 row groups a lane
    assert classes(1) == pytest.approx(classes_of_draws_from(24), rel=0.1)
