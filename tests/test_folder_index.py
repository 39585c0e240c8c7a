"""A folder must be listed once, and again only where it changed, so that ImageNet's 1,281,167 files open fast."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import encode, numbered_picture
from PIL import Image

from seresnet_hub.data import class_folders, files_ahead, folder_index, mounts, units
from seresnet_hub.data.folder_index import index_of
from seresnet_hub.data.loader import loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.units import require_unchanged_files
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe

RECIPE = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, batch_size=4, shuffle_window=9
)
IMAGENET = (1_281_167, 1000)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "UNSURE_SECONDS", -10)  # what a test made just now


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(24):
        path = tmp_path / "d" / ("train", "val")[number % 2] / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered_picture(number))
    return tmp_path / "d"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed."""
    found: list[str] = []
    real = os.scandir
    monkeypatch.setattr("os.scandir", lambda path: found.append(str(path)) or real(path))
    return found


def kept(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache" / "folders").iterdir()
    return file


def test_what_did_not_change_is_not_listed_again(pictures: Path, listed: list[str]) -> None:
    first = open_split(str(pictures), "train")
    assert len(listed) == 9
    listed.clear()
    again = open_split(str(pictures), "train")
    assert listed == []
    assert (again, again.shards) == (first, first.shards)
    (pictures / "val" / "a" / "new.png").write_bytes(b"new")
    (pictures / "val" / "d" / "e").mkdir(parents=True)
    index = index_of(str(pictures))
    assert sorted(listed) == [str(pictures / name) for name in ("val", "val/a", "val/d", "val/d/e")]
    assert index.pictures == 25
    shutil.rmtree(pictures / "train" / "b")
    listed.clear()
    assert {folder.path for folder in index_of(str(pictures)).folders} == {
        *("", "train", "train/a", "train/c", "val", "val/a", "val/b", "val/c", "val/d", "val/d/e")
    }
    assert listed == [str(pictures / "train")]


def test_a_folder_that_changed_just_now_is_listed_again(
    pictures: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of change may stay as it is for a while, on file systems with coarse times for seconds."""
    monkeypatch.undo()
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(pictures.parent / "cache"))
    index_of(str(pictures))
    state = os.stat(pictures / "train" / "a")
    (pictures / "train" / "a" / "new.png").write_bytes(b"new")
    os.utime(pictures / "train" / "a", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert index_of(str(pictures)).pictures == 25


def test_a_damaged_index_is_made_anew(pictures: Path, tmp_path: Path) -> None:
    whole = index_of(str(pictures))
    content = kept(tmp_path).read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    for damaged in (b"", b"x", content[:-1], content[:16], bytes(changed), b"\0" * len(content)):
        kept(tmp_path).write_bytes(damaged)
        assert [folder.names for folder in index_of(str(pictures)).folders] == [one.names for one in whole.folders]
        assert kept(tmp_path).read_bytes() == content
    kept(tmp_path).unlink()
    (tmp_path / "cache" / "folders" / "x").touch()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()  # nothing can be kept
    assert open_split(str(pictures), "train").rows == 12


def test_an_index_of_another_version_is_made_anew(
    pictures: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(str(pictures))
    monkeypatch.setattr(folder_index, "VERSION", 0)
    listed.clear()
    index_of(str(pictures))
    assert len(listed) == 9


def test_an_unreadable_folder_is_refused(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith(("train/b", "lost+found")):  # as to a person who has no right to it; root has
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    (pictures / "lost+found").mkdir()
    monkeypatch.setattr("os.scandir", scandir)
    for _ in range(2):
        with pytest.raises(InputError, match=r"train/b: this folder cannot be read \(Permission denied\)"):
            open_split(str(pictures), "train")
    monkeypatch.setattr("os.scandir", real)
    (pictures / "lost+found").rmdir()
    split = open_split(str(pictures), "train")
    assert split.rows == 12
    os.utime(pictures / "train" / "b")
    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(InputError, match=r"have changed, .*: train/b cannot be read \(Permission denied\)"):
        require_unchanged_files(split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("add", r"2 new in train/a \(x.png, y.png\)"),
        ("remove", r"1 missing in train/b \(10.png\)"),
        ("resize", r"1 of another size in train/c \(2.png\)"),
        ("rename", r"1 new in train/a \(z.png\); 1 missing in train/a \(0.png\)"),
        ("new class", r"1 new in train/d \(1.png\)"),
        ("class of another split", r"it has 4 classes now, 3 then"),
        ("nothing left", r"4 missing in train/a \(0.png, 12.png, 18.png …\); 4 missing in train/b"),
        ("touch", None),
        ("other split", None),
    ],
)
def test_changes_during_a_run_are_named(pictures: Path, change: str, message: str | None) -> None:
    split = open_split(str(pictures), "train")
    train = pictures / "train"
    match change:
        case "add":
            for name in "xy":
                (train / "a" / f"{name}.png").write_bytes(b"new")
        case "remove":
            (train / "b" / "10.png").unlink()
        case "resize":
            (train / "c" / "new").write_bytes(b"new")
            os.replace(train / "c" / "new", train / "c" / "2.png")
        case "rename":
            (train / "a" / "0.png").rename(train / "a" / "z.png")
        case "new class" | "class of another split":
            folder = pictures / ("train" if change == "new class" else "val") / "d"
            folder.mkdir()
            (folder / "1.png").write_bytes(b"new")
        case "nothing left":
            shutil.rmtree(train)
        case "touch":
            os.utime(train / "a")
        case "other split":
            (pictures / "val" / "a" / "new.png").write_bytes(b"new")
    if message is None:
        assert len(list(loader(split, None, RECIPE))) == 3
        return
    with pytest.raises(InputError, match=f"the files of .* have changed, .* as the same run: {message}"):
        list(loader(split, None, RECIPE))


def test_a_picture_that_was_changed_in_place_is_named_when_it_is_read(pictures: Path) -> None:
    """The folder's time of change does not tell it, and no other file is looked at."""
    path = pictures / "train" / "a" / "0.png"
    path.write_bytes(encode(Image.new("RGB", (40, 50))))
    split = open_split(str(pictures), "train")
    path.write_bytes(numbered_picture(0))
    again = open_split(str(pictures), "train")
    require_unchanged_files(again)
    with pytest.raises(InputError, match=r"train/a/0.png.: the file has \d+ bytes, not the \d+ it had when"):
        list(loader(again, None, RECIPE))
    assert open_split(str(pictures), "train").fingerprint != split.fingerprint  # it was listed anew
    assert len(list(loader(str(pictures), "train", RECIPE))) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_list(pictures: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    expected = list(loader(str(pictures), "train", RECIPE))
    split = open_split(str(pictures), "train")
    with monkeypatch.context() as patch:
        for name in ("scandir", "listdir", "walk"):
            patch.setattr(f"os.{name}", lambda *path: pytest.fail("listed again"))
        found = list(loader(split, None, RECIPE, workers=workers))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_rows_are_made_when_their_batch_is(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = class_folders.ClassFolders.path
    monkeypatch.setattr(class_folders.ClassFolders, "path", lambda self, row: made.append(row) or real(self, row))
    batches = iter(loader(str(pictures), "train", replace(RECIPE, batch_size=2)))
    for number in range(1, 7):
        next(batches)
        assert len(made) == 2 * number
    assert sorted(made) == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_files_on_another_machine_are_read_ahead(pictures: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    expected = list(loader(str(pictures), "train", RECIPE))
    monkeypatch.setattr(mounts, "kind_of", lambda path, lines: "nfs4")
    split = open_split(str(pictures), "train")
    assert split.is_far
    assert not split.remote
    for one, other in zip(loader(split, None, RECIPE, workers=workers), expected, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)
    # What cannot be read ends no other batch, and is named.
    (pictures / "train" / "a" / "0.png").write_bytes(b"no picture".ljust(len(numbered_picture(0))))
    damaged = loader(split, None, replace(RECIPE, corrupt_share=0.5), workers=workers)
    assert sum(int(batch.mask.sum()) for batch in damaged) == 11
    assert "0.png" in damaged.skipped[0]


def test_coming_batches_are_being_read(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = units.picture_bytes

    def picture_bytes(split: object, image: dict[str, object]) -> bytes:
        asked.append(str(image["path"]))
        return real(split, image)  # type: ignore[arg-type]

    monkeypatch.setattr(mounts, "kind_of", lambda path, lines: "lustre")
    monkeypatch.setattr(files_ahead, "picture_bytes", picture_bytes)
    monkeypatch.setattr(files_ahead, "AHEAD", 6)
    batches = iter(loader(str(pictures), "train", RECIPE))
    next(batches)
    deadline = time.monotonic() + 60
    while len(asked) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(asked) == len(set(asked)) == 12  # its own four, and two more batches


@pytest.mark.slow
def test_a_folder_of_imagenets_size_opens(tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes = IMAGENET
    free = os.statvfs(tmp_path)
    if free.f_favail < 1.2 * images or free.f_bavail * free.f_frsize < 2 * images * max(free.f_frsize, 4096):
        pytest.skip("too few free inodes, or too small a disk")
    monkeypatch.setattr(folder_index, "UNSURE_SECONDS", 3)
    content = encode(Image.new("RGB", (8, 8)), "JPEG")
    root = tmp_path / "imagenet"
    try:
        for number in range(classes):
            name = f"n{number:08}"
            (root / "train" / name).mkdir(parents=True)
            folder = os.open(root / "train" / name, os.O_RDONLY)
            for image in range(images // classes + (number < images % classes)):
                file = os.open(f"{name}_{image}.JPEG", os.O_WRONLY | os.O_CREAT, dir_fd=folder)
                os.write(file, content)
                os.close(file)
            os.close(folder)
        time.sleep(3.5)
        seconds = []
        for _ in range(2):
            listed.clear()
            start = time.monotonic()
            split = open_split(str(root), "train")
            seconds.append(time.monotonic() - start)
        assert (split.rows, len(split.class_names or ()), listed) == (images, classes, [])
        assert seconds[0] < 60
        assert seconds[1] < 5
        recipe = replace(RECIPE, batch_size=64, lanes=24)
        for batch, _ in zip(loader(split, None, recipe, workers=2), range(20), strict=False):
            assert batch.whole
        assert listed == []
        (root / "train" / "n00000007" / "n00000007_3.JPEG").unlink()
        with pytest.raises(InputError, match=r"1 missing in train/n00000007 \(n00000007_3.JPEG\)"):
            require_unchanged_files(split)
        assert listed == [str(root / "train" / "n00000007")]
    finally:
        shutil.rmtree(root)
