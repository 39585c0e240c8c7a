"""A range of a remote file costs one request to its storage, and is exactly the range or an error."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from hub_faults import Action, Endless, Garble, Halve, LoseAnswer, Status, Truncate
from hub_server import EXPIRED_TOKEN, READ_TOKEN, HubServer
from huggingface_hub import constants

from seresnet_hub.data import read_retries
from seresnet_hub.data.read_retries import reading
from seresnet_hub.errors import InputError
from seresnet_hub.hub import signed_addresses
from seresnet_hub.hub.range_requests import fetch_range

REPO = "someone/pictures"
CONTENT = bytes(range(256)) * 1000
NAME = "data/train 1.parquet"
STORED = r"^/cdn/"
RESOLVED = r"/resolve/"


@pytest.fixture(autouse=True)
def _new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "own cache"))
    forget()


def forget() -> None:
    """Be another process."""
    signed_addresses._in_this_process.clear()


@pytest.fixture
def file(hub: HubServer) -> str:
    commit = hub.create("dataset", REPO, {NAME: CONTENT, "labels.csv": b"a,b\n" * 10}, private=True)
    return f"hf://datasets/{REPO}@{commit}/{NAME}"


def resolved(hub: HubServer) -> int:
    return len([one for method in ("HEAD", "GET") for one in hub.asked(method, RESOLVED)])


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "own cache" / "signed_addresses").glob("*.json"))


def test_the_resolver_is_asked_once_a_file_and_the_storage_once_a_range(hub: HubServer, file: str) -> None:
    for start, stop in ((0, 1), (1000, 200_000), (255_999, 256_000), (0, 256_000)):
        assert fetch_range(file, start, stop) == CONTENT[start:stop]
        forget()  # a new process finds the address in the cache folder
    stored = hub.asked("GET", STORED)
    assert [one.range for one in stored] == [
        "bytes=0-0", "bytes=1000-199999", "bytes=255999-255999", "bytes=0-255999",
    ]  # fmt: skip
    assert sum(one.sent for one in stored) == 1 + 199_000 + 1 + 256_000
    assert resolved(hub) == 1
    assert not any(one.authorized for one in stored)


def test_a_file_that_the_hub_sends_itself(hub: HubServer, file: str) -> None:
    small = file.replace(NAME, "labels.csv")
    assert [fetch_range(small, k, k + 4) for k in (0, 4)] == [b"a,b\n"] * 2
    assert resolved(hub) == 3
    assert not hub.asked("GET", STORED)


def test_the_kept_address_is_its_owners_alone(hub: HubServer, file: str, tmp_path: Path) -> None:
    fetch_range(file, 0, 10)
    (kept,) = kept_files(tmp_path)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert json.loads(kept.read_text())["location"].startswith(hub.cdn_url)
    kept.chmod(0o666)  # others may have written it
    forget()
    fetch_range(file, 0, 10)
    assert resolved(hub) == 2


@pytest.mark.parametrize("damage", ["", "[", '{"location": "http://127.0.0.1:1/a"}', "null", "[" * 5000])
def test_a_damaged_record_is_made_anew(hub: HubServer, file: str, tmp_path: Path, damage: str) -> None:
    fetch_range(file, 0, 10)
    kept_files(tmp_path)[0].write_text(damage)
    forget()
    assert fetch_range(file, 5, 10) == CONTENT[5:10]
    assert resolved(hub) == 2


@pytest.mark.parametrize("until", [0.0, 4e9, float("nan")])
def test_an_address_is_kept_for_a_limited_time(hub: HubServer, file: str, tmp_path: Path, until: float) -> None:
    fetch_range(file, 0, 10)
    (kept,) = kept_files(tmp_path)
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "until": until}))
    forget()
    fetch_range(file, 0, 10)
    assert resolved(hub) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_expired_address_is_resolved_anew_once(hub: HubServer, file: str, status: int) -> None:
    fetch_range(file, 0, 10)
    hub.fault("GET", STORED, Status(status))
    assert fetch_range(file, 10, 20) == CONTENT[10:20]
    assert (resolved(hub), len(hub.asked("GET", STORED))) == (2, 3)
    assert fetch_range(file, 20, 30) == CONTENT[20:30]
    assert resolved(hub) == 2


def test_addresses_that_serve_no_more(hub: HubServer, file: str) -> None:
    for k in range(3):
        assert fetch_range(file, k, 20) == CONTENT[k:20]
        assert fetch_range(file, k, 30) == CONTENT[k:30]
        hub.traffic.revoke()
    assert resolved(hub) == 3
    assert [one.status for one in hub.asked("GET", STORED)] == [206, 206, 403, 206, 206, 403, 206, 206]


def test_a_storage_that_refuses_everything_is_named(hub: HubServer, file: str, pauses: list[float]) -> None:
    hub.fault("GET", STORED, Status(403), times=None)
    with pytest.raises(InputError, match=r"train 1.parquet, bytes 0 to 10: localhost:\d+ refuses \(403\)"):
        reading("read it", lambda: fetch_range(file, 0, 10))
    assert (resolved(hub), pauses) == (3, [])


def test_a_storage_that_refuses_kept_addresses_is_asked_through_the_hub(hub: HubServer, file: str) -> None:
    hub.fault("GET", STORED, Status(403), times=2)
    assert fetch_range(file, 0, 10) == CONTENT[:10]
    assert not any(one.authorized for one in hub.asked("GET", STORED))


WHOLE = Status(200, body=["the whole file"])
WRONG: list[Action] = [WHOLE, Garble(b"0123456789"), Halve(), Truncate(3), LoseAnswer(), Endless()]
WRONG += [Status(206, {"Content-Range": given}, body=11111111) for given in ("bytes 1-10/256000", "", "items 0-9/9")]
WRONG += [Status(206, {"Content-Range": "bytes 0-9/256000", "Content-Encoding": "gzip"}, body=11111111), Status(503)]


@pytest.mark.parametrize("action", WRONG, ids=repr)
def test_what_is_not_the_range_is_no_data(hub: HubServer, file: str, pauses: list[float], action: Action) -> None:
    fault = hub.fault("GET", STORED, action)
    with pytest.raises(InputError, match="train 1.parquet, bytes 0 to 10: "):
        fetch_range(file, 0, 10)
    fault.times = 3
    assert reading("read it", lambda: fetch_range(file, 0, 10)) == CONTENT[:10]
    assert len(pauses) == 2
    fault.times = None
    with pytest.raises(InputError, match="cannot read it: .*train 1.parquet, bytes 0 to 10: "):
        reading("read it", lambda: fetch_range(file, 0, 10))
    assert len(pauses) == 2 + read_retries.ATTEMPTS - 1


def test_no_storage_at_all(hub: HubServer, file: str, pauses: list[float], tmp_path: Path) -> None:
    fetch_range(file, 0, 10)
    (kept,) = kept_files(tmp_path)
    kept.write_text(kept.read_text().replace(hub.cdn_url, "http://localhost:9"))
    forget()
    with pytest.raises(InputError, match="bytes 0 to 10: .*refused"):
        reading("read it", lambda: fetch_range(file, 0, 10))
    assert len(pauses) == read_retries.ATTEMPTS - 1


def test_who_may_not_read_is_told_at_once(
    hub: HubServer, file: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    fetch_range(file, 0, 10)
    hub.create("dataset", "someone/gated", {NAME: CONTENT}, gated=True)
    gated = f"hf://datasets/someone/gated@main/{NAME}"
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(InputError, match="access to it must be asked for"):
        reading("read it", lambda: fetch_range(gated, 0, 10))
    monkeypatch.setenv("HF_TOKEN", EXPIRED_TOKEN)  # what was kept is another token's
    with pytest.raises(InputError, match="your token"):
        reading("read it", lambda: fetch_range(file, 0, 10))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        reading("read it", lambda: fetch_range(file, 0, 10))
    assert not pauses


@pytest.mark.parametrize("revision", ["main", "refs%2Fpr%2F1", "refs/pr/1"])
def test_revisions(hub: HubServer, file: str, revision: str) -> None:
    hub.repositories["dataset", REPO].refs["refs/pr/1"] = hub.refs(REPO, "dataset")["refs/heads/main"]
    assert fetch_range(f"hf://datasets/{REPO}@{revision}/{NAME}", 3, 5) == CONTENT[3:5]


FORKED = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import seresnet_hub_command  # as in a command, so that torch is not loaded
from huggingface_hub.utils import get_session
from seresnet_hub.hub.range_requests import fetch_range
address, content = sys.argv[1], bytes(range(256)) * 1000
before = get_session()
get_session().get(os.environ["HF_ENDPOINT"] + "/api/whoami-v2")  # so that a connection is open

def right(start):
    return fetch_range(address, start, start + 1000) == content[start : start + 1000]

children = []
for number in range(4):
    child = os.fork()
    if not child:
        mine = get_session() is not before
        with ThreadPoolExecutor(3) as pool:
            mine &= all(pool.map(right, range(number, 250_000, 5000)))
        os._exit(0 if mine else 1)
    children.append(child)
assert all(map(right, range(9, 250_000, 5000)))
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


def test_forked_processes_and_threads_read_side_by_side(hub: HubServer, file: str, tmp_path: Path) -> None:
    """They ask the resolver once; on a connection that two processes share they would take each other's answers."""
    environment = {**hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment["SERESNET_HUB_CACHE"] = os.environ["SERESNET_HUB_CACHE"]
    done = subprocess.run(
        [sys.executable, "-c", FORKED, file], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert resolved(hub) == 1


def test_connections_stay_open(hub: HubServer, file: str) -> None:
    fetch_range(file, 0, 1)
    for _ in range(5):
        fetch_range(file, 0, 1000)
    assert hub.connections <= 2


def test_without_a_cache_folder(hub: HubServer, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "a file" / "cache"))
    assert [fetch_range(file, k, 10) for k in (0, 5)] == [CONTENT[:10], CONTENT[5:10]]
    assert resolved(hub) == 1


def test_addresses_that_are_not_the_hubs(tmp_path: Path, pauses: list[float]) -> None:
    fsspec.filesystem("memory").pipe("/ranges/a", CONTENT)
    assert fetch_range("memory://ranges/a", 7, 300) == CONTENT[7:300]
    with pytest.raises(InputError, match="memory://ranges/a, bytes 255,990 to 256,010: it gave 10 bytes"):
        fetch_range("memory://ranges/a", 255_990, 256_010)
    with pytest.raises(InputError, match="memory://ranges/b"):
        fetch_range("memory://ranges/b", 0, 10)


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (5, 4), (-1, 4)])
def test_no_range(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="no range of bytes"):
        fetch_range("memory://ranges/a", start, stop)
