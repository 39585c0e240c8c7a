"""The fast decoder must show what the exact one shows, and the exact one must be timm's own transforms to the pixel."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from conftest import encode
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from seresnet_hub.data.decoding import Decoder, DecoderName, TransformError, resize_into
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.transforms import Transform, evaluation_transform, seeded, training_transform
from seresnet_hub.data.units import read_unit
from seresnet_hub.errors import InputError

SIZE = 64


def train(**changes: object) -> Transform:
    settings = {
        "crop": "resized", "input_size": (3, SIZE, SIZE), "interpolation": "bilinear", "crop_padding": 4,
        "scale": (0.08, 1.0), "horizontal_flip": 0.5,
    }  # fmt: skip
    return training_transform(**{**settings, **changes})  # type: ignore[arg-type]


def evaluation(interpolation: str = "bicubic") -> Transform:
    return evaluation_transform(input_size=(3, SIZE, SIZE), interpolation=interpolation, crop_pct=0.875)


def decoded(transform: Transform, name: DecoderName, data: bytes, *seed: int) -> torch.Tensor:
    out = torch.empty(SIZE, SIZE, 3, dtype=torch.uint8).permute(2, 0, 1)
    with seeded(*seed):
        decoder = Decoder(transform, name)
        mirror = decoder.apply(decoder.decode(data), out)
    return out.flip(-1) if mirror else out


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = (a.double() - b.double()).square().mean().item()
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


@pytest.fixture
def jpeg() -> bytes:
    """A picture with edges, gradients and some noise, 300 x 200."""
    x, y = np.meshgrid(np.arange(300), np.arange(200))
    noise = np.random.default_rng(0).normal(0, 6, (200, 300, 3))
    pixels = np.stack([x * 0.8, y * 1.2, 120 + 90 * np.sin(x / 9) * np.cos(y / 13)], axis=-1) + noise
    pixels[60:120, 80:200] = 255 - pixels[60:120, 80:200]
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "JPEG", quality=90)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_fast_way_makes_the_same_crops_within_40_db(jpeg: bytes, interpolation: str) -> None:
    transform = train(interpolation=interpolation)
    pairs = [(decoded(transform, "fast", jpeg, k), decoded(transform, "pil", jpeg, k)) for k in range(30)]
    assert min(psnr(*pair) for pair in pairs) > 40
    whole = evaluation(interpolation)
    assert psnr(decoded(whole, "fast", jpeg), decoded(whole, "pil", jpeg)) > 40


def test_real_photographs_agree_within_40_db(imagenet_sample: Path) -> None:
    rows = read_unit(open_split(str(imagenet_sample), "train"), 0)[:40]
    for transform in (train(), evaluation()):
        pairs = [
            (decoded(transform, "fast", row.image["bytes"], k), decoded(transform, "pil", row.image["bytes"], k))
            for k, row in enumerate(rows)
            if row.image
        ]
        assert min(psnr(*pair) for pair in pairs) > 40


def test_pictures_of_a_few_pixels_are_cropped_as_timm_does() -> None:
    """timm rounds the sides of a crop, down to none; the exact way's answer counts, and the draws after it."""
    for size in ((1, 1), (2, 1), (1, 3), (2, 2), (5, 1)):
        data = encode(Image.new("RGB", size, (200, 30, 90)), "JPEG")
        for seed in range(20):
            assert torch.equal(decoded(train(), "fast", data, seed), decoded(train(), "pil", data, seed)), (size, seed)


def test_an_orientation_that_only_xmp_names_is_followed() -> None:
    plain = encode(Image.fromarray(np.arange(40 * 20 * 3, dtype=np.uint8).reshape(20, 40, 3)), "JPEG")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    turned = plain[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + plain[2:]
    exact = decoded(evaluation(), "pil", turned)
    assert not torch.equal(exact, decoded(evaluation(), "pil", plain))
    assert psnr(decoded(evaluation(), "fast", turned), exact) > 40


def test_other_pictures_go_the_exact_way(jpeg: bytes) -> None:
    photo = Image.open(io.BytesIO(jpeg))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    grey16 = Image.fromarray(np.linspace(0, 65535, 90 * 90).astype(np.uint16).reshape(90, 90))
    others = {
        "png": encode(photo), "webp": encode(photo, "WEBP"), "cmyk": encode(photo.convert("CMYK"), "JPEG"),
        "rotated": encode(photo, "JPEG", exif=rotated), "16 bit": encode(grey16),
        "transparent": encode(photo.convert("RGBA")), "palette": encode(photo.convert("P")),
    }  # fmt: skip
    for name, data in others.items():
        for transform in (train(), evaluation()):
            assert torch.equal(decoded(transform, "fast", data, 5), decoded(transform, "pil", data, 5)), name


def test_grey_and_progressive_jpegs_go_the_fast_way(jpeg: bytes) -> None:
    photo = Image.open(io.BytesIO(jpeg))
    for data in (encode(photo.convert("L"), "JPEG"), encode(photo, "JPEG", progressive=True)):
        fast, exact = decoded(train(), "fast", data, 1), decoded(train(), "pil", data, 1)
        assert psnr(fast, exact) > 40
        assert not torch.equal(fast, exact)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("name", ["fast", "pil"])
def test_a_cut_off_jpeg_is_refused(jpeg: bytes, kept: float, name: DecoderName) -> None:
    with pytest.raises(InputError, match="not a"):
        decoded(train(), name, jpeg[: int(kept * len(jpeg))])


def test_resizing_in_place_is_torchvisions(jpeg: bytes) -> None:
    pixels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(jpeg))).copy()).permute(2, 0, 1)
    for mode in ("bilinear", "bicubic"):
        theirs = v2.functional.resize(pixels, [SIZE, SIZE], InterpolationMode(mode), antialias=True)
        assert torch.equal(
            resize_into(pixels, mode, torch.empty(SIZE, SIZE, 3, dtype=torch.uint8).permute(2, 0, 1)), theirs
        )


@pytest.mark.parametrize(
    ("auto_augment", "color_jitter"),
    [(None, 0.0), (None, 0.4), ("rand-m9-mstd0.5-inc1", 0.0), ("original", 0.0), ("v0", 0.0), ("3a", 0.3)],
)
def test_the_exact_way_is_timms_to_the_pixel(jpeg: bytes, auto_augment: str | None, color_jitter: float) -> None:
    """RandAugment, AutoAugment, 3-Augment and colour jitter give timm's own pixels, given the same random draws."""
    theirs = timm.data.create_transform(
        (3, SIZE, SIZE), is_training=True, scale=(0.08, 1.0), hflip=0.5, interpolation="bilinear", normalize=False,
        auto_augment=auto_augment, color_jitter=color_jitter or None,
    )  # fmt: skip
    ours = train(auto_augment=auto_augment, color_jitter=color_jitter)
    results = []
    for k in range(25):
        with seeded(3, 1, k):
            expected = theirs(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        assert torch.equal(decoded(ours, "pil", jpeg, 3, 1, k), expected)
        results.append(expected)
    assert len({tuple(image.flatten().tolist()) for image in results}) == 25


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_trivial_augment_is_that_of_torchvisions_recipe(jpeg: bytes, interpolation: str) -> None:
    """As torchvision's training reference puts it: crop, flip, TrivialAugmentWide with black gaps, then the tensor."""
    mode = InterpolationMode(interpolation)
    trivial = transforms.TrivialAugmentWide(interpolation=mode)
    theirs = transforms.Compose([transforms.RandomHorizontalFlip(0.5), trivial, transforms.PILToTensor()])
    ours = train(auto_augment="ta_wide", interpolation=interpolation, color_jitter=0.4)
    crop = train(interpolation=interpolation, horizontal_flip=0.0).transforms[0]  # type: ignore[attr-defined]
    for k in range(60):
        with seeded(k):
            expected = theirs(crop(Image.open(io.BytesIO(jpeg)).convert("RGB")))
        assert torch.equal(decoded(ours, "pil", jpeg, k), expected)


@pytest.mark.parametrize("name", ["fast", "pil"])
@pytest.mark.parametrize("changes", [{}, {"auto_augment": "rand-m9-mstd1.0-inc1"}, {"auto_augment": "ta_wide"},
                                     {"crop": "pad", "auto_augment": "augmix-m3"}])  # fmt: skip
def test_a_picture_decoded_once_is_as_good_as_new(jpeg: bytes, name: DecoderName, changes: dict[str, object]) -> None:
    """Repeated augmentation transforms a decoded picture several times: no transform may change it."""
    transform = train(**changes)
    decoder = Decoder(transform, name)
    picture = decoder.decode(jpeg)
    for k in range(40):
        out = torch.empty(SIZE, SIZE, 3, dtype=torch.uint8).permute(2, 0, 1)
        with seeded(k):
            mirror = decoder.apply(picture, out)
        assert torch.equal(out.flip(-1) if mirror else out, decoded(transform, name, jpeg, k))


class Broken:
    """A step that fails as a library does that has changed."""

    def __init__(self, *error: type[Exception]) -> None:
        self.error = error[0] if error else ValueError

    def __call__(self, picture: object) -> object:
        raise self.error("bits must be between or equal to 1 and 8")


@pytest.mark.parametrize("name", ["fast", "pil"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("error", [ValueError, InputError, OSError, TypeError])
def test_a_transforms_own_error_is_no_damage(
    jpeg: bytes, name: DecoderName, place: int, error: type[Exception]
) -> None:
    transform = train()
    transform.transforms.insert(place, Broken(error))  # type: ignore[attr-defined]
    with pytest.raises(TransformError, match=r"the transform Broken failed: \w+Error: bits must be between"):
        decoded(transform, name, jpeg)
    with pytest.raises(TransformError, match="the transform Broken failed"):
        decoded(Broken(error), name, jpeg)


def test_a_picture_too_narrow_to_be_resized_is_to_blame_itself() -> None:
    """timm's "border" crop fits the longer edge: of a picture of one row nothing is left."""
    transform = evaluation_transform(
        input_size=(3, SIZE, SIZE), interpolation="bicubic", crop_pct=0.875, crop_mode="border"
    )
    with pytest.raises(InputError, match="a picture of 2000 x 1 pixels: the transform ResizeKeepRatio failed"):
        decoded(transform, "pil", encode(Image.new("RGB", (2000, 1))))


@pytest.mark.parametrize("auto_augment", ["rand-m9-mstd0.5", "3a"])
def test_the_fast_way_augments_alike(jpeg: bytes, auto_augment: str) -> None:
    """The same draws lead to the same distortions; a few, like equalising, make small differences large."""
    transform = train(auto_augment=auto_augment)
    likeness = [psnr(decoded(transform, "fast", jpeg, k), decoded(transform, "pil", jpeg, k)) for k in range(25)]
    assert sorted(likeness)[6] > 30
    assert float(np.median(likeness)) > 40


def test_the_fast_way_draws_trivial_augment_alike(jpeg: bytes) -> None:
    transform = train(auto_augment="ta_wide")
    likeness = [psnr(decoded(transform, "fast", jpeg, k), decoded(transform, "pil", jpeg, k)) for k in range(40)]
    assert sorted(likeness)[8] > 30
    assert float(np.median(likeness)) > 40


def test_small_pictures_are_augmented_too() -> None:
    transform = train(crop="pad", auto_augment="rand-m9-mstd0.5")
    picture = encode(Image.effect_noise((SIZE, SIZE), 60).convert("RGB"))
    assert len({tuple(decoded(transform, "pil", picture, k).flatten().tolist()) for k in range(10)}) == 10
