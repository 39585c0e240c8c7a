"""A zip archive is read as its writer meant it, or refused: damage shows, and nothing hides beside its members."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_seeds import mmengine, timm

from seresnet_hub.checkpoints.reader import read_checkpoint
from seresnet_hub.checkpoints.zip_directory import members_of
from seresnet_hub.errors import InputError


def saved(path: Path, count: int = 64) -> bytes:
    torch.save({"w": torch.arange(float(count)), "b": torch.ones(3)}, path)
    return path.read_bytes()


def test_members_are_where_the_standard_library_finds_them(tmp_path: Path) -> None:
    """Protects names, places and checksums: the reference is `zipfile`, on archives of PyTorch's and of its own."""
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("a/ä", b"123")
        with archive.open(zipfile.ZipInfo("a/long"), "w", force_zip64=True) as member:
            member.write(b"4567")
    for content in (saved(tmp_path / "a.pth"), plain.getvalue(), mmengine(), timm()):
        found = members_of(memoryview(content))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert list(found) == archive.namelist()
            for name, member in found.items():
                start, size = member.place()
                assert content[start : start + size] == archive.read(name)
                assert member.checksum == archive.getinfo(name).CRC


def test_a_changed_byte_shows(tmp_path: Path) -> None:
    """Protects from weights that changed on a disk or on their way, in any byte of any member."""
    path = tmp_path / "a.pth"
    content = saved(path)
    for member in members_of(memoryview(content)).values():
        start, size = member.place()
        for at in {start, start + size // 2, start + size - 1}:
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(InputError, match=r"a\.pth"):
                read_checkpoint(path)
    weights = members_of(memoryview(content))["a/data/0"]
    path.write_bytes(content[: weights.start] + b"\1" + content[weights.start + 1 :])
    with pytest.raises(InputError, match="a/data/0 has not the bytes that it was written with: it is damaged"):
        read_checkpoint(path)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    """Protects files of those who told PyTorch to leave the checksums out."""
    torch.serialization.set_crc32_options(False)
    try:
        content = saved(tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not any(member.checksum for member in members_of(memoryview(content)).values())
    assert torch.equal(read_checkpoint(tmp_path / "a.pth").tensors["b"], torch.ones(3))


@pytest.mark.parametrize("kind", ["zip", "legacy", "arrays"])
def test_bytes_behind_the_end_are_refused(tmp_path: Path, kind: str) -> None:
    """Protects from a second file that hides behind the first; the message says how many bytes, and what to do."""
    path = tmp_path / "a.pth"
    saved(path)
    if kind != "zip":
        torch.save({"w": torch.ones(3)} if kind == "legacy" else 3, path, _use_new_zipfile_serialization=False)
    if kind == "arrays":
        path.write_bytes(b"\x80\x02}.")
    content = path.read_bytes()
    for behind in (b"x", bytes(100), content):
        path.write_bytes(content + behind)
        with pytest.raises(InputError, match=r"behind|end is not|directory is not") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(content + bytes(100))
    with pytest.raises(InputError, match="there are 100 bytes behind .*get it again"):
        read_checkpoint(path)


def test_archives_that_readers_would_understand_differently_are_refused(tmp_path: Path) -> None:
    """Protects from files that are one thing here and another elsewhere."""
    path = tmp_path / "a.pth"
    content = saved(path)
    directory = content.index(b"PK\x01\x02")
    end = len(content) - 22
    name = content.index(b"a/data/0", directory)
    changes = {
        "another name at its place": (name, b"a/data/9"),
        "a place before another": (directory + 42, struct.pack("<L", 2**31)),
        "fewer members": (end + 8, struct.pack("<2H", 1, 1)),
        "a comment": (end + 20, b"\1"),
        "another directory": (end + 16, struct.pack("<L", 0)),
        "another disk": (end + 4, b"\1"),
    }
    for at, new in changes.values():
        path.write_bytes(content[:at] + new + content[at + len(new) :])
        with pytest.raises(InputError, match=r"a\.pth is refused"):
            read_checkpoint(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """Protects from waiting for a pipe that nobody writes to, and from reading a device that has no end."""
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero")):
        with pytest.raises(InputError, match="no file, but a pipe or a device"):
            read_checkpoint(path)
    for path in (tmp_path / ("a" * 300), tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read_checkpoint(path)
