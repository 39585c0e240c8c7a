"""Where the memory ends, the batches must become smaller, on all processes, and for no other reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from conftest import WriteSplit
from torch import nn

from seresnet_hub.data.open_split import open_split
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.evaluate import evaluate
from seresnet_hub.evaluation.out_of_memory import is_out_of_memory, with_smaller_batches
from seresnet_hub.inference.run_batches import run_batches

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


class Limited(nn.Module):
    """A model that has room for so many images at a time."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = timm.create_model("seresnet20_cifar", num_classes=10)
        self.num_classes, self.pretrained_cfg = 10, self.inner.pretrained_cfg
        self.most, self.error, self.sizes = most, error, list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error
        answer: torch.Tensor = self.inner(images)
        return answer


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_MESSAGE)])
def test_batches_are_halved_until_they_have_room(
    write_split: WriteSplit, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    split = open_split(str(write_split([[30]], split="test")), "test")
    model = Limited(7, error)
    found = evaluate(model, split, batch_size=24, workers=0)
    plain = evaluate(model.inner, split, batch_size=24, workers=0)
    assert found.batch_size == 6
    assert model.sizes == [24, 12, 6, 6, 6, 6, 6]
    assert (found.seen, found.top1, found.top5) == (30, plain.top1, plain.top5)
    assert found.loss == pytest.approx(plain.loss, rel=1e-6)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 24 images at a time: trying again with 12",
        "out of memory with 12 images at a time: trying again with 6",
    ]
    with pytest.raises(InputError, match="not enough for one image at a time"):
        evaluate(Limited(0, error), split, batch_size=4, workers=0)


def test_batches_of_features_are_halved_too(write_split: WriteSplit) -> None:
    """Where the error has become one that says what the model does not run on."""
    split = open_split(str(write_split([[30]], split="test")), "test")
    model = Limited(7, torch.OutOfMemoryError("CUDA out of memory."))
    rows, size = with_smaller_batches(
        lambda size: sum(len(answers.images) for answers in run_batches(model, split, batch_size=size)), 24
    )
    assert (rows, size) == (30, 6)


def test_the_cpus_own_message_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(InputError("out of memory cards"))


def together(count: int, work: Callable[[int, int], Any]) -> list[Any]:
    """What each of several threads, as processes, gets of `work(rank, batch_size)` from 8 images at a time on."""
    barrier, given, ended = threading.Barrier(count, timeout=20), [None] * count, [None] * count

    def run(rank: int) -> None:
        def gather(value: Any) -> list[Any]:
            given[rank] = value
            barrier.wait()
            everything = list(given)
            barrier.wait()
            return everything

        try:
            ended[rank] = with_smaller_batches(lambda size: work(rank, size), 8, gather=gather)
        except Exception as error:
            ended[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_processes_halve_together() -> None:
    tried: list[tuple[int, int]] = []

    def work(rank: int, size: int) -> int:
        tried.append((rank, size))
        if rank == 1 and size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 10 * rank + size

    assert together(3, work) == [(2, 2), (12, 2), (22, 2)]
    assert sorted(tried) == [(rank, size) for rank in range(3) for size in (2, 4, 8)]


def test_an_error_of_one_process_is_one_on_all() -> None:
    def refuse(rank: int, size: int) -> int:
        if rank == 1:
            raise InputError("a picture is damaged")
        if rank == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return size

    ended = together(3, refuse)
    assert [(type(error), str(error)) for error in ended] == [(InputError, "a picture is damaged")] * 3

    def fail(rank: int, size: int) -> int:
        if rank == 0:
            raise ZeroDivisionError("of its own")
        return size

    ended = together(2, fail)
    assert [(type(error), str(error)) for error in ended] == [
        (ZeroDivisionError, "of its own"), (RuntimeError, "of its own"),
    ]  # fmt: skip
