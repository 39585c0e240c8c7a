"""Damaged, hostile and disguised pictures must be shown or refused: none may run, hang or fill memory."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import encode
from fuzzing import Case, attack
from PIL import Image, PngImagePlugin

from seresnet_hub.data.decoding import Decoder
from seresnet_hub.data.loader import loader
from seresnet_hub.data.read_image import MOST_PIXELS, read_image
from seresnet_hub.data.transforms import evaluation_transform, seeded, training_transform
from seresnet_hub.recipes.recipe import get_recipe

SMALL, LARGE = 150, 2000
SIZE = 32
ROWS = 10  # pictures in a data set
DECODED = 4 * MOST_PIXELS  # bytes, which a picture may have by what its header says
RECIPE = replace(
    get_recipe("digits"),
    crop="resized",
    input_size=SIZE,
    batch_size=8,
    num_classes=2,
    corrupt_share=1.0,
    decoder="fast",
)


def seeds() -> dict[str, bytes]:
    """Return a small picture of each kind that is read."""
    x, y = np.meshgrid(np.arange(61), np.arange(47))
    noise = np.random.default_rng(0).integers(0, 40, (47, 61, 3))
    photo = Image.fromarray((np.stack([x * 3, y * 4, x + y], axis=-1) + noise).clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a picture")
    text.add_text("Comment", "x" * 5000, zip=True)
    palette = photo.quantize(16)
    frames = [photo.rotate(90 * k) for k in range(3)]
    levels = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    return {
        "baseline.jpg": encode(photo, "JPEG", quality=80),
        "progressive.jpg": encode(photo, "JPEG", progressive=True, quality=80),
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG"),
        "grey.jpg": encode(photo.convert("L"), "JPEG"),
        "rotated.jpg": encode(photo, "JPEG", exif=exif),
        "several.jpg": encode(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "rgb.png": encode(photo, pnginfo=text),
        "transparent.png": encode(photo.convert("RGBA")),
        "palette.png": encode(palette, transparency=3),
        "16bit.png": encode(levels),
        "interlaced.png": interlaced(),
        "animated.png": encode(frames[0], save_all=True, append_images=frames[1:]),
        "photo.webp": encode(photo, "WEBP"),
        "lossless.webp": encode(photo.convert("RGBA"), "WEBP", lossless=True),
        "animated.webp": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "palette.gif": encode(palette, "GIF"),
        "animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "photo.bmp": encode(photo, "BMP"),
        "palette.bmp": encode(palette, "BMP"),
        "photo.ppm": encode(photo, "PPM"),
        "plain.ppm": b"P3\n2 2\n255\n" + b"1 2 3 " * 4,
        "photo.tif": encode(photo, "TIFF"),
        "lzw.tif": encode(photo, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encode(photo, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(photo, "TIFF", compression="jpeg"),
        "16bit.tif": encode(levels, "TIFF"),
        "pages.tif": encode(photo.copy(), "TIFF", save_all=True, append_images=[photo.copy()]),
    }  # fmt: skip


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, pixels: bytes, *between: bytes, depth: int = 8, colour: int = 2, lace: int = 0
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def interlaced() -> bytes:
    """An 8 x 8 grey picture in the seven passes of Adam7 (PNG specification, section 8.2)."""
    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    lines = b"".join((b"\0" + bytes(range(width))) * height for width, height in passes)
    return png(8, 8, zlib.compress(lines), colour=0, lace=1)


def bombs() -> Iterator[Case]:
    """Yield small files that say or unpack to something large."""
    zeros = zlib.compress(bytes(2**28), 9)
    line = zlib.compress(bytes(99))
    yield Case("zTXt bomb", png(9, 9, line, chunk(b"zTXt", b"Comment\0\0" + zeros)), len(zeros))
    yield Case("iTXt bomb", png(9, 9, line, chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)), len(zeros))
    yield Case("iCCP bomb", png(9, 9, line, chunk(b"iCCP", b"icc\0\0" + zeros)), len(zeros))
    yield Case("texts", png(9, 9, line, *[chunk(b"tEXt", b"a\0" + bytes(1000))] * 90_000), 90_000 * 1014)
    yield Case("IDAT bomb", png(9, 9, zeros), len(zeros))
    for size in ((10**9, 1), (1, 10**9), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (0, 0)):
        yield Case(f"png of {size}", png(*size, line))
        yield Case(f"ppm of {size}", b"P6\n%d %d\n255\n" % size + bytes(99))
        yield Case(f"plain ppm of {size}", b"P3\n%d %d\n255\n" % size + b"1 2 3 " * 99)
        yield Case(
            f"bmp of {size}", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)
        )
        canvas = [min(number, 65535) for number in size]
        screen = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes(6)
        frame = b"," + struct.pack("<HHHHB", 0, 0, *canvas, 0) + b"\x02\x02L\x01\0;"
        yield Case(f"gif of {size}", screen + frame)
    # The same directory again and again, and one of a million entries.
    yield Case("tiff loop", b"II*\0\x08\0\0\0" + struct.pack("<H", 0) + struct.pack("<I", 8))
    yield Case(
        "tiff entries", b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + struct.pack("<HHII", 256, 4, 2**31, 8) * 65535
    )
    webp = struct.pack("<I", 0x2F | (16382 << 8) | ((16382 & 3) << 22))
    yield Case(
        "webp of 16383", b"RIFF" + struct.pack("<I", 40) + b"WEBPVP8L" + struct.pack("<I", 20) + webp + bytes(20)
    )


def large_pictures() -> Iterator[Case]:
    """Yield whole pictures as large as they may be, of which most memory is needed; some are small files."""
    side = int(MOST_PIXELS**0.5)
    for mode in ("1", "P", "L", "I;16", "LA", "RGB", "RGBA"):
        for format in ("PNG", "TIFF"):
            options = {"compression": "tiff_adobe_deflate"} if format == "TIFF" else {"compress_level": 1}
            yield Case(f"{mode} {format}", encode(Image.new(mode, (side, side)), format, **options), DECODED)
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            data = encode(Image.new(mode, (side, side)), "JPEG", progressive=progressive, exif=exif)
            yield Case(f"{mode} JPEG, progressive={progressive}", data, DECODED)
    whole = encode(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)
    scan = whole.rindex(b"\xff\xda")
    length = int.from_bytes(whole[scan + 2 : scan + 4], "big")
    for scans in (100, 10_000):
        yield Case(f"{scans} scans", whole[:-2] + whole[scan : scan + 2 + length] * scans + b"\xff\xd9", DECODED)
    yield Case("narrow.jpg", encode(Image.new("L", (60_000, 1)), "JPEG"), DECODED)


def disguised(photo: Image.Image) -> Iterator[Case]:
    """Yield files of other kinds, whatever they are called."""
    for format in ("ICO", "PDF", "EPS", "TGA", "PCX", "SGI", "JPEG2000", "DDS", "ICNS", "SPIDER", "XBM", "MSP", "AVIF"):
        try:
            data = encode(photo.convert("1") if format in ("XBM", "MSP") else photo, format)
        except (KeyError, OSError):  # this Pillow cannot write it
            continue
        yield Case(f"{format}.png", data, len(data))
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(%pipe%touch /tmp/x) (w) file\n%%EOF\n"
    )
    yield Case("postscript.jpg", postscript)
    yield Case("dos.png", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(postscript)) + bytes(20) + postscript)
    yield Case("psd.png", b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 9, 9, 8, 3) + bytes(300))
    yield Case(
        "fits.png", b"".join(card.ljust(80) for card in (b"SIMPLE  =  T", b"BITPIX  =  8", b"NAXIS   =  0", b"END"))
    )
    yield Case("heic.jpg", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(200))
    yield Case("wmf.png", b"\xd7\xcd\xc6\x9a\0\0" + bytes(40))
    yield Case("emf.png", b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(60))
    yield Case("zip.png", b"PK\x03\x04" + bytes(60))
    yield Case("pickle.png", b"\x80\x04cos\nsystem\n(Vid\ntR.")
    yield Case("svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
    yield Case("empty.png", b"")


NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 9000)


def mutations(number: int, seed: int) -> Iterator[Case]:
    """Yield pictures with some bytes changed, numbers in them set to extremes, parts cut out, repeated or exchanged."""
    draw = random.Random(seed)
    known = seeds()
    names = list(known)
    for k in range(number):
        name = names[k % len(names)]
        data = bytearray(known[name])
        for _ in range(draw.choice((1, 1, 2, 5, 30))):
            at = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(len(data), 64))
            kind = draw.randrange(6)
            if kind == 0:
                data[at] ^= 1 << draw.randrange(8)
            elif kind == 1:
                order, form = draw.choice("<>"), draw.choice("HI")
                value = draw.choice(NUMBERS) & (0xFFFF if form == "H" else 0xFFFFFFFF)
                data[at : at + (2 if form == "H" else 4)] = struct.pack(order + form, value)
            elif kind == 2:
                del data[at : at + draw.randrange(1, 50)]
            elif kind == 3:
                data[at:at] = data[at : at + draw.randrange(1, 200)] * draw.choice((1, 2, 20))
            elif kind == 4:
                other = known[draw.choice(names)]
                data[at:] = other[min(at, len(other)) :]
            else:
                data[at : at + 8] = draw.randbytes(8)
            if len(data) < 4:
                break
        yield Case(f"{k} {name}", bytes(data), DECODED)


def looked_at(folder: Path) -> Callable[[bytes], str]:
    """Return what does with a picture all that this package does with one."""
    sizes = {"input_size": (3, SIZE, SIZE), "interpolation": "bicubic"}
    whole = evaluation_transform(crop_pct=0.875, **sizes)
    cropped = training_transform(crop="resized", crop_padding=0, scale=(0.08, 1.0), horizontal_flip=0.5, **sizes)  # type: ignore[arg-type]
    out = torch.empty(3, SIZE, SIZE, dtype=torch.uint8)

    def look(data: bytes) -> str:
        read_image(data)
        with seeded(0):
            for decoder in (Decoder(cropped, "fast"), Decoder(whole, "fast")):
                decoder.apply(decoder.decode(data), out)
        return "shown"

    return look


def streamed(folder: Path) -> Callable[[list[bytes]], str]:
    """Return what reads pictures out of a data set, one of which is whole."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})

    def look(pictures: list[bytes]) -> str:
        rows = [{"bytes": data, "path": "../../etc/passwd"} for data in pictures]
        table = pyarrow.table({"image": rows, "label": [0] * len(rows)}, features.arrow_schema)
        place = folder / f"{os.getpid()}"
        place.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, place / "train-00000-of-00001.parquet")
        batches = loader(str(place), "train", RECIPE)
        shown = sum(int(batch.mask.sum()) for batch in batches)
        assert shown + len(batches.skipped) == len(pictures)
        assert shown >= 1
        return f"{shown} shown"

    return look


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for Ghostscript first on PATH; the file that is returned exists once it has run."""
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "gs"
    stand_in.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked for once a process
    return tmp_path / "ran"


def in_data_sets(cases: list[Case], photo: bytes) -> Iterator[Case]:
    for k in range(0, len(cases), ROWS):
        part = cases[k : k + ROWS]
        yield Case(f"rows from {part[0].name}", [case.value for case in part] + [photo], DECODED)


def check(cases: list[Case], tmp_path: Path, ran: Path) -> None:
    photo = seeds()["baseline.jpg"]
    looked_at(tmp_path)(photo)  # imports everything
    streamed(tmp_path)([photo])
    report = attack(looked_at(tmp_path), cases)
    print("pictures:", report.summary())
    assert report.findings == []
    assert {outcome.kind for outcome in report.outcomes} == {"accepted", "refused"}
    report = attack(streamed(tmp_path), in_data_sets(cases, photo), seconds=20.0 * ROWS)
    print("data sets:", report.summary())
    assert report.findings == []
    assert not ran.exists()


def test_each_seed_is_a_picture() -> None:
    for name, data in seeds().items():
        assert read_image(data).size in ((61, 47), (47, 61), (8, 8), (2, 2)), name


def test_a_few_mutated_pictures(tmp_path: Path, ghostscript: Path) -> None:
    check(list(mutations(SMALL, 1)), tmp_path, ghostscript)


def test_bombs_and_disguised_files_are_refused(tmp_path: Path, ghostscript: Path) -> None:
    photo = Image.open(BytesIO(seeds()["rgb.png"])).convert("RGB")
    other = list(disguised(photo))
    report = attack(looked_at(tmp_path), other)
    assert [outcome.kind for outcome in report.outcomes] == ["refused"] * len(other)
    check([*other, *bombs(), *mutations(27, 2)], tmp_path, ghostscript)


@pytest.mark.slow
def test_many_mutated_pictures(tmp_path: Path, ghostscript: Path) -> None:
    check(list(mutations(LARGE, 0)), tmp_path, ghostscript)


@pytest.mark.slow
def test_pictures_as_large_as_may_be(tmp_path: Path, ghostscript: Path) -> None:
    # Each is decoded three times and more, in some ten seconds of a core that has nothing else to do.
    report = attack(looked_at(tmp_path), large_pictures(), batch=1, seconds=120)
    print("large:", report.summary())
    assert report.findings == []
