"""The making of a stranger's network must end within its limits, and its watch must never fire outside its block."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn.modules import module

from seresnet_hub.errors import InputError
from seresnet_hub.models import build_limits
from seresnet_hub.models.build_limits import ExcessError, made_within

WIDE = {"parameters": 1000, "values": 10**6, "what": "x"}


def test_what_is_within_the_limits_is_made() -> None:
    assert made_within(lambda: nn.Linear(100, 100), **WIDE).weight.numel() == 10_000
    nn.Linear(2000, 2000)  # outside, nothing counts


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_layers_and_values_are_counted(device: str) -> None:
    with pytest.raises(ExcessError, match="x has far more layers"):
        made_within(
            lambda: nn.ModuleList(nn.Linear(1, 1, device=device) for _ in range(100)), **{**WIDE, "parameters": 10}
        )
    with pytest.raises(ExcessError, match="x has far more values"):
        made_within(lambda: nn.Linear(100, 100, device=device), **{**WIDE, "values": 1000})


def test_constants_are_counted() -> None:
    with pytest.raises(ExcessError, match="x has far more constants"):
        made_within(lambda: nn.Module().register_buffer("positions", torch.empty(2**27, device="meta")), **WIDE)


def test_other_threads_do_not_count() -> None:
    def make() -> None:
        other = threading.Thread(target=lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(100)))
        other.start()
        other.join()
        nn.Linear(1, 1)

    made_within(make, **{**WIDE, "parameters": 2})


def test_a_loop_that_never_ends_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_limits, "BUILD_SECONDS", 0.3)

    def loop() -> None:
        while True:
            with suppress(Exception):  # as libraries have it
                sum(range(1000))

    start = time.thread_time()
    with pytest.raises(ExcessError, match="x takes more than 0 seconds to make"):
        made_within(loop, **WIDE)
    assert time.thread_time() - start < 10


def test_only_the_processors_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_limits, "BUILD_SECONDS", 0.3)
    made_within(lambda: time.sleep(1.0), **WIDE)


def test_the_watch_never_fires_outside_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks end just when their time does."""
    monkeypatch.setattr(build_limits, "BUILD_SECONDS", 0.0)

    def busy(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    fired, threads, hooks = 0, threading.active_count(), len(module._global_parameter_registration_hooks)
    for number in range(12):
        try:
            made_within(lambda ends=0.19 + 0.002 * number: busy(ends), **WIDE)
        except InputError:
            fired += 1
        for _ in range(2000):
            sum(range(10))
    assert 0 <= fired <= 12
    assert threading.active_count() <= threads
    assert len(module._global_parameter_registration_hooks) == hooks
