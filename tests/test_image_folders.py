"""A folder of pictures without classes must be told how to become one with classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import numbered_picture

from seresnet_hub.data.open_split import open_split
from seresnet_hub.errors import InputError


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1.png", "2.png"], r"its 2 pictures are in no class: put .* of its own \(photos/cat/1.jpg, photos/dog/1.jpg"),
        (["cat/1.png", "cat/2.png"], "all its pictures are of one class, 'cat': a classifier needs two or more"),
        (["cat/1.png", "dog/1.png", "3.png"], "1 of its 3 pictures are in no class folder: move them into one"),
        (["cat/1.png", "dog/old/2.png"], "not all at one depth .'dog/old' lies deeper than others"),
        (["cat/1.heic", "dog/2.heic", "a.txt"], r"there are no pictures in it \(it has 2 .heic, 1 .txt\)"),
        ([], "there are no pictures in it .it has no files"),
    ],
)
def test_pictures_without_classes_are_told_what_to_do(tmp_path: Path, files: list[str], message: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(numbered_picture(k))
    with pytest.raises(InputError, match=message):
        open_split(str(folder), "train")


def test_class_folders_open(tmp_path: Path) -> None:
    for k, name in enumerate(["cat/1.png", "dog/1.png", "dog/2.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(numbered_picture(k))
    assert open_split(str(tmp_path), "train").class_names == ("cat", "dog")


def test_files_that_are_not_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k, name in enumerate(["cat/1.png", "dog/1.png", "dog/2.heic", "dog/notes.txt", "cat/3.mp4", "cat/4.HEIC"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(numbered_picture(k))
    assert open_split(str(tmp_path), "train").rows == 2
    assert "2 .heic, 1 .mp4 left out: save them as JPEG or PNG to use them" in caplog.text


def test_a_class_is_never_missing_in_silence(tmp_path: Path) -> None:
    for k, name in enumerate(["cat/1.png", "dog/1.png", "moth/1.heic", "moth/2.heic"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(numbered_picture(k))
    with pytest.raises(InputError, match=r"moth: none of its files can be read \(2 .heic\); save them as JPEG"):
        open_split(str(tmp_path), "train")
