"""Decoding only what a crop shows gives the bits that decoding all gives; a damaged file is refused either way."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import encode
from PIL import Image
from test_decoding import decoded, train
from warm_python import run_python

from seresnet_hub.data import decoding, jpeg_region
from seresnet_hub.data.decoding import Decoder
from seresnet_hub.data.jpeg_region import UndecodedJpeg, decode_region
from seresnet_hub.data.loader import loader
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe

is_installed = importlib.util.find_spec("nvidia") and importlib.util.find_spec(jpeg_region.LIBRARY)
installed = pytest.mark.skipif(not is_installed, reason="nvImageCodec is not installed")


def picture(width: int, height: int) -> Image.Image:
    """Coloured edges and noise, so that neighbouring samples of colour differ."""
    random = np.random.default_rng(width * height)
    pixels = random.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3)).repeat(6, axis=0).repeat(6, axis=1)
    pixels = pixels[:height, :width] + random.normal(0, 9, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


FORMS: dict[str, Callable[[Image.Image], bytes]] = {
    **{
        f"{subsampling}{' progressive' * progressive}": partial(
            encode, format="JPEG", quality=88, subsampling=subsampling, progressive=progressive
        )
        for subsampling in ("4:4:4", "4:2:2", "4:2:0")
        for progressive in (False, True)
    },
    "grey": lambda image: encode(image.convert("L"), "JPEG"),
    "restarts": partial(encode, format="JPEG", restart_marker_rows=1),
    "no luminance": partial(encode, format="JPEG", keep_rgb=True),
}


@installed
@pytest.mark.parametrize("size", [(157, 93), (18, 64), (64, 200), (16, 17), (3, 5)])
@pytest.mark.parametrize("form", FORMS)
def test_a_region_has_the_bits_of_the_whole_picture(form: str, size: tuple[int, int]) -> None:
    """torchvision decodes the whole picture; regions reach its edges, and are one pixel high or wide too."""
    data = FORMS[form](picture(*size))
    whole = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), 3, False)
    random, (width, height) = np.random.default_rng(1), size
    jpeg = UndecodedJpeg(data, height, width)
    for k in range(80):
        top, left = (int(random.integers(length)) for length in (height, width))
        rows, columns = (1 + int(random.integers(most)) for most in (height - top, width - left))
        if k % 4 == 0:
            top, left, rows, columns = (0, 0, height, width) if k == 0 else (top, left, height - top, width - left)
        region = decode_region(jpeg, top, left, rows, columns)
        assert region is not None
        assert torch.equal(region, whole[:, top : top + rows, left : left + columns])


@installed
@pytest.mark.parametrize("changes", [{}, {"interpolation": "bicubic", "auto_augment": "rand-m9-mstd0.5"}])
def test_batches_are_those_of_the_fast_decoder(changes: dict[str, object], photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated, cmyk = encode(photo, "JPEG", exif=exif), encode(photo.convert("CMYK"), "JPEG")
    for data in (*(form(picture(157, 93)) for form in FORMS.values()), rotated, cmyk, encode(photo, "PNG")):
        for k in range(5):
            expected = decoded(train(**changes), "fast", data, k)
            assert torch.equal(decoded(train(**changes), "region", data, k), expected)
            assert torch.equal(decoded(train(**changes), "region", memoryview(data), k), expected)  # type: ignore[arg-type]


@installed
def test_only_what_is_seen_once_is_decoded_in_part() -> None:
    data = FORMS["4:2:0"](picture(157, 93))
    assert isinstance(Decoder(train(), "region").decode(data), UndecodedJpeg)
    assert isinstance(Decoder(train(), "region", 3).decode(data), torch.Tensor)
    assert isinstance(Decoder(train(crop="pad"), "region").decode(data), Image.Image)


@installed
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("form", ["4:2:0", "4:2:0 progressive"])
def test_a_cut_off_file_is_refused_wherever_the_crop_is(kept: float, form: str) -> None:
    data = FORMS[form](picture(157, 93))
    for k in range(8):
        with pytest.raises(InputError, match="not a"):
            decoded(train(), "region", data[: int(kept * len(data))], k)


@installed
def test_a_mutated_file_shows_what_the_fast_decoder_shows() -> None:
    """Holes, turned bits and lost bytes anywhere. Behind the region they may pass, in a file that ends as it should."""
    random, forms = np.random.default_rng(5), [FORMS[name] for name in ("4:4:4", "4:2:2", "4:2:0", "grey", "restarts")]
    shown = refused = 0
    for k in range(300):
        data = bytearray(forms[k % len(forms)](picture(64, 48)))
        at, length = int(random.integers(len(data))), int(random.integers(1, 200))
        if k % 3 == 0:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif k % 3 == 1:
            data[at] ^= 1 << int(random.integers(8))
        else:
            del data[at : at + length]
        fast, region = (outcome(name, bytes(data), k) for name in ("fast", "region"))
        if isinstance(fast, bytes) or isinstance(region, str):
            assert fast == region, k
            shown, refused = shown + isinstance(fast, bytes), refused + isinstance(fast, str)
    assert shown > 200
    assert refused > 10


def outcome(name: decoding.DecoderName, data: bytes, seed: int) -> bytes | str:
    try:
        return decoded(train(), name, data, seed).numpy().tobytes()
    except InputError as error:
        return str(error)


@installed
def test_workers_make_the_batches_of_one_process(tmp_path: Path) -> None:
    """The library was used here before the workers are forked."""
    image = [{"bytes": FORMS["4:2:0"](picture(60 + k, 90)), "path": None} for k in range(24)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": image, "label": [0] * 24}, features=features)
    table.to_parquet(str(tmp_path / "train-00000-of-00001.parquet"), batch_size=4)
    recipe = replace(get_recipe("digits"), crop="resized", input_size=32, batch_size=8, decoder="region", lanes=6)
    batches = [
        torch.cat([batch.images.clone() for batch in loader(str(tmp_path), "train", recipe, workers=workers)])
        for workers in (0, 2)
    ]
    assert torch.equal(*batches)


def test_without_the_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_region, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'seresnet-hub\[region\]'; decoder=fast gives the same pixels"):
        Decoder(train(), "region")


@installed
def test_nothing_is_printed_where_there_is_no_gpu(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(FORMS["4:2:0"](picture(60, 90)))
    code = (
        "from pathlib import Path; from seresnet_hub.data.jpeg_region import UndecodedJpeg, decode_region; "
        f"print(decode_region(UndecodedJpeg(Path({str(file)!r}).read_bytes(), 90, 60), 1, 2, 3, 4).shape)"
    )
    done = run_python([sys.executable, "-c", code])
    assert (done.stdout.strip(), done.stderr) == ("torch.Size([3, 3, 4])", "")
