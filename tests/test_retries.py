"""What may succeed later is tried for minutes, as long as the Hub asks, and no longer; the waits are shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_faults import Drop, Garble, Status
from hub_fixtures import REPO, commits
from hub_server import Handler, HubServer
from huggingface_hub import HfApi
from tqdm import tqdm

from seresnet_hub.errors import InputError
from seresnet_hub.hub import retries
from seresnet_hub.hub.client import head_of
from seresnet_hub.hub.failures import FAILING_PATIENCE, TOO_MANY_PATIENCE, causes_of, is_unreadable
from seresnet_hub.hub.messages import say
from seresnet_hub.hub.retries import patiently
from seresnet_hub.publishing.push import push

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NOW = 1_900_000_000
POLICY = '"fixed window";"api";q=500;w=300'


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": POLICY}, 56),
        ({"ratelimit": '"api"; r=0; t=55'}, 56),
        ({"RateLimit": '"pages";r=40;t=200, "api";r=0;t=55'}, 56),
        ({"RateLimit": '"api";r=7;t=55'}, 1),  # not what it was refused for
        ({"RateLimit": '"api";r=0;t=soon'}, 1),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "90"}, 90),
        ({"Retry-After": "90"}, 90),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": formatdate(NOW + 90, usegmt=True)}, 90),
        ({"Retry-After": formatdate(NOW - 90, usegmt=True)}, 1),
        ({"Retry-After": "Someday, 99 Foo 2026"}, 1),
        ({"Retry-After": "-5"}, 1),
        ({}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("request_path", ["/commit/", "/tree/"], ids=["ours", "the client's own"])
def test_the_hub_is_given_the_time_that_it_asks_for(
    hub: HubServer, folder: Path, pauses: list[float], headers: dict[str, str], seconds: float, request_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A date counts from the answer's own, as clocks differ."""
    monkeypatch.setattr(Handler, "date_time_string", lambda *_: formatdate(NOW, usegmt=True))
    hub.create("model", REPO)
    hub.fault("POST" if request_path == "/commit/" else "GET", request_path, Status(429, headers))
    push(folder, REPO)
    assert pauses == [seconds]
    assert commits(hub) == 1


def test_a_date_counts_from_now_where_the_answer_has_none(
    hub: HubServer, folder: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "date_time_string", lambda *_: "")
    hub.fault("POST", "/commit/", Status(503, {"Retry-After": formatdate(time.time() + 100, usegmt=True)}))
    push(folder, REPO)
    assert 90 < pauses[0] <= 100


def test_the_limit_is_named(hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fault("POST", "/commit/", Status(429, {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": POLICY}))
    push(folder, REPO)
    assert "the Hub answered 429 (its limit is 500 requests in 300 s); trying again in 56 s" in capsys.readouterr().err


@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}], ids=str)
@pytest.mark.parametrize(("method", "path"), [("GET", "/tree/"), ("POST", "/commit/"), ("PUT", "/cdn/")])
def test_a_day_is_not_waited(
    hub: HubServer, folder: Path, pauses: list[float], headers: dict[str, str], method: str, path: str
) -> None:
    hub.create("model", REPO)
    hub.fault(method, path, Status(429, headers), times=None)
    with pytest.raises(InputError, match="nothing was changed; it asks to wait 1440 minutes"):
        push(folder, REPO)
    assert pauses == []


@pytest.mark.parametrize(
    ("status", "patience"), [(429, TOO_MANY_PATIENCE), (503, FAILING_PATIENCE)], ids=["too many", "failing"]
)
def test_all_waits_together_have_an_end(
    hub: HubServer, folder: Path, pauses: list[float], status: int, patience: float
) -> None:
    hub.create("model", REPO)
    hub.fault("POST", "/commit/", Status(status), times=None)
    with pytest.raises(InputError, match=f"the Hub answered {status}"):
        push(folder, REPO)
    assert patience / 2 < sum(pauses) <= patience
    assert pauses[:6] == [1, 2, 4, 8, 16, 32]
    assert max(pauses) <= 60


@pytest.mark.parametrize(("breaks", "tries"), [(2, 3), (1000, 3)])
def test_what_breaks_after_an_hour_is_tried_again_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, breaks: int, tries: int
) -> None:
    now, seen = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(retries, "time", clock)

    def work() -> str:
        seen.append(now[0])
        now[0] += 3600
        if len(seen) <= breaks:
            raise ConnectionResetError("cut off")
        return "done"

    if breaks < tries:
        assert patiently(work, "uploading") == "done"
    else:
        with pytest.raises(InputError, match="uploading: cut off"):
            patiently(work, "uploading")
    assert len(seen) == tries


def test_what_does_not_pass_is_not_waited_for(hub: HubServer, pauses: list[float]) -> None:
    for status in (400, 401, 403, 409, 413, 501):
        hub.fault("GET", "/api/models/", Status(status))
        with pytest.raises(InputError):
            patiently(lambda: HfApi().model_info(REPO), "asking")
    assert pauses == []


def test_a_login_page_is_not_waited_for_long(hub: HubServer, pauses: list[float]) -> None:
    hub.create("model", REPO)
    hub.fault("GET", "/api/models/", Garble(), times=None)
    with pytest.raises(InputError, match="no answer of the Hub's: is there a proxy or a login page between"):
        head_of(HfApi(), REPO, "main")
    assert pauses == [1, 2]


def test_on_a_terminal_the_seconds_count_down(
    hub: HubServer,
    folder: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    hub.fault("POST", "/commit/", Status(503, {"Retry-After": "3"}))
    push(folder, REPO)
    shown = capsys.readouterr().err
    assert [f"trying again in {left} s" in shown for left in (4, 3, 2, 1, 0)] == [False, True, True, True, False]
    assert pauses == [1, 1, 1]


def test_a_line_is_shown_once_although_bars_of_other_threads_come_and_go(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bars(list[object]):
        def __iter__(self) -> Iterator[object]:
            raise RuntimeError("Set changed size during iteration")

    monkeypatch.setattr(tqdm, "_instances", Bars(), raising=False)
    say("a line\x1b")
    assert capsys.readouterr().err == "a line\\x1b\n"


def test_a_connection_that_is_always_cut_ends(hub: HubServer, pauses: list[float]) -> None:
    hub.create("model", REPO)
    hub.fault("GET", "/api/models/", Drop(), times=None)
    with pytest.raises(InputError, match="asking for someone/model: .*is there a network"):
        head_of(HfApi(), REPO, "main")
    assert sum(pauses) <= FAILING_PATIENCE


def test_a_circle_of_causes_has_an_end() -> None:
    first, second = OSError("first"), OSError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(causes_of(first)) == [first, second]
    assert not is_unreadable(first)
