"""A row's bits must not depend on what prepares it, and a picture that cannot be read must be a row with its error."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
from conftest import encode
from PIL import Image
from torch import nn
from warm_python import children

from seresnet_hub.data.loader_workers import LoaderWorkers
from seresnet_hub.errors import InputError
from seresnet_hub.inference.predict import extract_features, iterate_features, predict
from seresnet_hub.inference.run_batches import BatchAnswers, run_batches
from seresnet_hub.inference.sources import open_sources

BATCH = 8


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("seresnet20_cifar", num_classes=7).eval()


def noise(number: int) -> Image.Image:
    size = (30 + number % 7, 40 - number % 5, 3)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, size, np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures, and of each kind of trouble one file."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(30):
        noise(number).save(root / f"{number:02}.png")
    whole = encode(noise(50), "JPEG", quality=95)
    (root / "05 truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "10 empty.jpg").write_bytes(b"")
    (root / "15 text.png").write_text("no picture")
    (root / "20 large.png").write_bytes(header_of_png(16_000, 16_000))
    (root / "25 broken.png").symlink_to("nowhere")
    (root / "26 fine\n\x1b[31m.png").write_bytes(encode(noise(51)))
    return root


BAD = {"05 truncated.jpg", "10 empty.jpg", "15 text.png", "20 large.png", "25 broken.png"}


def header_of_png(width: int, height: int) -> bytes:
    """A PNG file that says how large it is; black, so that its pixels take little room."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes((width // 8 + 1) * height))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def same(found: list[BatchAnswers], expected: list[BatchAnswers]) -> bool:
    """Whether two runs are equal in every bit."""
    return len(found) == len(expected) and all(
        (one.first, one.images, one.errors) == (other.first, other.images, other.errors)
        and torch.equal(one.logits, other.logits)
        and one.features.keys() == other.features.keys()
        and all(torch.equal(one.features[name], other.features[name]) for name in one.features)
        for one, other in zip(found, expected, strict=True)
    )


def test_each_picture_that_cannot_be_read_is_a_row(model: nn.Module, folder: Path) -> None:
    found = list(run_batches(model, open_sources([folder]), batch_size=BATCH))
    rows = {Path(name or "").name: error for one in found for name, error in zip(one.images, one.errors, strict=True)}
    assert list(rows) == sorted(os.listdir(folder))
    assert {name for name, error in rows.items() if error} == BAD
    assert "too large a picture (Image size (256000000 pixels)" in (rows["20 large.png"] or "")
    assert rows["25 broken.png"] == "No such file or directory"
    assert not any("\n" in error or name in error for name, error in rows.items() if error)
    told: list[int] = []
    classes = predict(model, folder, batch_size=BATCH, unreadable=lambda number, _: told.append(number))
    assert told == [number for number, name in enumerate(rows) if name in BAD]
    assert [bool(one) for one in classes] == [name not in BAD for name in rows]
    with pytest.raises(InputError, match=rf"^{folder}/05 truncated.jpg: not a whole image"):
        predict(model, folder, workers=2)
    with pytest.raises(InputError, match=rf"^{folder}/05 truncated.jpg: not a whole image"):
        extract_features(model, folder)


def test_bits_depend_neither_on_workers_nor_on_the_start(model: nn.Module, folder: Path) -> None:
    split, options = open_sources([folder]), {"batch_size": BATCH, "features": [None, 2]}
    expected = list(run_batches(model, split, **options))
    assert len(expected) == 5
    for workers in (1, 3):
        assert same(list(run_batches(model, split, workers=workers, **options)), expected)
        assert predict(model, folder, batch_size=BATCH, workers=workers, unreadable=lambda *_: None) == predict(
            model, folder, batch_size=BATCH, unreadable=lambda *_: None
        )
    for cuts in ([0, 1, 5], [0, 3, 4, 5]):
        for workers in (0, 2):
            ranges = zip(cuts, [*cuts[1:-1], None], strict=False)
            parts = [run_batches(model, split, start=a, stop=b, workers=workers, **options) for a, b in ranges]
            assert same([one for part in parts for one in part], expected)


def test_batches_have_the_rows_in_order_and_the_last_of_several_is_filled_up(model: nn.Module, folder: Path) -> None:
    """What the network computes of timm's own tensors, in batches that are put together here."""
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    black = transform(Image.new("RGB", (40, 40)))
    paths = [folder / name for name in sorted(os.listdir(folder))]
    inputs = [black if path.name in BAD else transform(Image.open(path)) for path in paths]
    for count, length in ((len(paths), 5 * BATCH), (BATCH - 3, BATCH - 3), (BATCH, BATCH), (BATCH + 1, 2 * BATCH)):
        padded = [*inputs[:count], *[black] * (length - count)]
        with torch.inference_mode():
            expected = torch.cat([
                model(torch.stack(padded[start : start + BATCH]).contiguous(memory_format=torch.channels_last))
                for start in range(0, length, BATCH)
            ])[:count]  # fmt: skip
        found = run_batches(model, open_sources(paths[:count]), batch_size=BATCH)
        torch.testing.assert_close(torch.cat([one.logits for one in found]), expected, rtol=1e-5, atol=1e-6)


def test_a_single_picture_costs_one_picture(model: nn.Module, folder: Path) -> None:
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        predict(model, folder / "00.png")
        predict(model, [folder / "00.png"] * 33, topk=1)
    finally:
        handle.remove()
    assert seen == [1, 32, 32]


def test_features_of_several_stages_come_out_of_one_pass(model: nn.Module, folder: Path) -> None:
    kept: dict[str, list[torch.Tensor]] = {"act1": [], "layer1": [], "layer3": [], "fc": []}
    handles: list[Any] = [
        getattr(model, name).register_forward_hook(lambda _, inputs, output, name=name: kept[name].append(
            inputs[0] if name == "fc" else output.mean((2, 3))
        )) for name in kept
    ]  # fmt: skip
    split = open_sources([folder])
    try:
        found = list(run_batches(model, split, batch_size=BATCH, features=[1, None, 0, -1]))
    finally:
        for handle in handles:
            handle.remove()
    assert {name: len(values) for name, values in kept.items()} == dict.fromkeys(kept, 5)
    for name, layer in (
        ("features", "fc"), ("features_stage0", "act1"), ("features_stage1", "layer1"), ("features_stage3", "layer3")
    ):  # fmt: skip
        expected = torch.cat(kept[layer])[: split.rows]
        assert torch.equal(torch.cat([one.features[name] for one in found]), expected)
    plain = list(run_batches(model, split, batch_size=BATCH))
    assert torch.equal(torch.cat([one.logits for one in found]), torch.cat([one.logits for one in plain]))


def test_python_calls_give_the_same_features(model: nn.Module) -> None:
    pictures = [noise(number) for number in range(11)]
    last, stem, first = extract_features(model, pictures, [None, 0, 1], batch_size=BATCH, workers=2)
    assert torch.equal(last, extract_features(model, pictures, batch_size=BATCH))
    assert torch.equal(stem, extract_features(model, pictures, 0, batch_size=BATCH))
    assert torch.equal(first.mean((2, 3)), extract_features(model, pictures, 1, batch_size=BATCH, pooled=True))
    found = list(iterate_features(model, [*pictures, b""], [None, 1], batch_size=BATCH))
    assert [one.logits for one in found] == [None, None]
    assert [error is not None for one in found for error in one.errors] == [False] * 11 + [True]
    torch.testing.assert_close(torch.cat([one.features["features"] for one in found])[:11], last)
    nothing = timm.create_model("seresnet20_cifar", num_classes=0).eval()
    assert next(iterate_features(nothing, pictures)).features["features"].shape == (11, 64)


def test_workers_are_kept_over_ranges(model: nn.Module, folder: Path) -> None:
    split = open_sources([folder])
    expected = list(run_batches(model, split, batch_size=BATCH))
    found, pids = [], set()
    with LoaderWorkers() as running:
        for start in range(5):
            options = {"start": start, "stop": start + 1, "workers": 2, "loader_workers": running}
            found += list(run_batches(model, split, batch_size=BATCH, **options))
            pids |= {child.pid for child in children()}
    assert same(found, expected)
    assert len(pids) == 2
    assert not children()


def test_whoever_takes_the_batches_is_in_settings_of_its_own(model: nn.Module, folder: Path) -> None:
    model.train()
    batches = run_batches(model, open_sources([folder]), batch_size=BATCH, precision="bf16")
    try:
        next(batches)
        assert model.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
    finally:
        batches.close()
        model.eval()


def test_autocast_computes_nearly_the_same(model: nn.Module, folder: Path) -> None:
    split = open_sources([folder])
    exact, cast = (next(run_batches(model, split, precision=precision)).logits for precision in ("no", "bf16"))
    assert not torch.equal(exact, cast)
    torch.testing.assert_close(cast, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_machine_without_resources_ends_the_run(
    model: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Else a million pictures would be called damaged, which are not."""
    real = os.open

    def opened(path: Any, *options: Any, **more: Any) -> int:
        if str(path).endswith("07.png"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return real(path, *options, **more)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(InputError, match=r"07.png: Too many open files"):
        list(run_batches(model, open_sources([folder]), batch_size=BATCH, workers=workers))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch size 0: must be at least 1"),
        ({"workers": -1}, "workers=-1: must be at least 0"),
        ({"precision": "fp8"}, "precision=fp8: must be no, bf16 or fp16"),
        ({"features": [4]}, "stage=4: the model has stages 0 to 3"),
    ],
)
def test_what_cannot_be_done_is_said(model: nn.Module, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        next(run_batches(model, open_sources([b""]), **options))


HALF_WAY = """
import sys, timm, torch
import seresnet_hub
from seresnet_hub.inference.run_batches import run_batches
from seresnet_hub.inference.sources import open_sources
model = timm.create_model("seresnet20_cifar", num_classes=7).eval()
batches = run_batches(model, open_sources([sys.argv[1]]), batch_size=4, workers=2)
next(batches)
if sys.argv[2] == "raise":
    sys.exit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("end", 0), ("raise", 3)])
def test_a_run_that_is_left_half_way_ends_well(folder: Path, how: str, code: int) -> None:
    command = [sys.executable, "-W", "error", "-c", HALF_WAY, folder, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_no_worker_outlives_what_asked_for_it(model: nn.Module, folder: Path) -> None:
    batches = run_batches(model, open_sources([folder]), batch_size=4, workers=2)
    next(batches)
    assert len(children()) == 2
    batches.close()
    assert not children()
    with pytest.raises(InputError, match="not a whole image"):
        extract_features(model, folder, workers=2, batch_size=4)
    assert not children()
