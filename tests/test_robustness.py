"""A damaged picture, a dead worker, a dead run or a changed shard must end well: said clearly, and nothing lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from conftest import WriteSplit, numbered_picture, numbers_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warm_python import children, run_python

from seresnet_hub.data.loader import Batch, loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe

RECIPE = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, batch_size=12, shuffle_window=9
)


def in_order(batches: Iterable[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.indices[batch.mask].tolist()]


def test_a_damaged_picture_is_left_out_counted_and_named(
    write_split: WriteSplit, caplog: pytest.LogCaptureFixture
) -> None:
    images = [numbered_picture(k) for k in range(40)]
    images[13] = images[13][:40]
    split = open_split(str(write_split([[10], [10, 20]], images=images)), "train")
    batches = loader(split, None, replace(RECIPE, corrupt_share=0.05), workers=2)
    with caplog.at_level(logging.WARNING):
        found = in_order(batches)
    assert sorted(found) == [k for k in range(40) if k != 13]
    assert len(batches.skipped) == 1
    assert "left out: row 13 of split 'train'" in caplog.text
    assert "(row 3 of train-00001-of-00002.parquet)" in caplog.text


def test_too_many_damaged_pictures_stop_the_run_with_their_list(write_split: WriteSplit) -> None:
    images = [numbered_picture(k)[: 40 if k % 3 == 0 else None] for k in range(40)]
    split = open_split(str(write_split([[40]], images=images)), "train")
    with pytest.raises(InputError, match=r"row \d+ .*; row \d+ .*undecodable images, more than 4 of 40"):
        list(loader(split, None, replace(RECIPE, corrupt_share=0.1)))


def broken_at(numbers: Iterable[int], rows: int) -> list[bytes]:
    return [numbered_picture(k)[: 40 if k in set(numbers) else None] for k in range(rows)]


def test_one_broken_file_of_a_small_folder_ends_nothing(write_split: WriteSplit) -> None:
    """0.1 % of 120 images is none, but a few may be left out."""
    split = open_split(str(write_split([[60, 60]], images=broken_at([17], 120))), "train")
    batches = loader(split, None, RECIPE)
    assert sorted(in_order(batches)) == [k for k in range(120) if k != 17]
    assert len(batches.skipped) == 1
    with pytest.raises(InputError, match="row 17 .*no image may be left out here: repair or remove"):
        list(loader(split, None, replace(RECIPE, corrupt_share=0.0)))


def test_how_many_broken_files_are_too_many_is_said_with_the_way_out(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[120]], images=broken_at(range(11), 120))), "train")
    with pytest.raises(InputError, match=r"11 undecodable images, more than 10 of 120: ") as refused:
        list(loader(split, None, RECIPE))
    share = float(str(refused.value).rpartition("may be left out, to ")[2].rstrip(")"))
    assert len(in_order(loader(split, None, replace(RECIPE, corrupt_share=share)))) == 109


@pytest.mark.parametrize("rows", [1, 3, 9, 10, 25, 101])
def test_nothing_trains_on_a_wholly_damaged_data_set(write_split: WriteSplit, rows: int) -> None:
    split = open_split(str(write_split([[rows]], images=broken_at(range(rows), rows))), "train")
    with pytest.raises(InputError, match="undecodable"):
        list(loader(split, None, RECIPE))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_augmentation_ends_the_run_in_its_own_words(
    write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """However many broken pictures may be left out, a whole picture is never taken for one."""
    import timm.data.auto_augment

    def refuses(*_: object, **__: object) -> None:
        raise ValueError("bits must be between or equal to 1 and 8")

    monkeypatch.setattr(timm.data.auto_augment, "NAME_TO_OP", dict.fromkeys(timm.data.auto_augment.NAME_TO_OP, refuses))
    split = open_split(str(write_split([[20, 20]])), "train")
    recipe = replace(RECIPE, auto_augment="rand-m9-mstd0.5", corrupt_share=1.0)
    batches = loader(split, None, recipe, workers=workers)
    said = "the transform RandAugment failed: ValueError: bits must be between or equal to 1 and 8"
    with pytest.raises(InputError, match=rf"^row \d+ of split .*\(\d+.png\): {said}; the picture itself is whole$"):
        list(batches)
    assert not batches.skipped


def test_a_position_is_a_few_integers_and_refuses_changed_shards(write_split: WriteSplit) -> None:
    root = write_split([[10, 10], [20]])
    whole = in_order(loader(str(root), "train", RECIPE, epoch=2))
    first = loader(str(root), "train", RECIPE, epoch=2)
    stopped = iter(first)
    seen = in_order([next(stopped), next(stopped)])
    state = first.state_dict()
    assert all(type(value) is int for value in state.values())
    assert len(json.dumps(state)) < 120
    rest = loader(str(root), "train", RECIPE, epoch=2, workers=2)
    rest.load_state_dict(state)
    assert len(rest) == 2
    assert seen + in_order(rest) == whole
    with pytest.raises(InputError, match="not of this loader: epoch was 2, now 0"):
        loader(str(root), "train", RECIPE).load_state_dict(state)
    write_split([[10, 10], [19]])
    with pytest.raises(InputError, match=r"train-00001-of-00002.parquet \(was [\d,]+ bytes.*now [\d,]+ bytes"):
        loader(str(root), "train", RECIPE, epoch=2).load_state_dict(state)


def test_resuming_reads_only_what_is_left(write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    from seresnet_hub.data import row_reader as module

    split = open_split(str(write_split([[12]] * 24)), "train")
    read: list[int] = []
    real = module.read_unit
    monkeypatch.setattr(module, "read_unit", lambda split, unit, needed: read.append(unit) or real(split, unit, needed))
    recipe = replace(RECIPE, lanes=2, shuffle_window=1)
    whole = in_order(loader(split, None, recipe))
    assert sorted(read) == list(range(24))
    read.clear()
    assert in_order(loader(split, None, recipe, position=20)) == whole[20 * 12 :]
    assert len(read) == 4


def test_repeated_augmentation_shows_an_image_several_times_in_a_batch(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[20, 20], [20]])), "train")
    recipe = replace(RECIPE, repeated_augmentation=3, crop_padding=3)
    batches = list(loader(split, None, recipe, workers=2))
    assert [len(batch.images) for batch in batches] == [12] * 5
    for batch in batches:
        groups = batch.indices.view(4, 3)
        assert (groups == groups[:, :1]).all()
        assert len(groups[:, 0].unique()) == 4
    assert any(not torch.equal(b.images[3 * k], b.images[3 * k + 1]) for b in batches for k in range(4))
    alone = list(loader(split, None, recipe))
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, batches, strict=True))


def test_augmented_pixels_depend_on_neither_workers_nor_a_restart(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[30, 30]])), "train")
    recipe = replace(RECIPE, auto_augment="rand-m9-mstd0.5", color_jitter=0.4, crop_padding=2)
    alone = list(loader(split, None, recipe, seed=4))
    for options in ({"workers": 2}, {"workers": 2, "position": 2}):
        again = list(loader(split, None, recipe, seed=4, **options))
        assert all(torch.equal(a.images, b.images) for a, b in zip(alone[-len(again) :], again, strict=True))


def test_batches_share_a_few_places_in_memory_and_kept_ones_stay(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[120, 120]])), "train")
    batches = loader(split, None, RECIPE, workers=2)
    places = [batch.images.data_ptr() for batch in batches]
    assert len(places) == 20
    assert len(set(places)) <= batches.spec.ahead + 2 < 10
    kept = list(loader(split, None, RECIPE, workers=2))
    assert all(numbers_in(batch.images) == batch.indices.tolist() for batch in kept)


def test_a_killed_worker_ends_the_run_clearly(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[200] * 10])), "train")
    batches = iter(loader(split, None, RECIPE, workers=2))
    next(batches)
    os.kill(children()[0].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(InputError, match="a loader worker died"):
        for _ in batches:
            pass
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "moment",
    [
        "raise SystemExit(seresnet_hub.commands.result_or_error.run(main))",
        pytest.param("main([])", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_while_the_main_process_computes_is_one_line(write_split: WriteSplit, moment: str) -> None:
    """torch raises its error wherever the main process is; scripts turn it into a line."""
    code = (
        "import os, psutil, signal, time, seresnet_hub.commands.result_or_error\nfrom dataclasses import replace\n"
        "from seresnet_hub.data.loader import loader\nfrom seresnet_hub.recipes.recipe import get_recipe\n"
        "recipe = replace(get_recipe('digits'), input_size=8, crop_padding=0, batch_size=12, shuffle_window=9)\n"
        "def main(arguments):\n"
        f"    for batch in loader({str(write_split([[200] * 10]))!r}, 'train', recipe, workers=2):\n"
        "        os.kill(psutil.Process().children()[0].pid, signal.SIGKILL)\n"
        "        time.sleep(30)\n"
        f"{moment}\n"
    )
    start = time.monotonic()
    done = run_python([sys.executable, "-c", code])
    assert time.monotonic() - start < 25
    assert "is killed by signal" in done.stderr
    if "run(" in moment:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("error: DataLoader worker")
        assert "try --set workers=0" in done.stderr
    else:
        assert (done.returncode, "RuntimeError: DataLoader worker" in done.stderr) == (1, True)


def test_a_workers_sigterm_is_the_main_processes_to_answer(write_split: WriteSplit) -> None:
    """A scheduler signals every process; however long the main one takes to save, its workers serve on, and then go."""
    batches = iter(loader(str(write_split([[200] * 10])), "train", RECIPE, workers=2))
    next(batches)
    workers = children()
    assert len(workers) == 2
    for worker in workers * 2:
        worker.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert sum(1 for _ in range(100) if next(batches) is not None) == 100
    assert all(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    batches.close()
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def test_a_lost_picture_leaves_nothing_of_an_earlier_batch(write_split: WriteSplit) -> None:
    """Masked rows do not count in a loss, but batch statistics see them: they must not depend on what was before."""
    images = [numbered_picture(k) for k in range(40)]
    images[39] = images[39][:40]
    split = open_split(str(write_split([[40]], images=images)), "train")
    recipe = replace(RECIPE, batch_size=24, repeated_augmentation=3, corrupt_share=0.1)
    for workers in (0, 1):
        for batch in loader(split, None, recipe, workers=workers):
            lost = batch.images[~batch.mask & (batch.labels == 0)]
            assert not lost.any()
            assert batch.missing in (0, 3)
            assert batch.missing == int((~batch.mask).sum())


def test_a_killed_run_goes_on_where_it_was(write_split: WriteSplit, tmp_path: Path) -> None:
    """kill -9 of the main process: its workers go away, and the saved position continues the same order."""
    root, notes = write_split([[30, 30], [30]]), tmp_path / "notes"
    code = (
        "import json, os, psutil, signal, sys\nfrom dataclasses import replace\n"
        "from seresnet_hub.data.loader import loader\nfrom seresnet_hub.recipes.recipe import get_recipe\n"
        "recipe = replace(get_recipe('digits'), input_size=8, crop_padding=0, batch_size=12, shuffle_window=9)\n"
        f"batches, seen = loader({str(root)!r}, 'train', recipe, workers=2), []\n"
        "for number, batch in enumerate(batches, 1):\n"
        "    seen += batch.indices.tolist()\n"
        "    if number == 3:\n"
        "        workers = [child.pid for child in psutil.Process().children()]\n"
        f"        open({str(notes)!r}, 'w').write(json.dumps([seen, batches.state_dict(), workers]))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_python([sys.executable, "-c", code])
    assert done.returncode == -signal.SIGKILL
    seen, state, workers = json.loads(notes.read_text())
    rest = loader(str(root), "train", RECIPE, workers=1)
    rest.load_state_dict(state)
    assert seen + in_order(rest) == in_order(loader(str(root), "train", RECIPE))
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in workers)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(st.lists(st.integers(1, 9) | st.just(1), min_size=1, max_size=3), min_size=1, max_size=20),
    world_size=st.integers(1, 8), other=st.integers(1, 8), batch_size=st.integers(8, 40), data=st.data(),
)  # fmt: skip
def test_any_shards_and_ranks_give_the_same_batches(
    write_split: WriteSplit, tmp_path: Path, shards: list[list[int]], world_size: int, other: int, batch_size: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    """What is really read and decoded, not only planned: the pictures, before and after a stop, on any ranks."""
    root = write_split(shards, folder=f"case{len(list(tmp_path.iterdir()))}")
    split = open_split(str(root), "train")
    recipe = replace(RECIPE, batch_size=batch_size)

    def pictures(ranks: int, **options: int) -> list[list[int]]:
        parts = [list(loader(split, None, recipe, rank=rank, world_size=ranks, **options)) for rank in range(ranks)]
        return [
            [number for batch in together for number in numbers_in(batch.images[batch.mask])]
            for together in zip(*parts, strict=True)
        ]

    whole = pictures(1)
    assert sorted(number for batch in whole for number in batch) == list(range(split.rows))
    stop = data.draw(st.integers(0, len(whole)))
    assert pictures(world_size) == whole
    assert pictures(other, position=stop) == whole[stop:]


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=20),
    workers=st.integers(1, 4), world_size=st.sampled_from([1, 2, 3, 5]), data=st.data(),
)  # fmt: skip
def test_any_workers_give_the_same_batches(
    write_split: WriteSplit, tmp_path: Path, shards: list[list[int]], workers: int, world_size: int, data: st.DataObject
) -> None:
    root = write_split(shards, folder=f"case{len(list(tmp_path.iterdir()))}")
    split = open_split(str(root), "train")
    whole = [batch.indices[batch.mask].tolist() for batch in loader(split, None, RECIPE)]
    stop = data.draw(st.integers(0, len(whole)))
    parts = [
        [batch.indices[batch.mask].tolist() for batch in loader(
            split, None, RECIPE, rank=rank, world_size=world_size, workers=workers, position=stop)]
        for rank in range(world_size)
    ]  # fmt: skip
    assert [[n for part in together for n in part] for together in zip(*parts, strict=True)] == whole[stop:]


@pytest.mark.slow
def test_memory_stays_flat_over_fifty_epochs(write_split: WriteSplit) -> None:
    images = [numbered_picture(k, size=64) for k in range(600)]
    split = open_split(str(write_split([[100] * 3, [100] * 3], images=images)), "train")
    recipe = replace(RECIPE, input_size=64, batch_size=64)
    held, files = [], []
    for epoch in range(50):
        assert sum(int(batch.mask.sum()) for batch in loader(split, None, recipe, epoch=epoch, workers=2)) == 600
        held.append(psutil.Process().memory_info().rss / 2**20)
        files.append(psutil.Process().num_fds())
    assert held[-1] - held[9] < 20  # MiB
    assert files[-1] <= files[9] + 2
    assert not children()
