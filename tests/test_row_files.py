"""A row of a data set may name the data set's own files, and no other file, device or address."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from conftest import encode, numbered_picture
from PIL import Image

from seresnet_hub.data.loader import loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.row_files import ForeignFileError, RowFiles
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe

RECIPE = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, batch_size=4, shuffle_window=9
)


def rows_that_name(folder: Path, paths: list[str]) -> str:
    """Write a data set whose rows hold these paths and no bytes."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = pyarrow.table(
        {"image": [{"bytes": None, "path": path} for path in paths], "label": [k % 2 for k in range(len(paths))]},
        features.arrow_schema,
    )
    pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../secret.png", "inside/../../secret.png", "file:///etc/passwd", "local:///etc/passwd", "link.png",
     "http://127.0.0.1:9/a.png", "zip://a.png::/etc/passwd", "zip://a.png::http://127.0.0.1:9/a.zip",
     "simplecache::http://127.0.0.1:9/a.png", "memory://a", "linked/secret.png", "/dev/zero", "/proc/self/environ"],
)  # fmt: skip
def test_a_row_that_names_something_else_ends_the_run(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(numbered_picture(1))
    data = tmp_path / "data"
    data.mkdir()
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    (data / "linked").symlink_to(tmp_path)
    source = rows_that_name(data, [path] * 4)
    with pytest.raises(InputError, match=r"row \d of split 'train'.*names a file that is not in its own folder"):
        list(loader(source, "train", RECIPE))


def test_what_waits_or_has_no_end_is_an_undecodable_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.mkfifo(data / "pipe.png")
    with (data / "hole.png").open("wb") as file:
        file.truncate(2**41)
    (data / "right.png").write_bytes(numbered_picture(7))
    source = rows_that_name(data, ["pipe.png", "hole.png", "missing.png", *["right.png"] * 37])
    batches = loader(source, "train", replace(RECIPE, corrupt_share=0.2))
    with caplog.at_level(logging.WARNING):
        seen = sum(int(batch.mask.sum()) for batch in batches)
    assert (seen, len(batches.skipped)) == (37, 3)
    for text in ("pipe.png): no regular file", "hole.png): too large a file", "missing.png): No such file"):
        assert text in caplog.text


def test_own_files_are_read_wherever_the_run_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(numbered_picture(3))
    source = rows_that_name(tmp_path / "data", ["a.png", str(tmp_path / "data" / "a.png")])
    monkeypatch.chdir("/")
    (batch,) = loader(source, "train", RECIPE)
    assert batch.mask.all()


def test_a_picture_replaced_by_a_pipe_hangs_nothing(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for k in range(10):
            (tmp_path / name / f"{k}.png").write_bytes(encode(Image.new("RGB", (9, 9))))
    split = open_split(str(tmp_path), "train")
    batches = loader(split, None, replace(RECIPE, corrupt_share=0.1))
    stream = iter(batches)
    next(stream)
    for k in range(10):
        (tmp_path / "dog" / f"{k}.png").unlink()
        os.mkfifo(tmp_path / "dog" / f"{k}.png")
    with pytest.raises(InputError, match=r"dog/\d.png\): no regular file"):
        list(stream)


def test_links_of_a_persons_own_folder_are_followed(tmp_path: Path) -> None:
    """People make smaller collections out of links; a row of a table may not name what is elsewhere."""
    (tmp_path / "elsewhere.png").write_bytes(numbered_picture(1))
    folder = tmp_path / "folder"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").symlink_to(tmp_path / "elsewhere.png")
    (batch,) = loader(str(folder), "train", RECIPE)
    assert batch.mask.all()
    linked = str(folder / "cat" / "1.png")
    assert RowFiles(str(folder), lists_pictures=True).read(linked) == numbered_picture(1)
    with pytest.raises(ForeignFileError):
        RowFiles(str(folder)).read(linked)


@pytest.mark.parametrize("linked", ["folder", "above"])
def test_a_folder_that_is_or_lies_behind_a_link_is_read(tmp_path: Path, linked: str) -> None:
    """As data on another disk often are: the library that lists the pictures says where they really are."""
    for name in ("cat", "dog"):
        (tmp_path / "disk" / "folder" / name).mkdir(parents=True)
        (tmp_path / "disk" / "folder" / name / "1.png").write_bytes(numbered_picture(1))
    source = tmp_path / "link" / "folder" if linked == "above" else tmp_path / "link"
    (tmp_path / "link").symlink_to(tmp_path / "disk" / ("" if linked == "above" else "folder"))
    (batch,) = loader(str(source), "train", RECIPE)
    assert batch.mask.all()
    (tmp_path / "disk" / "secret.png").write_bytes(numbered_picture(2))
    for path in (
        tmp_path / "disk" / "secret.png",
        source / ".." / "secret.png",
        source / "cat" / "../../../secret.png",
    ):
        with pytest.raises(ForeignFileError):
            RowFiles(str(source), lists_pictures=True).read(str(path))


def test_addresses_must_begin_with_the_data_sets_own() -> None:
    own = RowFiles("hf://datasets/ns/name@main/train")
    for path in (
        "hf://datasets/ns/other@main/train/a.png", "hf://datasets/ns/name@main/train/../../../other/a.png",
        "hf://datasets/ns/name@main/train/%2e%2e/a.png", "hf://datasets/ns/name@main/training/a.png", "/etc/passwd",
    ):  # fmt: skip
        with pytest.raises(ForeignFileError):
            own.read(path)
    with pytest.raises(ForeignFileError):
        RowFiles("").read("/etc/passwd")


def test_files_that_are_no_pictures_we_read_are_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(numbered_picture(1))
    (tmp_path / "cat" / "2.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with caplog.at_level(logging.WARNING):
        split = open_split(str(tmp_path), "train")
    assert split.rows == 2
    assert "1 .eps left out: save them as JPEG or PNG to use them" in caplog.text
