"""The rows of tar archives must be as many as `datasets` reads, and known for good as soon as an archive is counted."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import fsspec
import pytest
from conftest import numbered_picture
from datasets import load_dataset

from seresnet_hub.data import tar_archives
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.shards import Shard, shard_states, write_record
from seresnet_hub.data.tar_archives import kept_count, rows_of_archives
from seresnet_hub.data.units import read_unit
from seresnet_hub.errors import InputError

PICTURE, LABEL = numbered_picture(1), b"1"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "cache"))


def write(path: Path, names: list[str], mode: str = "w", *, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode, format=format) as archive:  # type: ignore[call-overload]
        for name in names:
            member = tarfile.TarInfo(name.removesuffix("/"))
            content = PICTURE if name.endswith("png") else LABEL
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            elif name.endswith("@"):
                member.type, member.linkname = tarfile.SYMTYPE, "a.png"
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


ARCHIVES = {
    "pairs": ["a.png", "a.cls", "b.png", "b.cls"],
    "folders": ["x/", "x/a.png", "x/a.cls", "y/a.png", "y/a.cls", "x/b.png", "x/b.cls"],
    "one key in two places": ["a.png", "a.cls", "b.png", "b.cls", "c.png", "c.cls", "a.png", "a.cls"],
    "hidden, links, no dot": ["._a.png", "a.png", "a.cls", "README", "__x.png", "l.png@", "b.png", "b.cls"],
    "dots": ["a.b/c.1.png", "a.b/c.1.cls", "d.1.png", "d.1.cls", "e.1.png", "e.1.cls"],
    "long names": [f"{'x' * 200}{number}.{field}" for number in range(3) for field in ("png", "cls")],
}  # fmt: skip


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("names", ARCHIVES.values(), ids=ARCHIVES)
def test_rows_are_as_many_as_datasets_reads(tmp_path: Path, names: list[str], format: int) -> None:
    local = str(write(tmp_path / "a" / "1.tar", names, format=format))
    theirs = load_dataset("webdataset", data_files=local, split="train", streaming=True)
    expected = sum(1 for _ in theirs.decode(False))
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/1.tar", Path(local).read_bytes())
    for file in (local, f"memory://{tmp_path.name}/1.tar"):
        assert rows_of_archives([file], [Shard(file, 1, "x")]) == [expected]
    assert expected >= 2


def test_compressed_archives_are_counted(tmp_path: Path) -> None:
    file = str(write(tmp_path / "a" / "1.tar", ARCHIVES["pairs"], "w:gz"))
    assert rows_of_archives([file], shard_states([file])) == [2]


def test_local_pictures_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a" / "1.tar", [])
    with tarfile.open(path, "w") as archive:
        for number in range(4):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = 10_000_000
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    read = 0

    class Counting(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal read
            data = super().read(-1 if size is None else size)
            read += len(data)
            return data

    monkeypatch.setattr(tarfile, "bltn_open", lambda name, mode: Counting(name))
    assert rows_of_archives([str(path)], [Shard("a", 1, "x")]) == [4]
    assert 0 < read < 100_000


def test_each_count_is_kept_as_soon_as_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(write(tmp_path / "a" / f"train-{number}.tar", ARCHIVES["pairs"])) for number in range(4)]
    real, counted = tar_archives._rows_of, []

    def rows_of(file: str) -> int:
        if file == files[2]:
            raise KeyboardInterrupt
        return real(file)

    monkeypatch.setattr(tar_archives, "AT_ONCE", 1)
    monkeypatch.setattr(tar_archives, "_rows_of", rows_of)
    with pytest.raises(KeyboardInterrupt):
        rows_of_archives(files, shard_states(files))
    monkeypatch.setattr(tar_archives, "_rows_of", lambda file: counted.append(file) or real(file))
    assert open_split(str(tmp_path / "a" / "*.tar"), "train").unit_rows == (2, 2, 2, 2)
    assert set(counted) >= {files[2]}
    assert not {files[0], files[1]} & set(counted)


def test_a_changed_archive_is_counted_again(tmp_path: Path) -> None:
    file = write(tmp_path / "a" / "train-0.tar", ARCHIVES["pairs"])
    assert open_split(str(tmp_path / "a"), "train").rows == 2
    write(file, [*ARCHIVES["pairs"], "c.png", "c.cls"])
    os.utime(file, (1, 1))
    assert open_split(str(tmp_path / "a"), "train").rows == 3


@pytest.mark.parametrize("record", [b"", b"{", {"archive": ["x", 1, "y"], "rows": 9}, {"rows": -1}, {"rows": True}])
def test_damaged_counts_are_made_anew(tmp_path: Path, record: bytes | dict[str, object]) -> None:
    file = str(write(tmp_path / "a" / "1.tar", ARCHIVES["pairs"]))
    (shard,) = shard_states([file])
    kept = kept_count(shard)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(record) if isinstance(record, bytes) else write_record(kept, {"archive": shard, **record})
    assert rows_of_archives([file], [shard]) == [2]


def test_a_wrong_count_is_believed_at_most_once(tmp_path: Path) -> None:
    file = str(write(tmp_path / "a" / "train-0.tar", ARCHIVES["pairs"]))
    (shard,) = shard_states([file])
    write_record(kept_count(shard), {"archive": shard, "rows": 9})
    split = open_split(str(tmp_path / "a"), "train")
    with pytest.raises(InputError, match="it gave 2 rows, not the 9 it announced"):
        read_unit(split, 0)
    assert open_split(str(tmp_path / "a"), "train").rows == 2


def test_what_cannot_be_counted_is_named(tmp_path: Path) -> None:
    twice = str(write(tmp_path / "a" / "1.tar", ["a.png", "a.png"]))
    with pytest.raises(InputError, match=r"cannot count the rows of .*1.tar: it has two members for 'png' of 'a'"):
        rows_of_archives([twice], [Shard("a", 1, "x")])
    Path(twice).write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"cannot count the rows of .*1.tar: "):
        rows_of_archives([twice], [Shard("b", 1, "x")])


def test_a_network_fault_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = write(tmp_path / "a" / "1.tar", ARCHIVES["pairs"]).read_bytes()
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{tmp_path.name}/cut.tar", content[:700])  # the answer ends within a member

    def restore(seconds: float) -> None:
        memory.pipe(f"/{tmp_path.name}/cut.tar", content)

    monkeypatch.setattr("seresnet_hub.data.read_retries.time.sleep", restore)
    assert rows_of_archives([f"memory://{tmp_path.name}/cut.tar"], [Shard("a", 1, "x")]) == [2]
