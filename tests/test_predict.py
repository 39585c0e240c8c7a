"""Predictions and features must be the model's own, in its own preprocessing, whatever form the pictures come in."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from conftest import encode
from PIL import Image
from torch import nn

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.inference.predict import BATCH_SIZE, class_names, extract_features, iterate_features, predict
from seresnet_hub.models.published_weights import OWN_WEIGHTS


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("seresnet20_cifar", num_classes=7).eval()


@pytest.fixture(scope="module")
def imagenet_model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("seresnet18").eval()


def reference_input(model: nn.Module, picture: Image.Image) -> torch.Tensor:
    """The picture as timm's own documented recipe prepares it."""
    config = timm.data.resolve_model_data_config(model)
    return timm.data.create_transform(**config, is_training=False)(picture)[None]


def test_scores_are_timms_softmax(imagenet_model: nn.Module, photo: Image.Image) -> None:
    with torch.no_grad():
        expected = imagenet_model(reference_input(imagenet_model, photo)).softmax(-1)[0]
    found = predict(imagenet_model, photo, topk=4)[0]
    assert [c["index"] for c in found] == expected.topk(4).indices.tolist()
    torch.testing.assert_close(torch.tensor([c["score"] for c in found]), expected.topk(4).values)
    descriptions = timm.data.ImageNetInfo().label_descriptions()
    assert [c["name"] for c in found] == [descriptions[c["index"]] for c in found]


def test_one_picture_or_many_in_any_form(model: nn.Module, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo.save(path)
    alone = predict(model, photo)
    assert len(alone) == 1
    for form in (path, str(path), encode(photo), [photo]):
        assert predict(model, form) == alone
    pictures = [photo.rotate(k) for k in range(BATCH_SIZE + 3)]
    batched = predict(model, pictures, topk=1)
    single = [predict(model, picture, topk=1)[0] for picture in pictures]
    assert [b[0]["index"] for b in batched] == [s[0]["index"] for s in single]


def test_pictures_that_cannot_be_read_keep_their_places(model: nn.Module, photo: Image.Image) -> None:
    bad = {0, 5, BATCH_SIZE + 1}
    pictures = [b"no picture" if k in bad else photo for k in range(BATCH_SIZE + 2)]
    told: list[int] = []
    found = predict(model, pictures, topk=1, unreadable=lambda number, error: told.append(number))
    assert told == sorted(bad)
    assert [bool(classes) for classes in found] == [k not in bad for k in range(len(pictures))]
    assert predict(model, [b""] * 3, unreadable=lambda *_: None) == [[], [], []]
    with pytest.raises(InputError, match="not an image"):
        predict(model, pictures)


def test_features_are_timms(imagenet_model: nn.Module, photo: Image.Image) -> None:
    x = reference_input(imagenet_model, photo)
    with torch.no_grad():
        maps = [imagenet_model.act1(imagenet_model.bn1(imagenet_model.conv1(x)))]
        y = imagenet_model.maxpool(maps[0])
        for layer in (imagenet_model.layer1, imagenet_model.layer2, imagenet_model.layer3, imagenet_model.layer4):
            y = layer(y)
            maps.append(y)
    torch.testing.assert_close(extract_features(imagenet_model, photo), maps[-1].mean((2, 3)))
    for stage, expected in enumerate(maps):
        torch.testing.assert_close(extract_features(imagenet_model, photo, stage=stage), expected)
    torch.testing.assert_close(
        extract_features(imagenet_model, [photo, photo], stage=-1), maps[-1].expand(2, -1, -1, -1)
    )


def test_the_models_mode_is_left_as_it_was(model: nn.Module, photo: Image.Image) -> None:
    model.train()
    model.bn1.eval()  # as fine-tuning freezes a norm
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict(model, photo)
    extract_features(model, photo)
    assert model.training
    assert not model.bn1.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()


def test_class_names_come_from_the_config(model: nn.Module) -> None:
    assert class_names(model) is None
    original = model.pretrained_cfg
    names = [f"n{k}" for k in range(7)]
    for given in (names, dict(enumerate(names)), {str(k): name for k, name in enumerate(names)}):
        model.pretrained_cfg = {**original, "label_names": given}
        assert class_names(model) == names
    model.pretrained_cfg = {**original, "label_names": names, "label_descriptions": {"n3": "a thing"}}
    assert class_names(model)[3] == "a thing"
    model.pretrained_cfg = {**original, "label_names": names[:3]}  # another head's names are nobody's names
    assert class_names(model) is None
    model.pretrained_cfg = original


def test_what_cannot_be_done_is_said(model: nn.Module, photo: Image.Image) -> None:
    with pytest.raises(InputError, match="no images"):
        predict(model, [])
    with pytest.raises(InputError, match="topk=0"):
        predict(model, photo, topk=0)
    assert len(predict(model, photo, topk=50)[0]) == 7
    with pytest.raises(InputError, match="stage=4: the model has stages 0 to 3"):
        extract_features(model, photo, stage=4)
    with pytest.raises(InputError, match="no classifier"):
        predict(timm.create_model("seresnet20_cifar", num_classes=0), photo)
    with pytest.raises(InputError, match="1 channels"):
        predict(timm.create_model("seresnet20_cifar", in_chans=1), photo)


def test_the_public_names_are_these() -> None:
    assert seresnet_hub.predict is predict
    assert seresnet_hub.extract_features is extract_features
    assert seresnet_hub.iterate_features is iterate_features
    options = ["batch_size", "workers"]
    assert list(inspect.signature(predict).parameters) == ["model", "images", "topk", *options, "unreadable"]
    assert list(inspect.signature(extract_features).parameters) == ["model", "images", "stage", *options, "pooled"]


def test_a_model_may_be_given_by_its_name(photo: Image.Image) -> None:
    """Names go the way of `load`; `test_strict_loading.py` and `test_push.py` say what it refuses."""
    own = OWN_WEIGHTS[0]
    loaded = timm.create_model(own.name, pretrained=True).eval()
    for name in (own.name, own.folder, str(own.folder), f"local-dir:{own.folder}"):
        assert predict(name, photo) == predict(loaded, photo)
        assert torch.equal(extract_features(name, photo), extract_features(loaded, photo))


def test_a_damaged_model_is_named(photo: Image.Image) -> None:
    broken = timm.create_model("seresnet20_cifar").eval()
    broken.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="outputs are not finite"):
        predict(broken, photo)


def test_half_precision_models_predict(photo: Image.Image) -> None:
    torch.manual_seed(0)
    model = timm.create_model("seresnet20_cifar").eval()
    expected = predict(model, photo)[0][0]
    found = predict(model.to(torch.bfloat16), photo)[0]
    assert abs(next(c["score"] for c in found if c["index"] == expected["index"]) - expected["score"]) < 0.05


def test_an_array_is_the_picture_that_pillow_makes_of_it(model: nn.Module, photo: Image.Image) -> None:
    colours, grey = np.asarray(photo), np.asarray(photo.convert("L"))
    alone = predict(model, photo)
    assert predict(model, colours) == predict(model, [colours]) == alone
    assert predict(model, grey) == predict(model, photo.convert("L"))
    assert predict(model, colours[..., ::-1]) == predict(model, Image.merge("RGB", photo.split()[::-1])) != alone
    many = np.stack([colours, np.flip(colours, 0), colours[::-1, ::-1]])
    found = predict(model, many)
    assert [classes[0]["index"] for classes in found] == [
        predict(model, array, topk=1)[0][0]["index"] for array in many
    ]
    assert found == predict(model, list(many))
    assert torch.equal(extract_features(model, many), extract_features(model, list(many)))
    assert seresnet_hub.inference_model(model, colours)["pred_label"] == alone[0][0]["index"]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), r"an array of float32 \(8, 8, 3\) is no picture: .* times 255"),
        (np.zeros((8, 8, 3), np.int64), r"an array of int64 \(8, 8, 3\) is no picture: it must be uint8"),
        (np.zeros((8, 8), bool), "an array of bool"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) is no picture: .*\(height, width, 3\) in RGB order"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\) is no picture"),
        (np.zeros((8, 8, 1), np.uint8), r"\(8, 8, 1\) is no picture"),
        (np.zeros(8, np.uint8), r"\(8,\) is no picture"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\) is no picture"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"\(3, 8, 8\) is no picture"),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), r"\(2, 2, 8, 8, 3\) is no picture"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no images were given"),
        (torch.zeros(3, 8, 8), "a Tensor is no picture: give NumPy arrays"),
        ([torch.zeros(3, 8, 8)], "Tensor is no picture"),
        ([None], "NoneType is no picture"),
    ],
)  # fmt: skip
def test_other_arrays_are_refused_in_one_line(model: nn.Module, array: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        predict(model, array)
    assert "\n" not in str(refused.value)
