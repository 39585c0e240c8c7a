"""No answer of the Hub's hangs, fills a disk, or names a place outside the cache; no token goes to another host."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_faults import Endless, Garble, Pause, Status, Truncate
from hub_fixtures import REPO, commits, outputs
from hub_http import Answer, as_json
from hub_server import Handler, HubServer
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import get_session

from seresnet_hub.errors import InputError
from seresnet_hub.hub import failures, transport
from seresnet_hub.hub.transport import guarded
from seresnet_hub.models.load import load
from seresnet_hub.publishing.push import push

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def change_answers(
    monkeypatch: pytest.MonkeyPatch, path: str, change: Callable[[Answer], Answer], method: str | None = None
) -> None:
    """Have the double change what it answers where the address contains `path`."""
    send = Handler.send

    def changed(self: Handler, answer: Answer) -> None:
        wanted = path in self.path and method in (None, self.command)
        send(self, change(answer) if wanted else answer)

    monkeypatch.setattr(Handler, "send", changed)


def within(seconds: float, work: Callable[[], Any]) -> BaseException | None:
    """Return the error that the work ends with; fails where it does not end in time."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, "it hangs"
    return ended[0]


LOADING = [("GET", "/api/models/"), ("GET", "/tree/"), ("HEAD", "/resolve/"), ("GET", "/resolve/"), ("GET", "/cdn/")]
PUSHING = [
    ("GET", "/api/models/"), ("POST", "/repos/create"), ("GET", "/tree/"), ("POST", "/preupload/"),
    ("POST", "/objects/batch"), ("PUT", "/cdn/"), ("POST", "/lfs/verify"), ("POST", "/commit/"),
]  # fmt: skip


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the time that an answer may take short, so that a test need not wait."""
    for name in ("CONNECT", "ANSWER", "ANSWER_TO_SENT"):
        monkeypatch.setattr(transport, name, 0.1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(failures, "FAILING_PATIENCE", 1.5)


@pytest.mark.parametrize(("method", "path"), LOADING)
def test_a_silent_hub_does_not_hang_a_load(
    hub: HubServer, published: torch.nn.Module, impatient: None, method: str, path: str
) -> None:
    hub.fault(method, path, Pause("before"), times=None)
    assert isinstance(within(60, lambda: load(REPO)), InputError)


@pytest.mark.parametrize(("method", "path"), PUSHING)
def test_a_silent_hub_does_not_hang_a_push(
    hub: HubServer, folder: Path, impatient: None, method: str, path: str
) -> None:
    hub.fault(method, path, Pause("before"), times=None)
    ended = within(60, lambda: push(folder, REPO))
    made = commits(hub) if ("model", REPO) in hub.repositories else 0
    if "verify" in path and ended is None:  # at a second try the Hub has the file already, and verifies nothing
        assert made == 1
    else:
        assert isinstance(ended, InputError)
        assert made == 0


def test_a_hub_that_stops_in_the_middle_of_a_file_does_not_hang(
    hub: HubServer, published: torch.nn.Module, impatient: None
) -> None:
    hub.fault("GET", "/cdn/", Pause("answer"), times=None)
    assert isinstance(within(60, lambda: load(REPO)), InputError)


def test_an_answer_that_drips_is_given_up(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of the transport's ever passes, as there is always a byte."""
    hub.create("model", REPO)
    monkeypatch.setattr(transport, "SLOW_AFTER", 0.0)
    monkeypatch.setattr(transport, "SLOWEST", 1e12)
    with pytest.raises(transport.TooSlowError), guarded():
        HfApi().model_info(REPO)


def test_a_server_that_closes_in_the_middle_of_an_upload(hub: HubServer, folder: Path) -> None:
    pause = Pause("body")
    hub.fault("PUT", "/cdn/", pause)
    pause.abandon()
    push(folder, REPO)
    assert commits(hub) == 1


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/models/"), ("GET", "/tree/"), ("GET", "/cdn/")])
def test_an_answer_without_an_end_is_cut(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, path: str
) -> None:
    hub.fault(method, path, Endless(), times=None)
    ended = within(60, lambda: load(REPO))
    assert isinstance(ended, InputError)
    assert "bytes it may" in str(ended)
    assert sum(file.stat().st_size for file in tmp_path.joinpath("cache").rglob("*") if file.is_file()) < 5_000_000


def test_a_small_answer_that_unpacks_to_a_large_one_is_refused(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    change_answers(monkeypatch, "/tree/", lambda _: Answer(headers={"Content-Encoding": "gzip"}, body=bomb))
    with pytest.raises(InputError, match="answers in gzip, not asked for"):
        load(REPO)


def test_pages_without_an_end_are_given_up(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MOST_REQUESTS", 20)
    again = {"Link": f'<{hub.url}/api/models/{REPO}/tree/main?recursive=true>; rel="next"'}
    change_answers(monkeypatch, "/tree/", lambda _: as_json([], **again))
    with pytest.raises(InputError, match="leads from one request to the next"):
        load(REPO)


@pytest.mark.parametrize("commit", ["../../../../out", "main", "", None, 5, "A" * 40, "a" * 39, ["a" * 40]])
def test_a_commit_id_that_is_none_is_refused(
    hub: HubServer, published: torch.nn.Module, commit: object, tmp_path: Path
) -> None:
    hub.fault("GET", "/api/models/[^/]*/[^/]*(/revision/main)?$", Status(200, body={"id": REPO, "sha": commit}))
    with pytest.raises(InputError, match="which is no commit id"):
        load(REPO)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "headers",
    [{"ETag": '"../../../../../out"'}, {"ETag": '"/tmp/out"'}, {"ETag": '""'}, {"X-Repo-Commit": "../../../../out"}],
    ids=str,
)
def test_headers_that_name_files_in_the_cache_hold_hashes_alone(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], tmp_path: Path
) -> None:
    change_answers(
        monkeypatch, "/resolve/main/config.json",
        lambda answer: Answer(status=answer.status, headers={**answer.headers, **headers}, body=answer.body),
    )  # fmt: skip
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts and "hub" not in path.parts}
    with pytest.raises(InputError, match="no commit id|for its hash, which is none"):
        load(REPO)
    after = {path for path in tmp_path.rglob("*") if "cache" not in path.parts and "hub" not in path.parts}
    assert after == before


def test_a_file_that_is_gone_meanwhile_is_said_to_be(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub names the commit then, and the text of the error has an ETag of its own."""
    gone = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40, "ETag": 'W/"f-0123456789abcdefghijklmnop"'}
    change_answers(
        monkeypatch, "/resolve/main/config.json", lambda _: Answer(status=404, headers=gone, body=b"Entry not found")
    )
    with pytest.raises(InputError, match="fetching config.json of someone/model: the Hub answered 404"):
        load(REPO)


@pytest.mark.parametrize("spoil", [Garble(), Garble(b""), Truncate(10)], ids=["a page", "nothing", "cut"])
@pytest.mark.parametrize("path", ["/resolve/.*config.json", "/cdn/"])
def test_a_file_that_arrives_as_something_else_is_fetched_again(
    hub: HubServer, published: torch.nn.Module, spoil: Any, path: str
) -> None:
    hub.fault("GET", path, spoil, times=2)
    assert torch.equal(outputs(load(REPO)), outputs(published))


def test_a_file_of_another_length_than_announced_is_never_loaded(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_answers(monkeypatch, "/cdn/", lambda answer: Answer(body=answer.body.read() + b"more"), "GET")  # type: ignore[union-attr]
    with pytest.raises(InputError, match="the Hub sends more than the [0-9,]+ bytes it may"):
        load(REPO)


@pytest.mark.parametrize(
    "path", ["/api/models/someone/model/revision/main", "/tree/", "/resolve/main/config.json", "/resolve/main/model"]
)
def test_no_token_goes_along_to_another_host(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The double's other origin stands for another host; it is asked, and without the token."""
    elsewhere = {"Location": f"{hub.cdn_url}/elsewhere"}
    change_answers(monkeypatch, path, lambda answer: Answer(status=302, headers={**answer.headers, **elsewhere}))
    with pytest.raises(InputError):
        load(REPO)
    asked = [request for request in hub.requests if request.origin == "cdn"]
    assert asked
    assert not any(request.authorized for request in asked)
    assert any(request.authorized for request in hub.requests if request.origin == "api")


def test_a_push_sends_no_token_to_where_files_are_stored(hub: HubServer, folder: Path) -> None:
    push(folder, REPO)
    stored = hub.asked("PUT", "/cdn/")
    assert stored
    assert not any(request.authorized for request in stored)


def test_other_calls_of_the_client_stay_as_they_are(hub: HubServer, published: torch.nn.Module) -> None:
    load(REPO)
    asked: list[Any] = []
    client = get_session()
    client.event_hooks["request"].append(asked.append)
    HfApi().model_info(REPO)
    client.event_hooks["request"].remove(asked.append)
    assert asked[0].extensions["timeout"]["read"] is None
    assert asked[0].headers["Accept-Encoding"] != "identity"
    assert sum(hook is transport.bound_request for hook in client.event_hooks["request"]) == 1
