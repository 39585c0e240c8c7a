"""A folder of class folders must have the splits, classes and rows that `datasets` gives it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import numbered_picture
from datasets import load_dataset, load_dataset_builder

from seresnet_hub.data import class_folders
from seresnet_hub.data import open_split as opening
from seresnet_hub.data.folder_index import ENDINGS, index_of
from seresnet_hub.data.held_out import _fingerprint, hold_out
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.units import labels_of, read_unit, require_same_shards
from seresnet_hub.errors import InputError

PLAIN: dict[str, list[str]] = {
    "classes": ["b/2.jpg", "b/10.jpg", "a/x.png", "a/.hidden.png", ".git/c/1.jpg", "c/1.JPEG", "c/2.Jpg", "c/3.txt"],
    "splits": ["train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/3.jpg", "labels.txt", "train/a/n.txt"],
    "a class that one split has not": ["train/a/1.jpg", "train/b/1.jpg", "test/b/2.jpg", "train/c/1.jpg"],
    "a class that only validation has": ["train/a/1.jpg", "train/b/1.jpg", "valid/0/2.jpg"],
    "names apart": ["train_256/a/1.jpg", "train_256/b/1.jpg", "my-dev-set/a/1.jpg"],
    "order": ["a b/1.jpg", "a/1.jpg", "a-b/1.jpg", "a.b/1.jpg", "a0/1.jpg", "a/a b.jpg", "a/a-b.jpg", "a/é.jpg"],
    "nested": ["animals/cat/1.jpg", "animals/dog/1.jpg", "plants/oak/1.jpg", "plants/cat/2.jpg"],
    "nested splits": ["train/animals/cat/1.jpg", "train/plants/oak/2.jpg", "test/plants/oak/1.jpg"],
    "odd names": ["日本/α ß.jpg", "日本/#1?.jpg", "[x]/*.jpg", "a'b\"/%20.jpg", "x=y&z/~.jpg", "😀/e\u0301.jpg"],
    "several dots": ["a.b/1.5.jpg", "a.b/2.jpg", "c/3.old.jpg", "c/4.jpg", "c/5..jpg"],
    "a file's name is a split's": ["a/ILSVRC2012_val_1.JPEG", "a/ILSVRC2012_val_2.JPEG", "b/ILSVRC2012_val_3.JPEG"],
    "nearly a split's": ["a/trainings.jpg", "a/trains_1.jpg", "b/value.jpg", "b/tests.jpg", "tested/1.jpg"],
    "beside": ["a/1.jpg", "a/2.jpg", "b/1.jpg", "__MACOSX/a/1.jpg", "lost+found/.x", "README.md", "config.json"],
    "an empty split": ["train/a/1.jpg", "train/b/1.jpg", "val/"],
}  # fmt: skip
LEFT: dict[str, list[str]] = {
    "two folders of a split": ["train/a/1.jpg", "train/b/1.jpg", "training/a/1.jpg"],
    "a class called like a split": ["train/a/1.jpg", "train/test tube/1.jpg"],
    "a folder beside splits": ["train/a/1.jpg", "train/b/1.jpg", "more/a/1.jpg"],
    "some names are a split's": ["a/train_1.jpg", "b/2.jpg", "b/train_3.jpg"],
    "two splits by name": ["a/train_1.jpg", "b/train_1.jpg", "b/test_1.jpg", "a/test_2.jpg"],
    "a text called like a split": ["a/1.jpg", "b/1.jpg", "train.txt"],
    "more texts than pictures": ["a/1.jpg", "b/1.jpg", "b/1.xml", "b/2.xml"],
    "as many texts": ["a/1.txt", "b/1.jpg"],
    "another ending behind": ["a/1.jpg", "b/2.jpg", "b/1.jpg.bak"],
    "pictures that are not read": ["a/1.jpg", "b/1.jpg", "b/2.jpg", "b/2.psd"],
    "sharded": ["data/train-00000-of-00001.jpg", "data/b.jpg", "b/1.jpg"],
    "an unlabelled split": ["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"],
    "one class": ["train/a/1.jpg", "test/a/1.jpg", "test/b/1.jpg"],
    "depths": ["a/1.jpg", "b/c/1.jpg"],
    "beside class folders": ["a/1.jpg", "b/1.jpg", "1.jpg"],
    "a new line": ["a/1\n.jpg", "a/2.jpg", "b/1.jpg"],
    "colons": ["a/1::2.jpg", "a/2.jpg", "b/1.jpg"],
    "a backslash": ["a/1\\2.jpg", "a/2.jpg", "b/1.jpg"],
    "metadata": ["a/1.jpg", "b/1.jpg", "metadata.csv"],
    "an archive": ["a/1.jpg", "b/1.jpg", "b/more.zip"],
    "a folder of dots": ["a/1.jpg", "b/1.jpg", ".../1.jpg"],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "cache"))


def make(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(numbered_picture(number) if "jp" in name.lower() else f"{number}".encode())
    return folder


def rows_of(split: Any) -> list[tuple[Any, ...]]:
    rows = [row for unit in range(len(split.unit_rows)) for row in read_unit(split, unit)]
    return [(row.number, (row.image or {})["bytes"], (row.image or {})["path"], row.label) for row in rows]


def by_datasets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The splits of a folder as they are without `class_folders`."""
    with monkeypatch.context() as patch:
        patch.setattr(opening, "class_folders", lambda index, path: {})
        names = open_split(str(folder), next(iter(load_dataset_builder(str(folder)).config.data_files))).siblings
        return {name: open_split(str(folder), name) for name in names}


@pytest.mark.parametrize("names", PLAIN.values(), ids=PLAIN)
def test_rows_are_those_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    folder = make(tmp_path / "d", names)
    expected = by_datasets(folder, monkeypatch)
    assert class_folders.class_folders(index_of(str(folder)), str(folder)).keys() == expected.keys()
    for name, theirs in expected.items():
        ours = open_split(str(folder), name)
        assert ours.class_folders is not None
        assert theirs.class_folders is None
        for field in ("siblings", "class_names", "unit_rows", "image_column", "label_column"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert rows_of(ours) == rows_of(theirs)
        assert ours.class_folders.paths() == [path for _, _, path, _ in rows_of(theirs)]
        assert np.array_equal(labels_of(ours), labels_of(theirs))
        assert labels_of(ours).dtype == labels_of(theirs).dtype
        # What model folders record of held-out images.
        assert _fingerprint(ours, labels_of(ours)) == _fingerprint(theirs, labels_of(theirs))
        if ours.rows > len(ours.class_names or ()):
            for mine, other in zip(hold_out(ours, 0.4, 1), hold_out(theirs, 0.4, 1), strict=True):
                assert rows_of(mine) == rows_of(other)
                assert [mine.place(row) for row in range(mine.rows)] == [other.place(row) for row in range(mine.rows)]


@pytest.mark.parametrize("names", LEFT.values(), ids=LEFT)
def test_what_datasets_may_understand_otherwise_is_left_to_it(tmp_path: Path, names: list[str]) -> None:
    folder = make(tmp_path / "d", names)
    assert class_folders.class_folders(index_of(str(folder)), str(folder)) == {}


@pytest.mark.parametrize(
    ("name", "text"), [("README.md", "---\nlicense: mit\n---"), ("dataset_infos.json", "{}"), ("d.py", "")]
)
def test_a_description_is_read_by_datasets(tmp_path: Path, name: str, text: str) -> None:
    folder = make(tmp_path / "d", ["a/1.jpg", "b/1.jpg"])
    (folder / name).write_text(text)
    assert class_folders.class_folders(index_of(str(folder)), str(folder)) == {}


def test_names_that_are_no_utf8_are_left_to_datasets(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", ["a/1.jpg", "b/1.jpg"])
    with open(os.fsencode(folder) + b"/a/\xff.jpg", "wb") as file:
        file.write(b"x")
    assert class_folders.class_folders(index_of(str(folder)), str(folder)) == {}


def test_links_are_followed_to_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "d", ["a/1.jpg", "b/1.jpg"])
    elsewhere = make(tmp_path / "e", ["2.jpg", "c/1.jpg"])
    (folder / "a" / "0.jpg").symlink_to(elsewhere / "2.jpg")
    (folder / "a" / "gone.jpg").symlink_to(elsewhere / "gone.jpg")
    (folder / "c").symlink_to(elsewhere / "c")
    (folder / "b" / "d.jpg").symlink_to(elsewhere / "c")
    os.mkfifo(folder / "b" / "pipe.jpg")
    (tmp_path / "link").symlink_to(folder)
    for source in (folder, tmp_path / "link"):
        theirs, ours = by_datasets(source, monkeypatch)["train"], open_split(str(source), "train")
        assert ours.class_folders is not None
        assert rows_of(ours) == rows_of(theirs)
        assert ours.rows == 3
        assert _fingerprint(ours, labels_of(ours)) == _fingerprint(theirs, labels_of(theirs))
        assert ours.row_files.read(ours.class_folders.path(0)) == (elsewhere / "2.jpg").read_bytes()


def test_a_readable_folder_of_the_system_is_a_class_as_for_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "d", ["a/1.jpg", "b/1.jpg", "lost+found/1.jpg"])
    assert rows_of(open_split(str(folder), "train")) == rows_of(by_datasets(folder, monkeypatch)["train"])


def test_all_endings_are_pictures_to_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending in (*ENDINGS, *(ending.upper() for ending in ENDINGS)):
        folder = make(tmp_path / ending, [f"a/1jp{ending}", f"b/2jp{ending}"])
        theirs = by_datasets(folder, monkeypatch)["train"]
        assert rows_of(open_split(str(folder), "train")) == rows_of(theirs)
        shutil.rmtree(folder)


def test_a_run_of_an_older_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows its files by names, sizes and times."""
    folder = make(tmp_path / "d", ["train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg"])
    older, split = by_datasets(folder, monkeypatch)["train"].fingerprint, open_split(str(folder), "train")
    assert older != split.fingerprint
    require_same_shards(split, older)
    os.utime(folder / "train" / "a" / "1.jpg", (1, 1))
    with pytest.raises(InputError, match=r"have changed.*a/1.jpg .was \d+ bytes"):
        require_same_shards(split, older)


def test_changes_since_the_run_began_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", ["train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg"])
    began = open_split(str(folder), "train").fingerprint
    moved = shutil.copytree(folder, tmp_path / "copy")
    require_same_shards(open_split(str(moved), "train"), began)
    (folder / "train" / "a" / "2.jpg").unlink()
    with pytest.raises(InputError, match=r"train/a .was [\d,]+ bytes, etag 2 files .*; now [\d,]+ bytes, etag 1 files"):
        require_same_shards(open_split(str(folder), "train"), began)


@pytest.mark.parametrize(
    "names",
    [
        ["1.jpg", "2.jpg"],
        ["a/1.jpg", "a/2.jpg"],
        ["a/1.jpg", "b/c/2.jpg"],
        ["a/1.jpg", "b/2.jpg", "3.jpg"],
        ["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"],
    ],
)
def test_where_datasets_finds_no_classes_it_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    folder = str(make(tmp_path / "d", names))
    theirs = load_dataset(folder, streaming=True)
    assert all("label" not in (split.features or {}) for split in theirs.values())
    split = next(iter(theirs))
    with monkeypatch.context() as patch:
        patch.setattr(opening, "has_no_classes", lambda index, path: False)
        with pytest.raises(InputError) as slow:
            open_split(folder, split)
    monkeypatch.setattr(opening, "_open", lambda path, is_glob: pytest.fail("`datasets` was asked"))
    with pytest.raises(InputError) as fast:
        open_split(folder, split)
    assert str(fast.value) == str(slow.value)


@pytest.mark.parametrize("names", LEFT.values(), ids=LEFT)
def test_only_what_has_no_classes_is_refused(tmp_path: Path, names: list[str]) -> None:
    folder = str(make(tmp_path / "d", names))
    if class_folders.has_no_classes(index_of(folder), folder):
        theirs = load_dataset(folder, streaming=True)
        assert all("label" not in (split.features or {}) for split in theirs.values())
