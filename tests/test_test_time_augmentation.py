"""A mean over views must be the mean of the passes that a person would do by hand."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
from conftest import WriteSplit, encode
from PIL import Image
from sklearn.metrics import log_loss
from torch import nn
from torchvision import transforms

from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.evaluate import evaluate

IMAGES = 23


def picture(number: int) -> Image.Image:
    """A picture of noise, wide or tall, of even and odd sides."""
    random_numbers = np.random.default_rng(number)
    shape = (40 + number % 7, 52 - 3 * (number % 5), 3)
    noise = random_numbers.integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(noise if number % 2 else np.ascontiguousarray(noise.transpose(1, 0, 2)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("seresnet20_cifar", num_classes=10)


@pytest.fixture
def split(write_split: WriteSplit) -> Split:
    images = [encode(picture(number)) for number in range(IMAGES)]
    return open_split(str(write_split([[9, 8], [6]], images=images, split="test")), "test")


def by_hand(model: nn.Module, views: Any, prepare: Any) -> np.ndarray:
    """The mean probabilities of each picture, `views` of it taken by Pillow, one pass each."""
    model.eval()
    rows = []
    with torch.no_grad():
        for number in range(IMAGES):
            opened = Image.open(BytesIO(encode(picture(number))))
            rows.append(torch.stack([model(prepare(view)[None])[0].double().softmax(0) for view in views(opened)]))
    return torch.stack(rows).mean(1).numpy()


def require_same(found: Any, probabilities: np.ndarray) -> None:
    labels = np.arange(IMAGES) % 10
    assert found.loss == pytest.approx(log_loss(labels, probabilities, labels=range(10)), rel=1e-5)
    assert found.records is not None
    assert np.array_equal(found.records.classes[:, 0], probabilities.argmax(1))
    assert found.records.scores == pytest.approx(-np.sort(-probabilities, axis=1)[:, :5], rel=1e-4)
    assert found.top1 == pytest.approx(100 * float(np.mean(probabilities.argmax(1) == labels)))


def test_flip_is_the_mean_of_a_picture_and_its_mirror_image(model: nn.Module, split: Split) -> None:
    config = {**timm.data.resolve_model_data_config(model), "crop_pct": 0.8}
    prepare = timm.data.create_transform(**config, is_training=False)
    resize, crop, *rest = prepare.transforms
    expected = by_hand(
        model,
        lambda opened: [crop(resize(opened)), crop(resize(opened)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)],
        transforms.Compose(rest),
    )
    found = evaluate(model, split, batch_size=8, workers=0, tta="flip", crop_pct=0.8, records=True)
    require_same(found, expected)
    assert found.tta == "flip"
    plain = evaluate(model, split, batch_size=8, workers=0, crop_pct=0.8)
    assert plain.tta is None
    assert abs(plain.loss - found.loss) > 1e-4


@pytest.mark.parametrize("crop_pct", [0.875, 0.7])
def test_tencrop_is_the_mean_over_torchvisions_ten_crops(model: nn.Module, split: Split, crop_pct: float) -> None:
    config = {**timm.data.resolve_model_data_config(model), "crop_pct": crop_pct}
    resize, _, *rest = timm.data.create_transform(**config, is_training=False).transforms
    side = int(32 / crop_pct)
    ten = transforms.TenCrop(32)
    expected = by_hand(model, lambda opened: ten(transforms.CenterCrop(side)(resize(opened))), transforms.Compose(rest))
    found = evaluate(model, split, batch_size=8, workers=0, tta="tencrop", crop_pct=crop_pct, records=True)
    require_same(found, expected)
    assert (found.input_size, found.crop_pct) == ((32, 32), crop_pct)


def test_crops_that_would_all_be_one_are_refused(model: nn.Module, split: Split) -> None:
    with pytest.raises(InputError, match=r"tencrop: with crop_pct=1 a crop is the whole picture.*--crop-pct 0.875"):
        evaluate(model, split, workers=0, tta="tencrop")
    with pytest.raises(InputError, match="tta=mirror: must be flip or tencrop"):
        evaluate(model, split, workers=0, tta="mirror")  # type: ignore[arg-type]


def test_a_mean_in_another_precision_is_finite(model: nn.Module, split: Split) -> None:
    plain = evaluate(model, split, workers=0, tta="flip")
    half = evaluate(model, split, workers=0, tta="flip", precision="bf16")
    assert 0 < abs(plain.loss - half.loss) < 0.05
