"""Shared ground of the tests: no network but loopback, a private cache, and small data sets made on the spot."""

from __future__ import annotations

import os

# Read by huggingface_hub and datasets when they are imported, so before anything else.
os.environ["OMP_NUM_THREADS"] = (
    "1"  # two test processes share the cores, and the small tensors here gain nothing from more
)
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from seresnet_hub.engines.no_telemetry import leave_out_telemetry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # as when a script is run by its path
pytest_plugins = ["hub_fixtures", "small_runs"]
leave_out_telemetry()  # a test that skips without OpenVINO imports it first
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["SERESNET_HUB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="session", autouse=True)
def _curves_of_one_form_are_drawn_once() -> Iterator[None]:
    """Histories of the same columns make the same kind of picture, and to draw one takes longer than a small run."""
    from seresnet_hub.training import loop

    real, drawn = loop.drawn_curves, dict[object, bytes]()

    def curves(history: Sequence[Mapping[str, float]], num_classes: int) -> bytes:
        columns = tuple(tuple((name, math.isfinite(value)) for name, value in row.items()) for row in history)
        form = (columns, num_classes)
        if form not in drawn:
            drawn[form] = real(history, num_classes)
        return drawn[form]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "drawn_curves", curves)
        yield


@cache
def _random_values() -> torch.Tensor:
    return torch.randn(2**22, generator=torch.Generator().manual_seed(0), device="cpu")  # not where a test builds


@pytest.fixture
def quick_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolutions of new networks get random values that exist: to draw 25 million is most of a ResNet-50's start.

    They are spread as `kaiming_normal_` has them, and are the same after the same `torch.manual_seed`.
    """
    normal, uniform = torch.nn.init.kaiming_normal_, torch.nn.init.kaiming_uniform_

    def kaiming_normal_(tensor: torch.Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"):  # type: ignore[no-untyped-def]
        values = _random_values()
        if tensor.is_meta or not tensor.is_contiguous() or tensor.numel() > len(values) // 2:
            return normal(tensor, a, mode, nonlinearity)
        start = int(torch.randint(len(values) // 2, (), device="cpu"))
        fan = torch.nn.init._calculate_correct_fan(tensor, mode)
        std = torch.nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan)
        with torch.no_grad():
            torch.mul(values[start : start + tensor.numel()], std, out=tensor.view(-1))
        return tensor

    def kaiming_uniform_(tensor: torch.Tensor, *arguments: object, **options: object):  # type: ignore[no-untyped-def]
        """What a new convolution has before its network says what it shall have."""
        return kaiming_normal_(tensor) if tensor.ndim == 4 else uniform(tensor, *arguments, **options)

    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", kaiming_normal_)
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", kaiming_uniform_)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def numbered_picture(number: int, size: int = 8) -> bytes:
    """A PNG whose every pixel spells `number`, so that a batch tells which rows it holds."""
    return encode(Image.new("RGB", (size, size), (number % 256, number // 256 % 256, number // 65536)))


def numbers_in(images: object) -> list[int]:
    """Read the numbers back from a uint8 batch of unaugmented numbered pictures."""
    pixels = images[:, :, 0, 0].long()  # type: ignore[index]
    return (pixels[:, 0] + 256 * pixels[:, 1] + 65536 * pixels[:, 2]).tolist()


WriteSplit = Callable[..., Path]


def write_shards(
    parent: Path,
    shards: Sequence[Sequence[int]],
    *,
    split: str = "train",
    classes: int = 10,
    folder: str = "numbers",
    images: Sequence[bytes] | None = None,
    labels: Sequence[int] | None = None,
) -> Path:
    """Write numbered pictures as parquet shards: one inner sequence a shard, of row groups."""
    root = parent / folder
    root.mkdir(exist_ok=True)
    rows = sum(map(sum, shards))
    images = images or [numbered_picture(k) for k in range(rows)]
    labels = labels or [k % classes for k in range(rows)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"class {k}" for k in range(classes)])}
    )
    start = 0
    for shard, groups in enumerate(shards):
        stop = start + sum(groups)
        column = [{"bytes": images[k], "path": f"{k}.png"} for k in range(start, stop)]
        table = datasets.Dataset.from_dict({"image": column, "label": list(labels[start:stop])}, features=features)
        arrow = table.with_format("arrow")[:]
        path = root / f"{split}-{shard:05d}-of-{len(shards):05d}.parquet"
        with pyarrow.parquet.ParquetWriter(path, arrow.schema) as writer:
            at = 0
            for group in groups:
                writer.write_table(arrow.slice(at, group), row_group_size=max(group, 1))
                at += group
        start = stop
    return root


def write_numbers(parent: Path) -> str:
    """33 training images (4 steps of 10 an epoch, the last of 3 images) and 7 validation images."""
    write_shards(parent, [[9, 8], [16]])
    return str(write_shards(parent, [[7]], split="validation"))


@pytest.fixture
def write_split(tmp_path: Path) -> WriteSplit:
    return partial(write_shards, tmp_path)


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    return write_numbers(tmp_path)


@pytest.fixture(scope="session")
def cifar10_copy() -> Path:
    return _shared("cifar10")


@pytest.fixture(scope="session")
def imagenet_sample() -> Path:
    return _shared("imagenet-sample")


def _shared(name: str) -> Path:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: this test runs on real images that are not part of the project")
    return folder


@pytest.fixture
def photo() -> Image.Image:
    """A picture with structure in every channel, 40 x 30."""
    x, y = np.meshgrid(np.arange(40), np.arange(30))
    pixels = np.stack([x * 6, y * 8, (x + y) * 3], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))
