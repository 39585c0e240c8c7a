"""Rows must come from their units batch by batch, with each unit read once and dropped when no row of it is to come."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest

from seresnet_hub.data import row_reader
from seresnet_hub.data.plan import Order, Plan, Reader
from seresnet_hub.data.row_reader import RowReader
from seresnet_hub.data.split import Split


class Unit(Sequence[Any]):
    """The rows of a unit, which are made when they are asked for; counted while it is in memory."""

    in_memory: ClassVar[Counter[int]] = Counter()

    def __init__(self, number: int, rows: int) -> None:
        self.number, self.rows = number, rows
        self.in_memory[number] += 1

    def __del__(self) -> None:
        self.in_memory[self.number] -= 1

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: Any) -> tuple[int, int]:
        assert 0 <= row < self.rows
        return self.number, row


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each unit was read; they come from no data set."""
    readings: Counter[int] = Counter()
    lock = threading.Lock()

    def read_unit(split: Any, unit: int, needed: Callable[[int], bool]) -> Unit:
        with lock:
            readings[unit] += 1
            return Unit(unit, split.unit_rows[unit])

    Unit.in_memory.clear()
    monkeypatch.setattr(row_reader, "read_unit", read_unit)
    return readings


def reader_of(plan: Plan, reader: Reader | None = None, start: int = 0, *, streamed: bool = False) -> RowReader:
    split = SimpleNamespace(is_far=streamed, class_folders=None, unit_rows=plan.unit_rows)
    return RowReader(cast(Split, split), plan, reader or Reader(), start)


def expected(plan: Plan, reader: Reader, start: int) -> list[dict[int, tuple[int, int]]]:
    """The (unit, row) in each of a reader's places of each batch, by the plan's arrays."""
    batches: list[dict[int, tuple[int, int]]] = [{} for _ in range(plan.steps)]
    for window in plan.windows(reader, start):
        for batch, place, unit, row in zip(*(column.tolist() for column in window[1:5]), strict=True):
            batches[batch][place] = (unit, row)
    return batches[start:]


@pytest.mark.parametrize("unit_rows", [(30, 7, 0, 100, 1, 62) * 8, (900,), (450, 450)])
@pytest.mark.parametrize("order", [None, Order(1, 2, 200)])
@pytest.mark.parametrize("start", [0, 5])
def test_rows_are_those_of_the_plan_and_units_are_read_once(
    read: Counter[int], unit_rows: tuple[int, ...], order: Order | None, start: int
) -> None:
    plan = Plan(unit_rows=unit_rows, batch_size=50, lanes=8, order=order)
    for reader in (Reader(), Reader(1, 3), Reader(0, 2, 4, 5), Reader(15, 16, 7, 16)):
        read.clear()
        rows = reader_of(plan, reader, start)
        for batch, wanted in enumerate(expected(plan, reader, start), start):
            assert rows.next_batch == batch
            found = rows.next_rows()
            assert len(found) == len(wanted)
            assert {place: cast(Any, row) for place, row in found} == wanted
        assert set(read.values()) <= {1}
    assert not Unit.in_memory.total()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("lanes", "window"), [(24, 16_384), (96, 9600), (128, 12_800)])
def test_a_reader_holds_a_window_and_little_more(read: Counter[int], lanes: int, window: int, streamed: bool) -> None:
    plan = Plan(unit_rows=(100,) * 800, batch_size=256, lanes=lanes, order=Order(0, 0, window))
    rows = reader_of(plan, streamed=streamed)
    held = []
    for _ in range(plan.steps):
        assert len(rows.next_rows()) <= 256
        held.append(Unit.in_memory.total())
    units_a_lane = -(-window // lanes // 100)
    ahead = (4 if streamed else 1) * units_a_lane + 1
    # A lane's first window may be longer by less than a row group, and two lanes share its first one.
    assert max(held) <= lanes * (units_a_lane + 1) + ahead
    assert np.mean(held) <= lanes * (units_a_lane + 0.5) + ahead
    assert set(read.values()) == {1}
    assert held[-1] == 0


def test_a_batch_without_rows_waits_for_nothing(read: Counter[int]) -> None:
    """A worker of many, with no row in most batches, reads what the next batches need, and answers at once."""
    plan = Plan(unit_rows=(10,) * 10, batch_size=4, lanes=4, order=None)
    rows = reader_of(plan, Reader(0, 1, 0, 16))
    counts = [len(rows.next_rows()) for _ in range(plan.steps)]
    assert sorted(set(counts)) == [0, 1]
    assert sum(counts) == pytest.approx(100 / 16, abs=1)
