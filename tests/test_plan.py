"""The plan must place every row exactly once, the same for any readers and restarts, well mixed, and read little."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seresnet_hub.data.plan import Order, Plan, Reader

ROW_GROUPS = st.lists(st.integers(1, 30) | st.just(1), min_size=1, max_size=6)
SHARDS = st.lists(ROW_GROUPS, min_size=1, max_size=20)


def readers_of(world_size: int, workers: int) -> list[Reader]:
    return [Reader(rank, world_size, worker, workers) for rank in range(world_size) for worker in range(workers)]


def batches(plan: Plan, world_size: int = 1, workers: int = 0, start: int = 0) -> list[list[tuple[int, int]]]:
    """The (unit, row) in each place of each global batch, as the readers of all ranks fill them; gaps are an error."""
    filled: list[dict[int, tuple[int, int]]] = [{} for _ in range(plan.steps)]
    for reader in readers_of(world_size, max(workers, 1)):
        for window in plan.windows(reader, start):
            for batch, place, unit, row in zip(*(a.tolist() for a in window[1:5]), strict=True):
                low, high = plan.places(batch, reader)
                assert low <= place < high
                assert place not in filled[batch]
                assert batch >= window.first_batch >= start
                filled[batch][place] = (unit, row)
    assert all(sorted(places) == list(range(plan.batch_rows(k))) for k, places in enumerate(filled[start:], start))
    return [[places[place] for place in sorted(places)] for places in filled[start:]]


# Any shards, readers and stop position.
PLANS = given(
    shards=SHARDS, batch_size=st.integers(1, 70), lanes=st.sampled_from([1, 5, 8, 24, 96]), window=st.integers(1, 400),
    shuffle=st.booleans(), drop_last=st.booleans(), world_size=st.integers(1, 8), workers=st.integers(0, 16),
    others=st.tuples(st.integers(1, 8), st.integers(0, 16)), data=st.data(),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@PLANS
def test_no_row_is_lost_or_doubled(**drawn: Any) -> None:
    check_rows(**drawn)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@PLANS
def test_no_row_is_lost_or_doubled_by_a_thousand_plans(**drawn: Any) -> None:
    check_rows(**drawn)


def check_rows(
    shards: list[list[int]], batch_size: int, lanes: int, window: int, shuffle: bool, drop_last: bool,
    world_size: int, workers: int, others: tuple[int, int], data: st.DataObject,
) -> None:  # fmt: skip
    """Each row once, the same batches, also resumed by other readers."""
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


def read_units(plan: Plan, reader: Reader, start: int = 0) -> set[int]:
    """The units that a reader must read; one that is said to be finished must not be needed again."""
    read: set[int] = set()
    finished: set[int] = set()
    for window in plan.windows(reader, start):
        now = set(window.unit.tolist())
        assert not now & finished
        read |= now
        finished |= set(window.finished)
    assert all(plan.needs(unit, reader, start) for unit in read)
    return read


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2), (8, 1), (8, 3)])
def test_a_reader_needs_its_own_units_and_one_at_each_end(world_size: int, workers: int) -> None:
    plan = Plan(unit_rows=(7, 100, 64, 1) * 300, batch_size=96, order=Order(0, 0, 2000))
    readers = readers_of(world_size, workers)
    read = [read_units(plan, reader) for reader in readers]
    rows = [sum(plan.unit_rows[unit] for unit in units) for units in read]
    assert max(rows) <= plan.rows / len(readers) + 2 * 100
    assert sum(map(len, read)) <= len(plan.unit_rows) + len(readers) - 1  # only a unit at a boundary is read twice
    assert plan.readings(world_size, workers) == 1


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
    assert len(read_units(plan, Reader())) == 480
    assert len(read_units(plan, Reader(), plan.steps * 3 // 4)) <= 480 // 4 + 48
    assert not read_units(plan, Reader(), plan.steps)
    needed = [unit for unit in range(480) if plan.needs(unit, Reader(0, 8), plan.steps // 2)]
    assert len(needed) <= 480 // 16 + 3 * 2


def test_a_unit_that_two_lanes_share_is_needed_at_one_time() -> None:
    plan = Plan(unit_rows=(30,) * 100, batch_size=48, order=Order(0, 0, 1))
    needed: dict[int, list[int]] = {}
    for window in plan.windows(Reader()):
        for unit in set(window.unit.tolist()):
            needed.setdefault(unit, []).append(window.first_batch)
    shared = [times for times in needed.values() if len(times) > 1]
    assert len(shared) > 10
    assert max(max(times) - min(times) for times in shared) <= 30 // 2


def rows_of_readers(rows: int, batch_size: int, world_size: int, workers: int) -> np.ndarray:
    """How many rows each reader has in each full batch: `(batches, readers)`, by the places that it is given."""
    plan = Plan(unit_rows=(rows,), batch_size=batch_size, order=None, drop_last=True)
    counts = []
    for batch in range(plan.steps):
        places = [plan.places(batch, reader) for reader in readers_of(world_size, workers)]
        assert [low for low, _ in places] == [0, *(high for _, high in places[:-1])]
        assert places[-1][1] == batch_size
        counts.append([high - low for low, high in places])
    return np.array(counts)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("batch_size", [256, 688, 2048])
def test_every_worker_has_its_share_of_an_epoch(world_size: int, batch_size: int) -> None:
    """All workers have rows, over an epoch equally many, and in no batch much more than others."""
    for workers in (11, 16) if world_size > 8 else range(1, 17):
        counts = rows_of_readers(batch_size * 200, batch_size, world_size, workers)
        assert counts.shape == (200, world_size * workers)
        rows = counts.sum(axis=0)
        assert 0 < rows.max() <= 1.05 * rows.min()
        of_ranks = counts.reshape(200, world_size, workers)
        assert np.ptp(of_ranks, axis=2).max() <= 1
        assert np.ptp(of_ranks.sum(axis=2), axis=1).max() <= 1


@settings(max_examples=60, deadline=None)
@given(batch_size=st.integers(1, 200), world_size=st.integers(1, 9), workers=st.integers(1, 16))
def test_shares_are_equal_once_all_turns_were_had(batch_size: int, world_size: int, workers: int) -> None:
    """After ranks × workers batches every reader has had exactly as many rows as every other."""
    turns = world_size * workers
    assert set(rows_of_readers(batch_size * turns, batch_size, world_size, workers).sum(axis=0)) == {batch_size}


@pytest.mark.parametrize("world_size", [1, 3, 8, 64])
def test_the_part_of_a_rank_does_not_depend_on_its_workers(world_size: int) -> None:
    plan = Plan(unit_rows=(688 * 20 + 50,), batch_size=688, order=None)
    for workers in range(1, 17):
        for batch in range(plan.steps):
            for rank in range(world_size):
                parts = [plan.places(batch, Reader(rank, world_size, n, workers)) for n in range(workers)]
                assert (parts[0][0], parts[-1][1]) == plan.places(batch, Reader(rank, world_size))
                assert parts[-1][1] - parts[0][0] <= plan.share(batch, world_size)


def test_workers_with_fewer_rows_than_they_are_take_turns() -> None:
    """Of 16 workers with 4 rows of a batch, none is without for longer than three batches."""
    idle = rows_of_readers(256 * 64, 256, 64, 16) == 0
    assert idle.any()
    assert not (idle[:-3] & idle[1:-2] & idle[2:-1] & idle[3:]).any()


def test_1024_readers_are_all_busy() -> None:
    """64 ranks of 16 workers, with 688 images a batch: each row once, and as many for each reader, within 5 %."""
    plan = Plan(unit_rows=(100,) * 1376, batch_size=688, lanes=128, order=Order(0, 0, 12_800))
    seen: Counter[int] = Counter()
    rows, readings = [], 0
    for reader in readers_of(64, 16):
        windows = list(plan.windows(reader))
        rows.append(sum(len(window.row) for window in windows))
        for window in windows:
            seen.update((window.unit * 100 + window.row).tolist())
        readings += len({unit for window in windows for unit in window.unit.tolist()})
    assert len(seen) == seen.total() == 137_600
    assert max(rows) <= 1.05 * min(rows)
    assert readings / 1376 == pytest.approx(plan.readings(64, 16), rel=0.15)  # and those that lanes share


@pytest.mark.parametrize(
    ("world_size", "workers", "batch_size", "most"),
    [(8, 8, 256, 1.1), (8, 12, 256, 1.6), (8, 8, 688, 1.5), (1, 8, 704, 1.1), (64, 16, 2048, 8.1)],
)
def test_a_unit_is_read_by_few(world_size: int, workers: int, batch_size: int, most: float) -> None:
    plan = Plan(unit_rows=(100,) * 12_811, batch_size=batch_size, lanes=128, order=Order(0, 0, 12_800), drop_last=True)
    assert 1 <= plan.readings(world_size, workers) <= most


@pytest.mark.parametrize("lanes", [24, 96, 128])
@pytest.mark.parametrize("unit_rows", [(100,) * 12_811 + (67,), (1_281_167,)])
def test_the_first_window_is_planned_alone(
    monkeypatch: pytest.MonkeyPatch, lanes: int, unit_rows: tuple[int, ...]
) -> None:
    """No other window is drawn for it, and a large unit is permuted once for all lanes that divide it."""
    drawn: list[tuple[int, ...]] = []
    real = Plan._random
    monkeypatch.setattr(Plan, "_random", lambda plan, *stream: drawn.append(stream) or real(plan, *stream))
    plan = Plan(unit_rows=unit_rows, batch_size=256, lanes=lanes, order=Order(0, 0, 16_384))
    windows = plan.windows(Reader())
    next(windows)
    assert len(drawn) <= 4  # the order of the units, a window, and a unit that is cut at one or both of its ends
    if len(unit_rows) == 1:
        assert len(list(windows)) == lanes - 1
        assert sorted(drawn) == sorted([(), (1, 0), *((2, lane, 0) for lane in range(lanes))])


def test_lanes_turn_to_their_next_row_group_at_different_batches() -> None:
    """Where they begin within a row group is spread over it, so that reading does not come in bursts."""
    plan = Plan(unit_rows=(100,) * 12_811 + (67,), batch_size=256, lanes=128, order=Order(0, 0, 12_800))
    turns: Counter[int] = Counter()
    for window in plan.windows(Reader()):
        if window.first_batch > 1000:
            break
        turns[window.first_batch] += 1
    assert turns[0] == 128
    assert max(turns[batch] for batch in range(1, 1000)) <= 12  # 2.6 on average


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


@pytest.mark.parametrize(("drop_last", "max_steps"), [(False, None), (True, None), (False, 2)])
def test_rows_of_the_batches_before_one(drop_last: bool, max_steps: int | None) -> None:
    plan = Plan(unit_rows=(7, 0, 16), batch_size=5, lanes=2, order=None, drop_last=drop_last, max_steps=max_steps)
    rows = [plan.batch_rows(batch) for batch in range(plan.steps)]
    assert [plan.rows_until(batch) for batch in range(plan.steps + 1)] == [sum(rows[:k]) for k in range(len(rows) + 1)]
