"""The double of the Hub is as far away as it is told to be, limits what the Hub limits, and counts what it served."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import hub_traffic
import pytest
from hub_server import WRITE_TOKEN, HubServer
from hub_traffic import Traffic

CONTENT = bytes(300_000)
FILE = "/datasets/someone/pictures/resolve/main/a%20b.parquet"


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    opener = urllib.request.build_opener(NoRedirects, urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def serve(folder: Path, traffic: Traffic) -> HubServer:
    hub = HubServer(folder / "hub", traffic=traffic)
    hub.create("dataset", "someone/pictures", {"a b.parquet": CONTENT})
    return hub


def test_the_resolver_has_a_limit_and_nothing_else_does(tmp_path: Path) -> None:
    with serve(tmp_path, Traffic(resolver_limit=2, window=300)) as hub:
        answers = [get(hub.url + FILE) for _ in range(4)]
        assert [status for status, _, _ in answers] == [302, 302, 429, 429]
        left = [headers["RateLimit"].rpartition("=")[0] for _, headers, _ in answers]
        assert left == [f'"resolvers";r={r};t' for r in (1, 0, 0, 0)]
        assert {headers["RateLimit"].rpartition("=")[2] for _, headers, _ in answers} <= {"299", "300"}
        assert {headers["RateLimit-Policy"] for _, headers, _ in answers} == {'"fixed window";"resolvers";q=2;w=300'}
        for _ in range(5):
            assert get(answers[0][1]["Location"])[0] == 200
            assert get(hub.url + "/api/datasets/someone/pictures")[0] == 200
        counts = hub.counts()
        assert {kind: counts[kind]["requests"] for kind in counts} == {"api": 5, "resolver": 4, "storage": 5}
        assert counts["storage"]["bytes"] == 5 * len(CONTENT)
        hub.traffic.window = 0.0
        assert get(hub.url + FILE)[0] == 302


def test_signed_addresses_expire_and_want_no_token(tmp_path: Path) -> None:
    with serve(tmp_path, Traffic(signed_for=1000)) as hub:
        location = get(hub.url + FILE)[1]["Location"]
        assert urlsplit(location).netloc != urlsplit(hub.url).netloc
        assert get(location, Range="bytes=5-9")[0] == 206
        assert get(location, Authorization=f"Bearer {WRITE_TOKEN}")[0] == 400
        assert get(location.partition("?")[0])[0] == 403
        assert get(location.replace("Signature=", "Signature=0"))[0] == 403
        assert get(location.replace("Expires=", "Expires=9"))[0] == 403
        hub.traffic.revoke()
        assert get(location)[0] == 403
        hub.traffic.signed_for = -1
        assert get(get(hub.url + FILE)[1]["Location"])[0] == 403


def test_latency_and_bandwidth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(hub_traffic, "_wait", waits.append)
    with serve(tmp_path, Traffic(latency=0.25)) as hub:
        location = get(hub.url + FILE)[1]["Location"]
        get(location)
    assert waits == [0.25] * 4  # two connections, two answers
    waits.clear()
    traffic = Traffic(bandwidth=1e6)
    for _ in range(3):
        traffic.pass_through(100_000)
    assert waits == pytest.approx([0.1, 0.2, 0.3], abs=0.09)
