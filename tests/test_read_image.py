"""A picture must be of a few kinds and of a bounded size; opening it may run nothing, never wait, nor fill memory."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encode
from PIL import Image

from seresnet_hub.data.decoding import Decoder
from seresnet_hub.data.read_image import FORMATS, open_picture, read_file, read_image, takes_too_long
from seresnet_hub.data.transforms import evaluation_transform
from seresnet_hub.errors import InputError
from seresnet_hub.inference.predict import predict

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n"


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for Ghostscript first on PATH; the file that is returned exists once it has run."""
    ran = tmp_path / "ran"
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (folder / name).write_text(f"#!/bin/sh\necho $0 $@ >> {ran}\nexit 0\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked for once a process
    return ran


def test_postscript_reaches_no_other_program(ghostscript: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.eps"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(InputError, match=rf"{name}: not an image"):
            read_image(tmp_path / name)
    decoder = Decoder(evaluation_transform(input_size=(3, 8, 8), interpolation="bilinear", crop_pct=1.0), "fast")
    with pytest.raises(InputError, match="not an image"):
        decoder.decode(EPS)
    assert not ghostscript.exists()
    with Image.open(io.BytesIO(EPS)) as opened, pytest.raises(OSError):  # noqa: PT011  # the stand-in makes no picture
        opened.load()
    assert ghostscript.exists()  # so that it would have been noticed


@pytest.mark.parametrize("format", FORMATS)
def test_the_formats_that_are_named_are_read(photo: Image.Image, format: str) -> None:
    shown = read_image(encode(photo, format))
    assert (shown.size, shown.mode) == (photo.size, "RGB")


@pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "SGI", "ICNS", "JPEG2000", "DDS", "PDF"])
def test_other_formats_are_not(photo: Image.Image, format: str) -> None:
    with pytest.raises(InputError, match=r"not an image of a kind that is read \(BMP, GIF, JPEG"):
        read_image(encode(photo, format))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file that says it is so large, and holds a line or none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(1_000_000_000, 1), (1, 1_000_000_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="too large a picture"):
        read_image(png_of_size(*size))


def test_the_limit_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(InputError, match=r"10000 x 10000 pixels, of which 89,478,485 are read at most"):
        open_picture(png_of_size(10_000, 10_000))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_thousands_of_scans_is_refused(progressive: bool) -> None:
    """A progressive file is decoded anew in each scan, and a scan takes ten bytes."""
    whole = encode(Image.new("RGB", (4000, 4000)), "JPEG", progressive=progressive)
    scan = whole.rindex(b"\xff\xda")
    length = int.from_bytes(whole[scan + 2 : scan + 4], "big")
    hostile = whole[:-2] + whole[scan : scan + 2 + length] * 5000 + b"\xff\xd9"
    assert not takes_too_long(whole, 4000 * 4000)
    with pytest.raises(InputError, match="too many scans"):
        read_image(hostile)
    decoder = Decoder(evaluation_transform(input_size=(3, 8, 8), interpolation="bilinear", crop_pct=1.0), "fast")
    with pytest.raises(InputError, match="too many scans"):
        decoder.decode(hostile)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_lies_behind_a_jpeg_is_no_scan_of_it(progressive: bool) -> None:
    """Phones put a video there; so may a thumbnail in front have scans of its own."""
    thumbnail = encode(Image.new("RGB", (16, 16)), "JPEG") * 40
    picture = encode(Image.new("RGB", (4000, 4000)), "JPEG", progressive=progressive, exif=b"Exif\0\0" + thumbnail)
    video = b"\xff\xda\x00\x0c" * 5000
    for data in (picture + video, memoryview(picture + video)):
        assert not takes_too_long(data, 4000 * 4000)
        assert read_image(data).size == (4000, 4000)


def test_a_jpeg_of_a_million_empty_segments_is_refused() -> None:
    whole = encode(Image.new("RGB", (4000, 4000)), "JPEG")
    hostile = whole[:-2] + b"\xff\xfe\x00\x02" * 1_000_000 + whole[-2:]
    assert takes_too_long(hostile, 4000 * 4000)


@pytest.mark.parametrize("hidden", [b"\xff\xd8", b"\xff\x05\xff\xff", b"\xff\xd0", b"\xff\x00\xff\xff\xff", b"abc"])
def test_no_scan_hides_behind_bytes_that_a_decoder_passes_over(hidden: bytes) -> None:
    whole = encode(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)
    scan = whole.rindex(b"\xff\xda")
    length = int.from_bytes(whole[scan + 2 : scan + 4], "big")
    hostile = whole[:-2] + hidden + whole[scan : scan + 2 + length] * 5000 + b"\xff\xd9"
    assert takes_too_long(hostile, 4000 * 4000)


def test_grey_of_32_bits_is_scaled_as_16_bits_are() -> None:
    levels = np.array([[0, 128, 129, 65535, 70000, -5]], dtype=np.int32)
    shown = np.asarray(read_image(Image.fromarray(levels)))[0, :, 0]
    assert shown.tolist() == [round(min(max(level, 0), 65535) / 257) for level in levels[0].tolist()]


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), Path("/dev/tty")):
        if path.exists():
            with pytest.raises(InputError, match=f"{path}: no regular file"):
                read_image(path)
    with pytest.raises(InputError, match=r"directory"):
        read_file(tmp_path)
    with pytest.raises(InputError, match="null"):
        read_image("a\0b.png")


def test_large_files_are_refused_by_their_size(tmp_path: Path) -> None:
    with (tmp_path / "hole.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="hole.png: too large a file"):
        read_image(tmp_path / "hole.png")


def test_a_file_that_grows_while_it_is_read_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "growing.png"
    path.write_bytes(b"1" * 100)
    real = os.fstat

    def grow_after(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        with path.open("ab") as file:
            file.write(b"2")
        return found

    monkeypatch.setattr("seresnet_hub.data.read_image.os.fstat", grow_after)
    with pytest.raises(InputError, match="changed while it was read"):
        read_file(path)
    monkeypatch.undo()
    assert read_file(path) == path.read_bytes()


def test_opening_is_safe_in_threads(photo: Image.Image) -> None:
    data = encode(photo)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                read_image(data)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize(("size", "crop_pct"), [(224, 1e-9), (224, 0.001), (100_000, 1.0), (0, 1.0), (8, float("nan"))])
def test_transforms_that_no_memory_can_hold_are_refused(size: int, crop_pct: float) -> None:
    with pytest.raises(InputError, match="input size"):
        evaluation_transform(input_size=(3, size, size), interpolation="bicubic", crop_pct=crop_pct)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_picture_too_narrow_is_not_made_a_picture_of_gigabytes(size: tuple[int, int], tmp_path: Path) -> None:
    import timm

    picture = encode(Image.new("RGB", size), "JPEG")
    transform = evaluation_transform(input_size=(3, 224, 224), interpolation="bicubic", crop_pct=0.875)
    for name in ("fast", "pil"):
        decoder = Decoder(transform, name)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="too narrow to be resized to 256 pixels"):
            decoder.apply(decoder.decode(picture), torch.empty(3, 224, 224, dtype=torch.uint8))
    (tmp_path / "narrow.jpg").write_bytes(picture)
    model = timm.create_model("seresnet18", num_classes=2)
    with pytest.raises(InputError, match=r"narrow.jpg: a picture of .* too narrow"):
        predict(model, tmp_path / "narrow.jpg")
