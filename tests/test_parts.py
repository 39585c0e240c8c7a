"""What a killed run has done must be found again: each row once, in order, however the rows were divided."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from seresnet_hub.errors import InputError
from seresnet_hub.files import locks
from seresnet_hub.inference.parts import Parts, PartWriter, Rows, share


def rows(first: int, stop: int) -> pa.RecordBatch:
    return pa.record_batch({"row": pa.array(range(first, stop), pa.int64())})


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr("seresnet_hub.inference.parts.SEEN_SECONDS", 0)
    parts = Parts(tmp_path / "out.parquet")
    parts.begin({"rows": 20})
    return parts


def write(parts: Parts, first: int, stop: int, *, batch: int = 4, most: int = 8) -> None:
    writer = PartWriter(parts, rows=most)
    for at in range(first, stop, batch):
        writer.write(at, rows(at, min(at + batch, stop)))
    writer.close()


def numbers(parts: Parts) -> list[int]:
    return [number for batch in parts.batches(20) for number in batch.column("row").to_pylist()]


def test_parts_of_any_order_are_read_in_order(parts: Parts) -> None:
    assert (parts.record(), parts.missing(20)) == ({"rows": 20}, [Rows(0, 20)])
    write(parts, 12, 20)
    assert parts.missing(20) == [Rows(0, 12)]
    with pytest.raises(InputError, match=r"rows 0 to 12 are missing"):
        numbers(parts)
    write(parts, 0, 10)
    (parts.path(Rows(12, 20), parts.work())).rename(parts.folder / "away")
    write(parts, 10, 12)
    with pytest.raises(InputError, match=r"rows 12 to 20 are missing"):  # those after the last part
        numbers(parts)
    (parts.folder / "away").rename(parts.path(Rows(12, 20), parts.work()))
    assert parts.done() == [Rows(0, 8), Rows(8, 10), Rows(10, 12), Rows(12, 20)]
    assert (parts.missing(20), numbers(parts)) == ([], list(range(20)))


def test_rows_that_two_processes_wrote_are_read_once(parts: Parts) -> None:
    for first, stop in ((0, 8), (4, 12), (6, 8), (8, 20), (16, 20)):
        write(parts, first, stop, most=100)
    assert (parts.missing(20), numbers(parts)) == ([], list(range(20)))


def test_a_part_ends_after_its_rows_or_its_seconds_and_where_rows_are_left_out(parts: Parts) -> None:
    writer = PartWriter(parts, rows=8, seconds=1e9)
    assert [writer.write(at, rows(at, at + 4)) for at in (0, 4, 8)] == [False, True, False]
    assert not writer.write(16, rows(16, 20))
    assert parts.done() == [Rows(0, 8), Rows(8, 12)]
    writer.close()
    writer.close()
    assert parts.missing(20) == [Rows(12, 16)]
    assert PartWriter(parts, rows=10**9, seconds=0).write(12, rows(12, 16))
    assert not parts.missing(20)
    assert {path.name for path in parts.folder.iterdir()} == {
        "work.json", *(f"rows-{a:012}-{b:012}-{parts.work()}.arrow" for a, b in ((0, 8), (8, 12), (12, 16), (16, 20)))
    }  # fmt: skip


def test_other_work_begins_without_the_parts_of_the_first(parts: Parts) -> None:
    """Also without those that a process of the first run completes later, since it outlived the run."""
    write(parts, 0, 20)
    outlived = PartWriter(parts)
    outlived.write(8, rows(8, 12))
    parts.begin({"rows": 7})
    outlived.close()
    assert (parts.record(), parts.done(), parts.missing(7)) == ({"rows": 7}, [], [Rows(0, 7)])
    parts.remove()
    assert list(parts.folder.parent.iterdir()) == []
    parts.remove()


def test_a_damaged_part_is_named(parts: Parts) -> None:
    write(parts, 0, 20, most=20)
    (path,) = parts.folder.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=rf"{path.name} cannot be read .*: remove it"):
        numbers(parts)


def test_two_runs_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path / "out.csv")
    lock = parts.lock(print)
    with pytest.raises(InputError, match=r"out\.csv is in use by process \d+ on"):
        locks.acquire(parts.folder / locks.LOCK_NAME, what=str(parts.output), say=print, patience=0)
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", [[Rows(0, 20)], [Rows(4, 8), Rows(12, 19)], [Rows(16, 19)], []])
def test_each_missing_row_is_one_process_s_in_whole_batches(missing: list[Rows]) -> None:
    wanted = [row for stretch in missing for row in range(*stretch)]
    for world_size in (1, 2, 3, 7):
        shares = [share(missing, batch_size=4, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert [row for one in shares for stretch in one for row in range(*stretch)] == wanted
        assert all(stretch.first % 4 == 0 for one in shares for stretch in one)
        sizes = [sum(-(-(stretch.stop - stretch.first) // 4) for stretch in one) for one in shares]
        assert max(sizes) - min(sizes) <= 1
