"""An address of http or https must be a picture like any other, within bounds, and lead to nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from conftest import encode
from PIL import Image

import seresnet_hub
from seresnet_hub.data import download_image as module
from seresnet_hub.data import read_retries as retry
from seresnet_hub.errors import InputError
from seresnet_hub.inference.predict import extract_features, predict


class Site:
    """Answers each path with the next of its answers, the last one again and again: status, headers and body."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                site.asked.append(self.path)
                answers = site.answers.get(self.path, [(404, {}, b"")])
                status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Site:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> Iterator[Site]:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Site() as running:
        running.answers["/photo.png"] = [(200, {"Content-Type": "text/html"}, encode(photo))]
        yield running


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("seresnet20_cifar", num_classes=7).eval()


def test_an_address_is_a_picture(model: torch.nn.Module, site: Site, photo: Image.Image) -> None:
    url = f"{site.url}/photo.png"  # of whatever type it is said to be
    assert predict(model, url) == predict(model, [url.replace("http", "HTTP")]) == predict(model, photo)
    assert torch.equal(extract_features(model, url), extract_features(model, photo))
    assert seresnet_hub.inference_model(model, url)["pred_label"] == predict(model, photo)[0][0]["index"]
    site.answers["/moved"] = [(302, {"Location": f"{site.url}/photo.png"}, b"")]
    site.answers["/caf%C3%A9%201.png?size=1"] = site.answers["/photo.png"]
    for address in ("/moved", "/caf\N{LATIN SMALL LETTER E WITH ACUTE} 1.png?size=1", "/caf%C3%A9%201.png?size=1"):
        assert predict(model, site.url + address) == predict(model, photo)


def test_faults_of_the_network_are_tried_again(model: torch.nn.Module, site: Site, photo: Image.Image) -> None:
    whole = encode(photo)
    site.answers["/busy.png"] = [
        (503, {}, b""), (429, {}, b""), (200, {"Content-Length": str(len(whole))}, whole[:-9]), (200, {}, whole),
    ]  # fmt: skip
    assert predict(model, f"{site.url}/busy.png") == predict(model, photo)
    assert site.asked == ["/busy.png"] * 4


@pytest.mark.parametrize(
    ("answer", "said", "tries"),
    [
        ((404, {}, b""), r"cannot be fetched \(the server answered 404: Not Found\)", 1),
        ((500, {}, b""), r"cannot be fetched \(the server answered 500: ", 4),
        ((200, {}, b"<html>a login page</html>"), "not an image of a kind that is read", 1),
        ((200, {}, b"x" * 3000), r"too large a picture \(more than 2,000 bytes\)", 1),
        ((200, {"Content-Length": "3000"}, b"x" * 3000), r"too large a picture \(more than 2,000 bytes\)", 1),
        ((200, {"Content-Length": "1000"}, b"x" * 99), "the connection ended after 99 of 1,000 bytes", 4),
        ((302, {"Location": "file:///etc/hosts"}, b""), "Redirection to url 'file:///etc/hosts' is not allowed", 4),
        ((302, {"Location": "ftp://127.0.0.1/a.png"}, b""), "unknown url type: ftp", 4),
        ((302, {"Location": "/a.png"}, b""), "infinite loop", 4),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_named_by_its_address(
    model: torch.nn.Module, site: Site, monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, dict[str, str], bytes], said: str, tries: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "MOST_BYTES", 2000)
    site.answers["/a.png"] = [answer]
    with pytest.raises(InputError, match=rf"^{site.url}/a.png: .*{said}") as refused:
        predict(model, f"{site.url}/a.png")
    assert "loop" in said or len(site.asked) == tries
    assert "\n" not in str(refused.value)


def test_a_silent_or_slow_server_is_given_up(
    model: torch.nn.Module, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPENING_ATTEMPTS", 1)
    monkeypatch.setattr(module, "LONGEST", -1.0)
    with pytest.raises(InputError, match=r"photo.png: cannot be fetched \([\d,]+ bytes came in"):
        predict(model, f"{site.url}/photo.png")
    monkeypatch.setattr(module, "SILENCE", 0.2)
    site.answers["/slow.png"] = [(200, {"Content-Length": "10"}, b"")]
    monkeypatch.setattr(BaseHTTPRequestHandler, "end_headers", lambda _: threading.Event().wait(1))
    with pytest.raises(InputError, match="slow.png: cannot be fetched .*timed out"):
        predict(model, f"{site.url}/slow.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_address_out_of_reach_is_a_row_among_the_others(
    model: torch.nn.Module, site: Site, photo: Image.Image, workers: int
) -> None:
    site.answers["/gone.png"] = [(500, {}, b"")]
    addresses = [f"{site.url}/{'gone' if k % 3 == 1 else 'photo'}.png" for k in range(20)]
    told: dict[int, str] = {}
    found = predict(
        model, addresses, batch_size=6, workers=workers, unreadable=lambda k, error: told.update({k: str(error)})
    )
    assert [bool(classes) for classes in found] == [k % 3 != 1 for k in range(20)]
    assert list(told) == list(range(1, 20, 3))
    assert all(text.startswith(f"{site.url}/gone.png: cannot be fetched (the server") for text in told.values())


def test_other_schemes_are_never_followed(
    model: torch.nn.Module, tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)
    photo.save(tmp_path / "photo.png")
    for url in (f"file://{tmp_path}/photo.png", "ftp://example.org/a.png", "data://image/png", "zip://a.png::http://b"):
        with pytest.raises(InputError, match=f"^{url[:4]}.*: only addresses of http and https are fetched"):
            predict(model, url)
    for url in ("http://", "http://[::1", "http://a b.example:port/c.png"):
        with pytest.raises(InputError, match=r"cannot be fetched"):
            predict(model, url)
