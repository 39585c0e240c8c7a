"""After 429 no process of the machine asks that host until its time is over, and a person is told, once."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_faults import Status
from hub_server import HubServer
from hub_traffic import Traffic

from seresnet_hub.errors import InputError
from seresnet_hub.hub import shared_pause, signed_addresses
from seresnet_hub.hub.range_requests import fetch_range

CONTENT = bytes(1000)
ADDRESS = "hf://datasets/someone/pictures@main/a.parquet"
TOO_MANY = Status(
    429, {"RateLimit": '"resolvers";r=0;t=290', "RateLimit-Policy": '"fixed window";"resolvers";q=5000;w=300'}
)


class Clock:
    """A clock that only passes where somebody sleeps, or is set."""

    def __init__(self) -> None:
        self.now, self.pauses = 1_800_000_000.0, list[float]()

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    hub.create("dataset", "someone/pictures", {"a.parquet": CONTENT, "b.parquet": CONTENT})
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "own"))
    clock = Clock()
    monkeypatch.setattr(time, "time", clock.time)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    forget()
    return clock


def forget() -> None:
    """Be another process."""
    for known in (shared_pause._ends, shared_pause._waited, signed_addresses._in_this_process):
        known.clear()


def pause_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "own" / "pauses").glob("*.json")
    return file


def test_all_wait_and_are_told_once(
    hub: HubServer, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    hub.fault("HEAD", "/resolve/", TOO_MANY)
    host = hub.url.removeprefix("http://")
    start = clock.now
    assert fetch_range(ADDRESS, 0, 10) == bytes(10)
    assert 291 <= clock.now - start <= 301
    begun, ended = (record.getMessage() for record in caplog.records)
    assert "the Hub answered 429 (its limit is 5000 requests in 300 s): no process of this machine asks" in begun
    assert "for 291 s" in begun
    waited = clock.now - start
    assert f"going on after waiting {waited:.0f} s, {waited:.0f} s in all" in ended
    caplog.clear()
    # A process that knows nothing of it finds the pause; the storage is another host, for which nobody waits.
    assert shared_pause._begin(host, 50.0)
    start = clock.now
    assert fetch_range(ADDRESS, 0, 10) == bytes(10)
    assert clock.now == start
    forget()
    fetch_range(ADDRESS.replace("a.p", "b.p"), 0, 10)
    assert start + 50 <= clock.now <= start + 55
    begun, ended = (record.getMessage() for record in caplog.records)
    assert begun == f"{host} had too many requests: waiting 50 s, as all processes of this machine do"
    assert ended.startswith(f"{host}: going on after waiting 5")
    assert len(hub.asked("HEAD", "/resolve/")) == 3


def test_a_worker_that_finds_a_pause_waits_in_silence(
    hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared_pause._begin(hub.url.removeprefix("http://"), 100.0)
    monkeypatch.setattr(shared_pause.multiprocessing, "parent_process", lambda: "the main process")
    fetch_range(ADDRESS, 0, 10)
    assert sum(clock.pauses) >= 100
    assert not caplog.records


def test_threads_that_wait_together_say_it_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared_pause._begin("a.host", 100.0)
    together = threading.Barrier(3, action=lambda: clock.sleep(120.0))
    monkeypatch.setattr(time, "sleep", lambda _: together.wait(10))
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(shared_pause.within_limits, "https://a.host/b", lambda: "asked") for _ in range(3)]
        assert [one.result() for one in waiting] == ["asked"] * 3
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({}, 15, 17), ({"Retry-After": "7"}, 7, 8), ({"Retry-After": "0"}, 15, 17),
        ({"Retry-After": "999999999"}, 600, 610),
        ({"RateLimit": '"resolvers";r=0;t=999999999'}, 600, 610), ({"RateLimit": '"resolvers";r=7;t=200'}, 15, 17),
        ({"Retry-After": "-5"}, 15, 17), ({"Retry-After": "soon"}, 15, 17),
    ],
)  # fmt: skip
def test_how_long(hub: HubServer, clock: Clock, headers: dict[str, str], least: float, most: float) -> None:
    hub.fault("HEAD", "/resolve/", Status(429, headers))
    fetch_range(ADDRESS, 0, 10)
    assert least <= sum(clock.pauses) <= most


def test_patience_ends(hub: HubServer, clock: Clock) -> None:
    hub.fault("HEAD", "/resolve/", TOO_MANY, times=None)
    with pytest.raises(InputError, match="429 .* for 10 minutes: the account has no requests left: start again later"):
        fetch_range(ADDRESS, 0, 10)
    assert 600 <= sum(clock.pauses) <= 1200


@pytest.mark.parametrize(
    "text", ["", "[", "null", '{"nobody_asks_before": "a"}', '{"nobody_asks_before": 1e300}', "[" * 5000,
             '{"nobody_asks_before": NaN}'],
)  # fmt: skip
def test_a_file_that_makes_no_sense_stops_nobody(hub: HubServer, clock: Clock, tmp_path: Path, text: str) -> None:
    hub.fault("HEAD", "/resolve/", Status(429))
    fetch_range(ADDRESS, 0, 10)
    pause_file(tmp_path).write_text(text)
    forget()
    clock.pauses.clear()
    fetch_range(ADDRESS.replace("a.p", "b.p"), 0, 10)
    assert not clock.pauses


def test_a_clock_that_was_set_back_stops_nobody(hub: HubServer, clock: Clock) -> None:
    hub.fault("HEAD", "/resolve/", TOO_MANY)
    fetch_range(ADDRESS, 0, 10)
    forget()
    clock.pauses.clear()
    clock.now -= 10_000
    fetch_range(ADDRESS.replace("a.p", "b.p"), 0, 10)
    assert not clock.pauses


def test_a_longer_pause_is_not_made_shorter(hub: HubServer, clock: Clock, tmp_path: Path) -> None:
    host = hub.url.removeprefix("http://")
    assert shared_pause._begin(host, 300.0)
    assert not shared_pause._begin(host, 10.0)
    assert json.loads(pause_file(tmp_path).read_text()) == {"nobody_asks_before": clock.now + 300}


def test_without_a_cache_folder(hub: HubServer, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "a file" / "cache"))
    hub.fault("HEAD", "/resolve/", TOO_MANY)
    assert fetch_range(ADDRESS, 0, 10) == bytes(10)
    assert 291 <= sum(clock.pauses) <= 301


READ = """
import logging, os, sys
from seresnet_hub.data.read_retries import reading
from seresnet_hub.hub.range_requests import fetch_range
logging.basicConfig(level=logging.WARNING)
children = []
for number in range(4):
    child = os.fork()
    if not child:
        for k in range(3):
            address = f"hf://datasets/someone/pictures@main/{3 * number + k}.parquet"
            assert reading("read it", lambda: fetch_range(address, 0, 10)) == bytes(10)
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


@pytest.mark.slow
def test_processes_keep_to_a_limit_together(tmp_path: Path) -> None:
    """Twelve files, of which the Hub allows eight in three seconds: all are read, and few requests are refused."""
    with HubServer(tmp_path / "hub", traffic=Traffic(resolver_limit=8, window=3)) as hub:
        hub.create("dataset", "someone/pictures", {f"{k}.parquet": bytes(1000 + k) for k in range(12)})
        environment = {**hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", READ], capture_output=True, text=True, timeout=120, check=False,
            env={**environment, "SERESNET_HUB_CACHE": str(tmp_path / "own")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        refused = [one for one in hub.asked("HEAD", "/resolve/") if one.status == 429]
        pauses = done.stderr.count("no process of this machine asks it for")
        # At most one of each process is on its way when the first is refused.
        assert 1 <= pauses <= len(refused) <= 4 * pauses
        assert len(hub.asked("HEAD", "/resolve/")) == 12 + len(refused)
