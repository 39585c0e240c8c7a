"""What is fetched is small enough, has a plain name and the bytes that the Hub announced; the cache serves in need."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_faults import Drop, FlipByte, Garble, Pause, Status
from hub_fixtures import REPO, outputs, write_folder
from hub_http import as_json
from hub_server import Handler, HubServer
from huggingface_hub import constants

from seresnet_hub.errors import InputError
from seresnet_hub.hub import client, download_limits, transport
from seresnet_hub.hub.download_limits import LARGEST_TOTAL, RemoteFile, check_listing
from seresnet_hub.hub.snapshots import take_snapshot
from seresnet_hub.models.load import load
from seresnet_hub.publishing.verify import verify

FAILING = [
    ("GET", "/api/models/"), ("GET", "/tree/"), ("HEAD", "/resolve/.*config.json"), ("HEAD", "/resolve/.*safetensors"),
]  # fmt: skip


@pytest.mark.parametrize("action", [Status(500), Status(503), Status(429), Drop(), Garble()], ids=str)
@pytest.mark.parametrize(("method", "path"), FAILING)
def test_the_cache_serves_at_once_while_the_hub_fails(
    hub: HubServer, published: torch.nn.Module, pauses: list[float], capsys: pytest.CaptureFixture[str],
    action: Any, method: str, path: str,
) -> None:  # fmt: skip
    load(REPO)
    capsys.readouterr()
    hub.fault(method, path, action, times=None)
    fetched = len(hub.asked("GET", "/cdn/"))
    assert torch.equal(outputs(load(REPO)), outputs(published))
    assert verify(REPO)["ok"]
    assert len(hub.asked("GET", "/cdn/")) == fetched
    said = capsys.readouterr().err
    if method == "GET":  # the client itself takes what it has where only a file's headers cannot be had
        assert f"using what is in the cache, commit {hub.history(REPO)[0].oid[:12]}" in said
        reason = f"the Hub answered {action.status}" if isinstance(action, Status) else "the Hub is out of reach"
        assert f"{REPO}: {reason}" in said
        assert "only the files in the cache are looked at" in said


def test_the_cache_serves_nothing_damaged(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(REPO)
    hub.fault("GET", "/api/models/", Status(500), times=None)
    hub.fault("HEAD", "/resolve/", Status(500), times=None)
    (blob,) = (tmp_path / "cache").rglob(hub.files(REPO)["model.safetensors"].sha256)
    damaged = bytearray(blob.read_bytes())
    damaged[-100] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(InputError, match="fetching model.safetensors of someone/model: the Hub answered 500"):
        load(REPO)
    assert not verify(REPO)["ok"]
    assert "is damaged: fetching it again" in capsys.readouterr().err


def test_a_refusal_is_not_covered_by_the_cache(hub: HubServer, published: torch.nn.Module) -> None:
    load(REPO)
    hub.fault("GET", "/api/models/", Status(403), times=None)
    with pytest.raises(InputError, match="your token may not do this"):
        load(REPO)


def test_a_hub_that_hangs_leaves_the_cache(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(REPO)
    for name in ("CONNECT", "ANSWER"):
        monkeypatch.setattr(transport, name, 0.1)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.1)
    hub.fault("GET", "/api/models/", Pause("before"), times=None)
    assert torch.equal(outputs(load(REPO)), outputs(published))


def test_any_one_file_can_be_fetched_and_is_compared(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(REPO, {"a/checkpoint.pth": b"a checkpoint" * 1000})
    hub.fault("GET", "/cdn/", FlipByte(-5))
    snapshot = take_snapshot(REPO, None, names=("a/checkpoint.pth",))
    assert snapshot.paths["a/checkpoint.pth"].read_bytes() == b"a checkpoint" * 1000
    hub.fault("GET", "/api/models/", Status(500), times=None)
    assert take_snapshot(REPO, None, names=("a/checkpoint.pth",), check=False).wrong() == []


# --- listings ---------------------------------------------------------------------------------------------------------


def list_config_as(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Hub's listing say that `config.json` has so many bytes."""
    entries = Handler.entries

    def changed(*arguments: Any) -> dict[str, dict[str, Any]]:
        found = entries(*arguments)
        found["config.json"]["size"] = size
        return found

    monkeypatch.setattr(Handler, "entries", staticmethod(changed))


@pytest.mark.parametrize("size", [10_000_001, 10 * 2**30])
def test_a_config_of_any_size_is_not_fetched(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10_000_001)
    hub.commit(REPO, {"config.json": tmp_path / "large"})
    list_config_as(size, monkeypatch)
    for work in (load, verify):
        with pytest.raises(InputError, match=rf"'config.json' has {size:,} bytes, more than the 10,000,000"):
            work(REPO)
    assert hub.asked("GET", "/resolve/") == hub.asked("GET", "/cdn/") == []


def test_a_size_that_is_a_lie_is_cut_off(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing says 5 bytes; no more than a page of an error is taken."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(9_000_000)
    hub.commit(REPO, {"config.json": tmp_path / "large"})
    list_config_as(5, monkeypatch)
    with pytest.raises(InputError, match="the Hub sends more than the 1,000,000 bytes it may"):
        load(REPO)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) < 2_000_000


NAMES = [
    "../out.txt",
    "a/../../out.txt",
    "/tmp/out.txt",
    "a//b",
    "./a",
    "a\\..\\b",
    "C:/a",
    "a\x1b[2J",
    "a\nb",
    "n" * 256,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_plain_path_is_not_fetched(hub: HubServer, published: torch.nn.Module, name: str) -> None:
    hub.commit(REPO, {name: b"a text"})
    with pytest.raises(InputError, match="has a name (that is no plain path|too long for a disk)") as error:
        verify(REPO)
    assert str(error.value).isprintable()
    assert hub.asked("GET", "/resolve/") == []
    assert torch.equal(outputs(load(REPO)), outputs(published)), "which asks for other files"


def test_a_listing_of_millions_is_not_read_to_its_end(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MOST_FILES", 50)
    page = [{"type": "file", "oid": "0" * 40, "size": 1, "path": f"{number}.txt"} for number in range(20)]
    again = {"Link": f'<{hub.url}/api/models/{REPO}/tree/main?recursive=true>; rel="next"'}
    monkeypatch.setattr(Handler, "page", lambda *_: as_json(page, **again))
    with pytest.raises(InputError, match="has more than 50 files"):
        load(REPO)
    assert len(hub.asked("GET", "/tree/")) == 3


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (RemoteFile("", 5), "has no hash"),
        (RemoteFile("../../x", 5), "has no hash"),
        (RemoteFile(None, 5), "has no hash"),  # type: ignore[arg-type]
        (RemoteFile("0" * 64, -1), "has no size"),
        (RemoteFile("0" * 64, None), "has no size"),  # type: ignore[arg-type]
        (RemoteFile("0" * 64, 10**15), "has 1,000,000,000,000,000 bytes"),
    ],
)
def test_a_listing_must_say_what_a_file_is(file: RemoteFile, message: str) -> None:
    with pytest.raises(InputError, match=f"'model.safetensors' {message}.*: nothing was fetched"):
        check_listing(REPO, {"model.safetensors": file})


def test_all_files_together_have_a_limit() -> None:
    files = {f"{number}.safetensors": RemoteFile("0" * 64, 19 * 10**9) for number in range(3)}
    with pytest.raises(InputError, match=f"no more than {LARGEST_TOTAL:,} are fetched"):
        check_listing(REPO, files)
    check_listing(REPO, dict(list(files.items())[:2]))
    assert download_limits.most_bytes("a/b/README.MD") == download_limits.LARGEST_TEXT


def test_a_repository_that_changes_while_it_is_fetched_is_fetched_as_it_is_then(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path
) -> None:
    newer = write_folder(tmp_path / "newer", seed=5)
    pause = Pause("before")
    hub.fault("GET", "/tree/", pause)
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(load, REPO)
        assert pause.reached.wait(60)
        hub.commit(REPO, {name: tmp_path / "newer" / name for name in ("model.safetensors", "config.json")})
        pause.resume()
        assert torch.equal(outputs(loaded.result(60)), outputs(newer))
