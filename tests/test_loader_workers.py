"""Workers live through epochs and evaluations, have the next ones' first batches ready, and change nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import WriteSplit, numbered_picture
from warm_python import children

from seresnet_hub.data import loader_workers as module
from seresnet_hub.data import row_reader, units, worker, worker_pool
from seresnet_hub.data.loader import Batch, Loader, evaluation_spec, training_spec
from seresnet_hub.data.loader_spec import LoaderSpec
from seresnet_hub.data.loader_workers import LoaderWorkers, Pass
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.transforms import evaluation_transform
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import loop
from seresnet_hub.training import train as training
from seresnet_hub.training.checkpoint import latest_checkpoint

RECIPE = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=2, horizontal_flip=0.5, batch_size=12, shuffle_window=9
)
LARGER = evaluation_transform(input_size=(3, 16, 16), interpolation="bilinear", crop_pct=1.0)


def specs_of(root: Path, *, workers: int = 2, lanes: int = 24, **options: Any) -> tuple[LoaderSpec, LoaderSpec]:
    """What a run reads: an epoch of the split `train`, and an evaluation of `validation` in larger pictures."""
    train, validation = (open_split(str(root), name) for name in ("train", "validation"))
    evaluation = evaluation_spec(
        validation, LARGER, input_size=(16, 16), batch_size=8, num_classes=10, workers=workers, lanes=lanes
    )
    return training_spec(train, replace(RECIPE, **options), workers=workers, seed=5), evaluation


@pytest.fixture
def root(write_split: WriteSplit) -> Path:
    """60 training images (5 steps an epoch) and 20 validation images (3 batches)."""
    write_split([[20, 10], [30]])
    return write_split([[20]], split="validation")


def pixels(batches: Iterable[Batch]) -> list[tuple[list[int], list[int], torch.Tensor]]:
    return [(batch.indices.tolist(), batch.labels.tolist(), batch.images.clone()) for batch in batches]


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    assert all(torch.equal(one[2], other[2]) for one, other in zip(found, expected, strict=True))


def alone(what: Pass) -> list[Any]:
    """The batches of a pass from workers of its own, as many as it says."""
    return pixels(Loader(what.spec, what.start))


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Have workers note the batches that they decoded and the units that they read; the fixture returns the notes."""
    notes = tmp_path / "notes"
    notes.touch()

    def note(line: str) -> None:
        file = os.open(notes, os.O_WRONLY | os.O_APPEND)
        os.write(file, f"{line}\n".encode())
        os.close(file)

    decoded, read = worker.RowDecoder._decoded, row_reader.read_unit

    def and_decoded(self: Any, spec: LoaderSpec, request: worker.Request, rows: Any) -> Any:
        answer = decoded(self, spec, request, rows)
        note(f"decoded batch {request.batch} of {spec.split.name} {request.current.epoch}, reader {request.reader}")
        return answer

    def and_read(split: Any, unit: int, *more: Any) -> Any:
        note(f"read unit {unit} of {split.name}")
        return read(split, unit, *more)

    monkeypatch.setattr(worker.RowDecoder, "_decoded", and_decoded)
    monkeypatch.setattr(row_reader, "read_unit", and_read)
    return lambda: notes.read_text().splitlines()


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("announced", [True, False])
def test_passes_give_the_batches_that_loaders_of_their_own_give(root: Path, workers: int, announced: bool) -> None:
    train, evaluation = specs_of(root, workers=workers)
    passes = [Pass(train, 2), Pass(evaluation), Pass(evaluation), *(Pass(train.of_epoch(k)) for k in (1, 2))]
    expected = [alone(one) for one in passes]
    assert [len(batches) for batches in expected] == [3, 3, 3, 5, 5]
    processes, places = set(), set()
    with LoaderWorkers(train, evaluation) as running:
        if announced:
            running.announce(iter(passes))
        for one, its_batches in zip(passes, expected, strict=True):
            found = []
            for batch in Loader(one.spec, one.start, workers=running):
                places.add(batch.images.data_ptr())
                found += pixels([batch])
            del batch
            assert_equal(found, its_batches)
            processes |= {child.pid for child in children()}
    assert len(processes) == workers
    if workers:
        assert (
            len(places) <= max(train.ahead, evaluation.ahead) + 2
        )  # in shared memory, whatever was prepared and dropped
    assert psutil.wait_procs(children(), timeout=20)[1] == []


def test_a_run_starts_its_workers_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs, and two evaluations after each; the same bits as without workers."""
    started, start_worker = tmp_path / "started", worker_pool._start_worker

    def noted_start(shared: Any, number: int) -> None:
        (tmp_path / "started" / str(os.getpid())).touch()
        start_worker(shared, number)

    started.mkdir()
    monkeypatch.setattr(worker_pool, "_start_worker", noted_start)
    monkeypatch.setattr(loop, "save_run", lambda *_: None)  # it draws curves, which takes longer than all else
    recipe = replace(RECIPE, epochs=2, workers=2, ema_decay=0.5)
    training.train(recipe, data=str(root), output=tmp_path / "two")
    assert len(list(started.iterdir())) == 2
    assert children() == []
    training.train(replace(recipe, workers=0), data=str(root), output=tmp_path / "none")
    assert len(list(started.iterdir())) == 2
    two, none = (latest_checkpoint(tmp_path / name)[0] for name in ("two", "none"))
    assert two["history"] == none["history"]
    for kind in ("model", "average"):
        assert all(torch.equal(two[kind][name], tensor) for name, tensor in none[kind].items())


def test_what_comes_next_is_decoded_before_anyone_asks_for_it(root: Path, noted: Callable[[], list[str]]) -> None:
    """While the last batch of a pass is in use, the first of the next one are made, by each of the workers."""
    train, evaluation = specs_of(root)
    after = {"train 0": "validation 0", "validation 0": "train 1"}
    with LoaderWorkers(train, evaluation) as running:
        running.announce([Pass(train), Pass(evaluation), Pass(train.of_epoch(1))])
        for spec, (now, then) in zip((train, evaluation), after.items(), strict=True):
            batches = Loader(spec, workers=running)
            stream = iter(batches)
            for _ in range(spec.plan.steps):
                next(stream)
            wanted = {f"decoded batch {batch} of {then}, reader {reader}" for batch in (0, 1) for reader in (0, 1)}
            wait_until(lambda wanted=wanted: wanted <= set(noted()), f"nothing of {then} is there at the end of {now}")  # type: ignore[misc]
            assert batches.state_dict()["batch"] == spec.plan.steps  # handed out, not prepared
            assert then == "train 1" or not any("train 1" in line for line in noted())
            assert list(stream) == []


def test_all_workers_are_busy_although_a_batch_has_fewer_rows(root: Path, noted: Callable[[], list[str]]) -> None:
    """With a row a batch and five workers, all five work while the first batch is in use."""
    evaluation = evaluation_spec(
        open_split(str(root), "validation"), LARGER, input_size=(16, 16), batch_size=1, num_classes=10, workers=5
    )
    stream = iter(Loader(evaluation))
    next(stream)
    with_rows = {
        f"decoded batch {batch} of validation 0, reader {reader}" for batch in range(6) for reader in range(5)
        if len(range(*evaluation.plan.places(batch, evaluation.reader(reader))))
    }  # fmt: skip
    assert {line[-1] for line in with_rows} == set("01234")
    wait_until(lambda: with_rows <= set(noted()), "some workers wait for the first batch to be used")
    assert sum(1 for _ in stream) == 19


@pytest.mark.parametrize(
    ("batch_size", "workers", "size", "batches"),
    [
        *((256, 8, 224, 2), (64, 4, 224, 2), (32, 4, 224, 4), (32, 8, 224, 8), (32, 16, 224, 13)),
        *((4, 16, 8, 32), (1, 1, 8, 32), (32, 16, 8, 16), (32, 16, 1024, 2)),
    ],
)  # fmt: skip
def test_batches_ahead_give_each_worker_images_and_little_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, workers: int, size: int, batches: int
) -> None:
    """32 images of each worker, at least 2 batches, at most 32, and beyond 2 no more than 64 MiB hold."""
    reserved: list[int] = []

    class Noted(module.SharedBatches):
        def __init__(self, slots: int, shape: tuple[int, ...]) -> None:
            reserved.append(slots)
            raise InputError("no more is needed")

    monkeypatch.setattr(module, "SharedBatches", Noted)
    split = open_split(str(root), "train")
    plan = replace(training_spec(split, RECIPE).plan, unit_rows=(1000,), batch_size=batch_size)
    spec = replace(training_spec(split, RECIPE, workers=workers), plan=plan, size=(size, size))
    with pytest.raises(InputError, match="no more is needed"):
        next(iter(Loader(spec)))
    assert reserved == [batches + 2]


def test_the_first_units_of_the_next_pass_are_read_when_no_unit_of_this_one_is_left(
    write_split: WriteSplit, noted: Callable[[], list[str]]
) -> None:
    """A pass of ten batches whose units are read at once: at its second, those of the next one are read."""
    write_split([[60, 60]])
    train, evaluation = specs_of(write_split([[10, 10]], split="validation"), lanes=2)
    train = replace(train, plan=replace(train.plan, lanes=2))
    with LoaderWorkers(train, evaluation) as running:
        running.announce([Pass(train), Pass(evaluation)])
        stream = iter(Loader(train, workers=running))
        next(stream)
        wait_until(
            lambda: {"read unit 0 of validation", "read unit 1 of validation"} <= set(noted()),
            "no unit of the evaluation is read before the epoch ends",
        )
        assert not any("decoded" in line and "validation" in line for line in noted())
        assert sum(1 for _ in stream) == 9
        assert_equal(pixels(Loader(evaluation, workers=running)), alone(Pass(evaluation)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_is_left_or_interrupted_spoils_no_other(root: Path, workers: int) -> None:
    train, evaluation = specs_of(root, workers=workers)
    expected = alone(Pass(train.of_epoch(3)))
    with LoaderWorkers(train, evaluation) as running:
        running.announce([Pass(train), Pass(train.of_epoch(1)), Pass(evaluation)])
        next(iter(Loader(train, workers=running)))  # left half-read, and another comes than was announced
        epoch = iter(Loader(train.of_epoch(3), workers=running))
        found = pixels([next(epoch), next(epoch)])
        assert_equal(pixels(Loader(evaluation, workers=running)), alone(Pass(evaluation)))
        found += pixels([next(epoch)])
        assert_equal(pixels(Loader(evaluation, workers=running)), alone(Pass(evaluation)))
        assert_equal(found + pixels(epoch), expected)
        assert len(children()) == workers


def test_passes_may_have_more_or_fewer_readers(root: Path) -> None:
    """Where evaluations ask for one worker, the other one has nothing to do in them."""
    train, evaluation = specs_of(root)
    evaluation = replace(evaluation, workers=1)
    assert (train.readers, evaluation.readers) == (2, 1)
    passes = [Pass(train), Pass(evaluation), Pass(train.of_epoch(1)), Pass(evaluation)]
    with LoaderWorkers(train, evaluation) as running:
        running.announce(passes)
        for one in passes:
            assert_equal(pixels(Loader(one.spec, workers=running)), alone(one))


def test_a_spec_that_the_workers_do_not_know_starts_new_ones(root: Path) -> None:
    train, evaluation = specs_of(root)
    with LoaderWorkers(train) as running:
        running.announce([Pass(train), Pass(evaluation), Pass(train.of_epoch(1))])
        assert_equal(pixels(Loader(train, workers=running)), alone(Pass(train)))
        first = {child.pid for child in children()}
        assert_equal(pixels(Loader(evaluation, workers=running)), alone(Pass(evaluation)))
        second = {child.pid for child in children()}
        assert not first & second
        assert_equal(pixels(Loader(train, workers=running)), alone(Pass(train)))
        assert {child.pid for child in children()} == second


def test_an_error_in_one_pass_is_its_own(write_split: WriteSplit) -> None:
    """A broken picture beyond what may be left out ends the evaluation; training could go on."""
    write_split([[30]])
    broken = [numbered_picture(k)[: 40 if k == 17 else None] for k in range(20)]
    train, evaluation = specs_of(write_split([[20]], split="validation", images=broken))
    with LoaderWorkers(train, evaluation) as running:
        running.announce([Pass(train), Pass(evaluation), Pass(train.of_epoch(1))])
        assert_equal(pixels(Loader(train, workers=running)), alone(Pass(train)))
        with pytest.raises(InputError, match="row 17 of split 'validation'"):
            list(Loader(evaluation, workers=running))
        assert_equal(pixels(Loader(train.of_epoch(1), workers=running)), alone(Pass(train.of_epoch(1))))


def test_after_a_killed_worker_the_next_pass_has_new_ones(root: Path) -> None:
    train, evaluation = specs_of(root)
    with LoaderWorkers(train, evaluation) as running:
        stream = iter(Loader(train, workers=running))
        next(stream)
        killed = children()
        killed[1].send_signal(signal.SIGKILL)
        with pytest.raises((InputError, RuntimeError), match="DataLoader worker"):  # wherever this process is
            list(chain.from_iterable(Loader(train, workers=running) for _ in range(200)))
        assert_equal(pixels(Loader(train, workers=running)), alone(Pass(train)))
        assert not {child.pid for child in killed} & {child.pid for child in children()}
    assert psutil.wait_procs(killed, timeout=20)[1] == []


@pytest.mark.parametrize("announced", [True, False])
def test_shards_that_change_between_epochs_are_named(root: Path, announced: bool) -> None:
    train, evaluation = specs_of(root)
    shard = root / "train-00001-of-00002.parquet"
    with LoaderWorkers(train, evaluation) as running:
        if announced:
            running.announce([Pass(train), Pass(evaluation), Pass(train.of_epoch(1))])
        list(Loader(train, workers=running))
        shard.write_bytes(shard.read_bytes() + b"more")
        list(Loader(evaluation, workers=running))
        with pytest.raises(InputError, match=r"shards of .* have changed.*train-00001-of-00002.parquet \(was "):
            next(iter(Loader(train.of_epoch(1), workers=running)))


class SlowLook:
    """The looks at shards, of which all after the first wait until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number, self.may_go_on, self._look = 0, threading.Event(), units.shard_states
        monkeypatch.setattr(units, "shard_states", self)

    def __call__(self, files: Any) -> Any:
        self.number += 1
        if self.number == 2:
            assert self.may_go_on.wait(60), "nobody let it go on"
        return self._look(files)


def test_nobody_waits_for_a_slow_look_at_the_shards(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the Hub answers late, batches are handed out meanwhile, but not the last one."""
    train, _ = specs_of(root)
    look = SlowLook(monkeypatch)
    monkeypatch.setattr(module, "LOOK_PATIENCE", 0.1)
    with LoaderWorkers(train) as running:
        running.announce([Pass(train), Pass(train.of_epoch(1))])
        list(Loader(train, workers=running))
        stream = iter(Loader(train.of_epoch(1), workers=running))
        for _ in range(train.plan.steps - 1):
            next(stream)
        assert not look.may_go_on.is_set()
        look.may_go_on.set()
        assert len(list(stream)) == 1
        assert look.number == 2


def test_the_first_batch_waits_for_a_look_that_is_soon_done(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no step is made with shards that have changed."""
    train, _ = specs_of(root)
    look, shard = SlowLook(monkeypatch), root / "train-00001-of-00002.parquet"
    monkeypatch.setattr(module, "LOOK_PATIENCE", 60)
    with LoaderWorkers(train) as running:
        running.announce([Pass(train), Pass(train.of_epoch(1))])
        list(Loader(train, workers=running))
        shard.write_bytes(shard.read_bytes() + b"more")
        threading.Timer(0.5, look.may_go_on.set).start()
        with pytest.raises(InputError, match="have changed"):
            next(iter(Loader(train.of_epoch(1), workers=running)))


def test_no_worker_is_forked_during_a_look(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold locks, of a connection for example, which the worker would have for ever."""
    train, evaluation = specs_of(root)
    look, looking = SlowLook(monkeypatch), []

    def noted_pool(*options: Any) -> Any:
        looking.append([thread for thread in threading.enumerate() if thread.name == "shards"])
        return worker_pool.WorkerPool(*options)

    monkeypatch.setattr(module, "WorkerPool", noted_pool)
    with LoaderWorkers(train) as running:
        running.announce([Pass(train), Pass(train.of_epoch(1))])
        list(Loader(train, workers=running))
        wait_until(lambda: look.number == 2, "the next epoch's shards are not looked at")
        threading.Timer(0.5, look.may_go_on.set).start()
        assert len(list(Loader(evaluation, workers=running))) == 3
    assert looking == [[], []]
