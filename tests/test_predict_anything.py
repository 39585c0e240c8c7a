"""Whatever lies in a folder, every picture that can be read is predicted, and each other one is one row or one line."""

from __future__ import annotations

import csv
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import encode
from PIL import Image
from warm_python import run_python

import seresnet_hub

MODEL = "seresnet20_cifar.c10"
# Drops the two capabilities that let root read everything, then runs the command (see capabilities(7) and capset(2)).
AS_NOBODY_SPECIAL = """
import ctypes, runpy, sys
DAC_OVERRIDE, DAC_READ_SEARCH, VERSION_3 = 1, 2, 0x20080522
header, data = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capget(header, data) == 0
data[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
assert libc.capset(header, data) == 0
sys.argv = ["seresnet_hub", *sys.argv[1:]]
runpy.run_module("seresnet_hub", run_name="__main__", alter_sys=True)
"""


def large_png(side: int) -> bytes:
    """A whole black PNG of one bit a pixel, of that width and height (PNG specification, sections 5 and 11)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer, row = zlib.compressobj(1), bytes(1 + side // 8)  # a row begins with the byte of its filter
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


class Folder:
    """A folder of all sorts of files: its path, and the paths of those that can be read, and of those that cannot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        draw = np.random.default_rng(0)
        (path / "deep" / "folder.jpg").mkdir(parents=True)  # a folder that is called like a picture
        colours = [Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(4)]
        grey = Image.fromarray(draw.integers(0, 2**16, (40, 50), dtype=np.uint16))
        whole: dict[bytes, bytes] = {
            b"plain.png": encode(colours[0]),
            b"CAPITAL.JPG": encode(colours[1], "JPEG"),
            b"cmyk.jpg": encode(colours[2].convert("CMYK"), "JPEG"),
            b"sixteen bits.png": encode(grey),
            b"animated.gif": encode(colours[0], "GIF", save_all=True, append_images=colours[1:]),
            b"a line\nand \x1b[31mred\x1b[0m.png": encode(colours[3]),
            b"no utf-8 \xe9\xff.png": encode(colours[1]),
            b"comma, \"quote\" and 'quote'.png": encode(colours[2]),
            "日本語 ünï.png".encode(): encode(colours[3]),
            b"deep/folder.jpg/inside.png": encode(colours[2]),
        }
        damaged: dict[bytes, bytes] = {
            b"cut off.jpg": encode(colours[0], "JPEG", quality=95)[:-900],
            b"empty.png": b"",
            b"text.jpg": b"This is no picture.\n",
            b"large.png": large_png(16_000),
            b"bad \x1b]0;title\x07\n.png": b"no picture",
        }
        (path / "notes.txt").write_text("Files of other names are no pictures.")
        for name, data in {**whole, **damaged}.items():
            (path / os.fsdecode(name)).write_bytes(data)
        (path / "link.png").symlink_to("plain.png")
        (path / "leads nowhere.png").symlink_to("gone.png")
        os.mkfifo(path / "pipe.png")
        self.whole = {shown(path, name) for name in [*whole, b"link.png"]}
        self.damaged = {shown(path, name) for name in [*damaged, b"leads nowhere.png", b"pipe.png"]}

    @property
    def count(self) -> int:
        return len(self.whole | self.damaged)


def shown(folder: Path, name: bytes) -> str:
    """The name of a picture in a table: bytes that are no UTF-8 as escapes."""
    return os.fsencode(folder / os.fsdecode(name)).decode("utf-8", "backslashreplace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("anything"))


def predict(*words: object) -> tuple[dict[str, Any], list[str]]:
    """Run the command as a person does, and return its result and the lines of standard error."""
    done = run_python([sys.executable, "-m", "seresnet_hub", "predict", MODEL, *map(str, words)], timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr.replace("\r", "\n").splitlines()


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, by readers that are not this package's; None is what is missing."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    table = pd.read_parquet(path)
    return [{key: None if value is None or value != value else value for key, value in row.items()}
            for row in table.astype(object).to_dict("records")]  # fmt: skip


@pytest.mark.parametrize(("ending", "workers"), [(".parquet", 2), (".csv", 0), (".jsonl", 0)])
def test_each_picture_is_one_row(folder: Folder, tmp_path: Path, ending: str, workers: int) -> None:
    output = tmp_path / f"answers{ending}"
    result, lines = predict(folder.path, "--output", output, "--topk", 2, "--workers", workers, "--batch-size", 4)
    assert (result["failed"], result["rows"]) == (len(folder.damaged), folder.count)
    assert not [line for line in lines if "\x1b" in line]
    rows = rows_in(output)
    assert [int(row["row"]) for row in rows] == list(range(folder.count))
    assert {row["image"] for row in rows if row["error"] is None} == folder.whole
    assert {row["image"] for row in rows if row["error"] is not None} == folder.damaged
    assert len({row["image"] for row in rows}) == len(rows)
    model = seresnet_hub.load(MODEL)
    for row in rows:
        answers = [row[f"{kind}_{k}"] for k in (1, 2) for kind in ("class", "name", "score")]
        assert all((answer is None) == (row["error"] is not None) for answer in answers), row
        if row["image"].endswith("plain.png"):
            found = seresnet_hub.predict(model, folder.path / "plain.png", topk=2)[0]
            assert [int(row["class_1"]), int(row["class_2"])] == [one["index"] for one in found]
            assert [float(row["score_1"]), float(row["score_2"])] == pytest.approx([one["score"] for one in found])


def test_errors_say_what_is_wrong(folder: Folder, tmp_path: Path) -> None:
    predict(folder.path, "--output", tmp_path / "answers.jsonl")
    errors = {Path(row["image"]).name: row["error"] for row in rows_in(tmp_path / "answers.jsonl") if row["error"]}
    for name, said in {
        "cut off.jpg": "not a whole image",
        "empty.png": "not an image",
        "text.jpg": "not an image",
        "large.png": "too large a picture",
        "leads nowhere.png": "No such file",
        "pipe.png": "no regular file",
    }.items():
        assert said in errors[name]
    assert not [error for error in errors.values() if not error.isprintable()]


def test_without_a_table_each_is_one_line(folder: Folder) -> None:
    result, lines = predict(folder.path)
    assert {one["image"] for one in result["predictions"]} == folder.whole
    assert {one["image"] for one in result["unreadable"]} == folder.damaged
    assert result["failed"] == len(folder.damaged)
    told = [line for line in lines if line.startswith("unreadable: ")]
    assert len(told) == len(folder.damaged)
    assert all(line.isprintable() for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_folder_that_may_not_be_read(folder: Folder, tmp_path: Path) -> None:
    closed, one = tmp_path / "pictures" / "closed", tmp_path / "pictures" / "one.png"
    closed.mkdir(parents=True)
    for path in (one, closed / "two.png", tmp_path / "pictures" / "three.png"):
        path.write_bytes(encode(Image.new("RGB", (40, 50))))
    (tmp_path / "pictures" / "three.png").chmod(0)
    closed.chmod(0)
    output = tmp_path / "answers.jsonl"
    try:
        words = ["predict", MODEL, str(tmp_path / "pictures"), "--output", str(output)]
        done = run_python([sys.executable, "-c", AS_NOBODY_SPECIAL, *words])
    finally:
        closed.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 1
    assert f"{closed}: left out, this folder cannot be read (Permission denied)" in done.stderr
    found = [(Path(row["image"]).name, row["error"]) for row in rows_in(output)]
    assert found == [("one.png", None), ("three.png", "Permission denied")]
