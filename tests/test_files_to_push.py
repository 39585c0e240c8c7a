"""Nothing but a model, its card, and what our training wrote is uploaded, and it is what was checked."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hub_fixtures import CARD, REPO, commits, write_folder
from hub_server import HubServer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from seresnet_hub.errors import InputError
from seresnet_hub.models.trial_forward import check_runs
from seresnet_hub.plots import draw_curves
from seresnet_hub.publishing.files_to_push import files_to_push
from seresnet_hub.publishing.push import push
from seresnet_hub.publishing.upload import ready_repository
from seresnet_hub.training.progress import Row
from seresnet_hub.training.run_folder import write_summary

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SECRET = "hf_a_token_of_somebody"
HISTORY: list[Row] = [
    {"step": 1, "epoch": 1.0, "learning_rate": 1e-05, "train_loss": 2.5},
    {"step": 2, "epoch": 2.0, "learning_rate": 0.1, "train_loss": 1.5, "eval_loss": 2.0, "top1": 50.0, "top5": 99.0,
     "raw_eval_loss": float("nan"), "raw_top1": 50.0, "raw_top5": 99.0},
]  # fmt: skip


@pytest.fixture(scope="module")
def curves() -> bytes:
    file = BytesIO()
    draw_curves(HISTORY, file)
    return file.getvalue()


@pytest.fixture
def trained(folder: Path, curves: bytes) -> Path:
    write_summary(HISTORY, folder / "summary.csv")
    (folder / "curves.png").write_bytes(curves)
    return folder


def test_what_training_writes_is_pushed(hub: HubServer, trained: Path) -> None:
    push(trained, REPO)
    for name in ("summary.csv", "curves.png", "config.json", "model.safetensors"):
        assert hub.files(REPO)[name].read() == (trained / name).read_bytes()


@pytest.mark.parametrize("name", ["summary.csv", "curves.png", "README.md", "config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["link", "relative link", "FIFO", "device", "folder", "link in a circle"])
def test_what_is_no_file_of_the_folder_is_never_uploaded(
    hub: HubServer, trained: Path, name: str, kind: str, tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    (trained / name).rename(secret)  # so that its content would pass
    if kind == "link":
        (trained / name).symlink_to(secret)
    elif kind == "relative link":
        (trained / name).symlink_to("../token")
    elif kind == "FIFO":
        os.mkfifo(trained / name)
    elif kind == "device":
        (trained / name).symlink_to("/dev/zero")
    elif kind == "folder":
        (trained / name).mkdir()
    else:
        (trained / name).symlink_to(name)
    with pytest.raises(InputError, match=name):
        push(trained, REPO)
    assert hub.requests == []


def test_a_link_inside_the_folder_is_a_file_of_it(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    (trained / "summary.csv").rename(trained / "summary of the run.csv")
    (trained / "summary.csv").symlink_to("summary of the run.csv")
    (tmp_path / "elsewhere").symlink_to(trained)
    push(tmp_path / "elsewhere", REPO)
    assert hub.files(REPO)["summary.csv"].read() == (trained / "summary.csv").read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        SECRET, "", "\n", f"step\n{SECRET}\n", f"{SECRET}\n1\n", "step,secret\n1,2\n", "step,epoch\n1\n",
        "step,step\n1,1\n",
        "epoch\n1\n", 'step\n"1\n2"\n', "step\n1\n\0", "step\n1\nümlaut\n", "step\n1_0\n", f"step\n1{'0' * 40}\n",
        "step\n=cmd()\n", "step\n 0x10\n",
    ],
)  # fmt: skip
def test_another_text_is_no_summary(hub: HubServer, trained: Path, content: str) -> None:
    (trained / "summary.csv").write_text(content)
    with pytest.raises(InputError, match=r"summary.csv is no table of a training.*: it is not pushed"):
        push(trained, REPO)
    assert hub.requests == []


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    "damage",
    [
        lambda png: SECRET.encode(),
        lambda png: b"",
        lambda png: png + SECRET.encode(),
        lambda png: png[:-5],
        lambda png: png[:200] + bytes([png[200] ^ 1]) + png[201:],
        lambda png: png[:33] + chunk(b"tEXt", b"Comment\0" + SECRET.encode()) + png[33:],
        lambda png: png[:33] + chunk(b"eXIf", SECRET.encode()) + png[33:],
        lambda png: png[:33] + chunk(b"IEND", b""),
        lambda png: png[:8] + png[33:],
        lambda png: png[:33] + b"\xff\xff\xff\xffIDAT",
    ],
)
def test_another_file_is_no_picture(hub: HubServer, trained: Path, damage: Callable[[bytes], bytes]) -> None:
    (trained / "curves.png").write_bytes(damage((trained / "curves.png").read_bytes()))
    with pytest.raises(InputError, match=r"curves.png is .*PNG picture.*: it is not pushed"):
        push(trained, REPO)
    assert hub.requests == []


def test_pillows_own_pictures_are_judged_by_what_is_in_them(trained: Path) -> None:
    for mode in ("L", "RGB", "RGBA", "P", "1"):
        Image.new(mode, (5, 4)).save(trained / "curves.png", dpi=(110, 110))
        files_to_push(trained)
    notes = PngInfo()
    notes.add_text("Author", SECRET)
    Image.new("L", (5, 4)).save(trained / "curves.png", pnginfo=notes)
    with pytest.raises(InputError, match="something beside the picture"):
        files_to_push(trained)


def test_a_file_too_large_is_not_read_whole(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (trained / "README.md").open("r+b") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match="README.md has more than the 10,000,000 bytes"):
        files_to_push(trained)
    write_folder(trained)
    monkeypatch.setattr("seresnet_hub.publishing.files_to_push.LARGEST_WEIGHTS", 1000)
    with pytest.raises(InputError, match="more than the 1,000 bytes"):
        files_to_push(trained)


@pytest.mark.parametrize("name", ["summary.csv", "curves.png", "README.md", "config.json"])
def test_a_file_exchanged_while_it_is_checked_is_not_uploaded(
    hub: HubServer, trained: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = check_runs

    def check_and_exchange(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        (trained / name).unlink()
        (trained / name).write_bytes(SECRET.encode())

    monkeypatch.setattr("seresnet_hub.publishing.push.check_runs", check_and_exchange)
    with pytest.raises(InputError, match=name):
        push(trained, REPO)
    assert hub.requests == []


def test_weights_exchanged_after_the_check_are_not_uploaded(
    hub: HubServer, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = ready_repository

    def exchange(*arguments: object, **keywords: object) -> object:
        (trained / "model.safetensors").write_bytes(SECRET.encode())
        return ready(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr("seresnet_hub.publishing.push.ready_repository", exchange)
    with pytest.raises(InputError, match="model.safetensors has changed while it was being checked"):
        push(trained, REPO)
    assert commits(hub) == 0
    assert hub.asked("PUT", "/cdn/") == []


def test_a_card_is_read_once(hub: HubServer, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exchanged after the checks is not uploaded: its bytes were kept."""
    ready = ready_repository

    def exchange(*arguments: object, **keywords: object) -> object:
        (trained / "README.md").write_text(SECRET)
        (trained / "summary.csv").write_text(SECRET)
        return ready(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr("seresnet_hub.publishing.push.ready_repository", exchange)
    push(trained, REPO)
    assert hub.files(REPO)["README.md"].read().decode() == CARD.replace("local-dir:.", f"hf-hub:{REPO}")
    assert SECRET.encode() not in hub.files(REPO)["summary.csv"].read()
