"""A picture must reach the model as a viewer shows it, whatever its file format, prepared as timm would."""

from __future__ import annotations

import errno
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from conftest import encode
from PIL import Image
from timm.data import auto_augment as timms_augmentation

from seresnet_hub.data.folder_index import index_of
from seresnet_hub.data.image_folders import left_out_of
from seresnet_hub.data.read_image import read_image
from seresnet_hub.data.transforms import evaluation_transform, normalize, seed_from, seeded, training_transform
from seresnet_hub.errors import InputError
from seresnet_hub.inference.find_images import found_in


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_grey_becomes_three_equal_channels(photo: Image.Image) -> None:
    shown = pixels(read_image(encode(photo.convert("L"))))
    assert shown.shape == (30, 40, 3)
    assert (shown == pixels(photo.convert("L"))[:, :, None]).all()


def test_transparency_is_laid_over_white() -> None:
    picture = Image.new("RGBA", (2, 1))
    picture.putpixel((0, 0), (200, 0, 0, 0))  # invisible: its hidden red must not show
    picture.putpixel((1, 0), (0, 0, 0, 128))
    shown = pixels(read_image(encode(picture)))
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert abs(shown[0, 1] - 127).max() <= 1


def test_palette_with_a_transparent_colour() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    opaque = pixels(read_image(encode(picture)))
    assert opaque[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    seen_through = pixels(read_image(encode(picture, transparency=1)))
    assert seen_through[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk_jpeg_has_the_colours_of_the_original() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    shown = pixels(read_image(encode(red.convert("CMYK"), "JPEG", quality=95)))
    assert abs(shown - pixels(red)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo: Image.Image, orientation: int) -> None:
    # How each EXIF orientation was stored, given what the viewer should show (EXIF 2.3, tag 0x0112).
    undo = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(undo(np.asarray(photo))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (pixels(read_image(encode(stored, exif=exif))) == pixels(photo)).all()


def test_sixteen_bit_grey_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    shown = pixels(read_image(encode(Image.fromarray(ramp))))
    assert abs(shown[:, :, 0] - ramp / 257).max() <= 1
    dark = np.full((8, 8), 200, dtype=np.uint16)  # a dark 16-bit picture is black to a viewer, not light grey
    assert pixels(read_image(encode(Image.fromarray(dark)))).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_cut_off_file_is_refused(photo: Image.Image, format: str, tmp_path: Path) -> None:
    data = encode(photo.resize((200, 200)), format)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cut: not"):
        read_image(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    with pytest.raises(InputError, match="notes.txt: not an image"):
        read_image(text)
    with pytest.raises(InputError, match="missing.png: No such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="directory"):
        read_image(tmp_path)


def test_folders_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encode(Image.new("RGB", (9, 9))))
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("shut"):  # as to a person who has no right to it; root has
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    with caplog.at_level(logging.WARNING):
        assert list(found_in(str(tmp_path))) == [(str(tmp_path / "open" / "a.png"), False)]
    assert f"{tmp_path / 'shut'}: left out, this folder cannot be read (Permission denied)" in caplog.text
    with pytest.raises(InputError, match=r"shut: this folder cannot be read \(Permission denied\)"):
        left_out_of(index_of(str(tmp_path)))


def test_evaluation_pixels_are_timms(photo: Image.Image) -> None:
    config = {"input_size": (3, 24, 24), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    reference = timm.data.create_transform(**config, mean=mean, std=std)(photo)
    ours = normalize(evaluation_transform(**config)(photo)[None], mean=mean, std=std)[0]
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6)


def test_pad_crop_only_shifts_flips_and_pads() -> None:
    """Every output of the pad-and-crop recipe is a window of the zero-padded picture, mirrored or not."""
    values = np.arange(1, 37, dtype=np.uint8).reshape(6, 6)
    picture = Image.fromarray(np.stack([values] * 3, axis=-1))
    padded = np.pad(values, 2)
    windows = {padded[y : y + 6, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    transform = training_transform(
        crop="pad", input_size=(3, 6, 6), interpolation="bilinear", crop_padding=2, scale=(1, 1), horizontal_flip=0.5
    )
    seen, mirrored = set(), 0
    for draw in range(300):
        with seeded(draw):
            out = transform(picture)[0].numpy()
        flipped = np.ascontiguousarray(out[:, ::-1])
        assert out.tobytes() in windows or flipped.tobytes() in windows
        mirrored += flipped.tobytes() in windows
        seen |= {out.tobytes(), flipped.tobytes()} & windows
    assert seen == windows
    assert 100 < mirrored < 200


def operations_named(transform: object, name: str) -> list[timms_augmentation.AugmentOp]:
    augmentation = next(step for step in transform.transforms if hasattr(step, "ops"))  # type: ignore[attr-defined]
    return [operation for operation in augmentation.ops if operation.name == name]


def test_posterizing_to_no_bits_is_black_with_any_pillow(photo: Image.Image) -> None:
    """Pillow 13 refuses 0 bits, which timm asks for at magnitude 10; before, what was left of a pixel was nothing."""
    changes = {"crop": "resized", "interpolation": "bilinear", "crop_padding": 0, "scale": (1, 1), "horizontal_flip": 0}
    transform = training_transform(input_size=(3, 8, 8), auto_augment="rand-m9-mstd1.0-inc1", **changes)  # type: ignore[arg-type]
    (operation,) = operations_named(transform, "PosterizeIncreasing")
    for magnitude, bits in ((10, 0), (9, 1), (5, 2), (1, 4)):
        operation.magnitude, operation.magnitude_std, operation.prob = magnitude, 0, 1.0
        assert (pixels(operation(photo)) == (pixels(photo) >> (8 - bits) << (8 - bits))).all()
    # timm's own stays as it is, for others in this process.
    assert timms_augmentation.AugmentOp("PosterizeIncreasing").aug_fn is timms_augmentation.NAME_TO_OP["Posterize"]
    assert timms_augmentation.NAME_TO_OP["Posterize"] is timms_augmentation.posterize


@pytest.mark.parametrize("text", ["rand-m9-x3", "nonsense", "ta_wid", "original-x3"])
def test_an_augmentation_that_timm_cannot_read_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"auto_augment={text}: "):
        training_transform(
            crop="resized", input_size=(3, 8, 8), interpolation="bilinear", crop_padding=0, scale=(1, 1),
            horizontal_flip=0, auto_augment=text,
        )  # fmt: skip


def test_seeded_draws_repeat_and_leave_the_outer_streams_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    outer = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = draw()
    with seeded(3, 4):
        inner = draw()
    assert [first, draw()] == outer
    with seeded(3, 4):
        assert draw() == inner
    with seeded(4, 3):
        assert draw() != inner
    assert 0 <= seed_from(1, 2) < 2**63
    assert len({seed_from(0, k) for k in range(1000)}) == 1000
