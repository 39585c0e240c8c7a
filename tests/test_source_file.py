"""A file must be found wherever it is, be the one that was meant, and be read with what lies beside it."""

from __future__ import annotations

import hashlib
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from foreign_files import SHORT, assert_same, saved, small
from hub_faults import FlipByte
from hub_server import HubServer
from references import networks
from safetensors.torch import save_file

from seresnet_hub.conversion.convert import convert
from seresnet_hub.errors import InputError
from seresnet_hub.hub import download_limits as hub_limits


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_addresses_and_promised_hashes(tmp_path: Path, server: str) -> None:
    """Protects downloads: the address is kept as provenance, and OpenMMLab's hash in the name is checked."""
    state = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False)).checkpoint("backbone.")
    path = saved(state, tmp_path / "a.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = f"se-resnet18_20200804-{digest[:8]}.pth"
    path.rename(tmp_path / good)
    result = convert(f"{server}/{good}", tmp_path / "out")
    assert result["sha256_source"] == digest
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["seresnet_hub"]["provenance"]["source_url"] == f"{server}/{good}"
    (tmp_path / good).rename(tmp_path / "se-resnet18_20200804-00000000.pth")
    with pytest.raises(InputError, match="its name promises 00000000"):
        convert(f"{server}/se-resnet18_20200804-00000000.pth", tmp_path / "bad")
    with pytest.raises(InputError, match="cannot download"):
        convert(f"{server}/missing.pth", tmp_path / "bad")
    with pytest.raises(InputError, match="from the Hub"):
        convert("nobody/nothing:model.pth", tmp_path / "bad")
    with pytest.raises(InputError, match="no such file"):
        convert(tmp_path / "missing.pth", tmp_path / "bad")


@pytest.mark.parametrize(
    "answer",
    [b"garbage\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc", b""],
    ids=["no HTTP", "cut", "nothing"],
)
def test_servers_that_break_off(tmp_path: Path, answer: bytes) -> None:
    """Protects from tracebacks of the HTTP client."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        with pytest.raises(InputError, match="cannot download"):
            convert(f"http://127.0.0.1:{running.server_address[1]}/a.pth", tmp_path / "out")
        running.shutdown()
        thread.join()
    with pytest.raises(InputError, match="cannot download"):
        convert("http://127.0.0.1:port/a.pth", tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_config_beside_the_weights_decides(tmp_path: Path, name: str, hub: HubServer) -> None:
    """Protects from anti-aliased networks, whose tensors are those of plain ones; from the Hub as well."""
    original = networks.randomise(timm.create_model("seresnetaa50d", layers=[1, 1, 1, 1], num_classes=5))
    (tmp_path / "in").mkdir()
    if name.endswith(".bin"):
        saved(original.state_dict(), tmp_path / "in" / name)
    else:
        save_file(original.state_dict(), tmp_path / "in" / name)
    config = {"architecture": "seresnetaa50d", "model_args": {"layers": [1, 1, 1, 1]}}
    assert convert(tmp_path / "in" / name, tmp_path / "plain")["architecture"] == "seresnet152d"
    assert "anti-aliasing" in (tmp_path / "plain" / "README.md").read_text()
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    hub.create("model", "timm/anything", {file.name: file.read_bytes() for file in (tmp_path / "in").iterdir()})
    for number, src in enumerate((tmp_path / "in" / name, f"timm/anything:{name}")):
        result = convert(src, tmp_path / str(number))
        assert (result["architecture"], result["max_abs_diff"]) == ("seresnetaa50d", None)
        assert_same(tmp_path / str(number), original, 64, 64)


def test_a_file_of_the_hub_is_what_its_listing_says(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects from other bytes than those that were published, and from a disk that is filled."""
    path = saved(small(), tmp_path / "a.pth")
    hub.create("model", "timm/anything", {"sub/a.pth": path.read_bytes()})
    hub.fault("GET", "a.pth", FlipByte(-5), times=None)
    with pytest.raises(InputError, match="cannot get timm/anything:sub/a.pth from the Hub"):
        convert("timm/anything:sub/a.pth", tmp_path / "out")
    hub.faults.clear()
    with pytest.raises(InputError, match=r"has no sub/b\.pth"):
        convert("timm/anything:sub/b.pth", tmp_path / "out")
    assert convert("timm/anything:sub/a.pth", tmp_path / "out")["source"] == "mmpretrain"
    monkeypatch.setattr(hub_limits, "LARGEST_WEIGHTS", path.stat().st_size - 1)
    with pytest.raises(InputError, match="bytes"):
        convert("timm/anything:sub/a.pth", tmp_path / "other")


@pytest.mark.parametrize(
    "config",
    [
        {"model_args": {"checkpoint_path": "x.pth"}},
        {"model_args": [1]},
        {"pretrained_cfg": "x"},
        {"label_names": 7},
        "[" * 100_000,
    ],
    ids=lambda config: str(config)[:40],
)
def test_a_strange_config_beside_the_weights_is_refused(tmp_path: Path, config: Any) -> None:
    """Protects from arguments that make timm open other files, and from tracebacks."""
    save_file(timm.create_model("seresnet18", num_classes=2).state_dict(), tmp_path / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps({"architecture": "seresnet18", **config})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        convert(tmp_path / "model.safetensors", tmp_path / "out")
