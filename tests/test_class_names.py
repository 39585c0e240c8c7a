"""A label must mean the class that its name says, also where data set and model number their classes differently."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import timm
import timm.data
import torch
from timm.data import ImageNetInfo
from torch import nn

from seresnet_hub.data.class_names import class_order, imagenet_real_labels
from seresnet_hub.errors import InputError

SYNSETS, WORDS = ImageNetInfo().label_names(), ImageNetInfo().label_descriptions()
AS_TEXT = sorted(str(number) for number in range(1000))


class Named(nn.Module):
    """A model that says what its classes are called, and nothing else."""

    def __init__(self, names: list[str] | None, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes or len(names or [])
        self.pretrained_cfg = {"num_classes": self.num_classes, **({"label_names": names} if names else {})}


def order(names: list[str], model: nn.Module) -> tuple[int, ...] | None:
    return class_order(names, model, source="the data")


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (["cat", "dog"], Named(["cat", "dog"])),
        (["cat", "dog"], Named(None, 2)),
        (["0", "1"], Named(["cat", "dog"])),
        (AS_TEXT, Named(AS_TEXT)),  # trained on such folders
        (SYNSETS, Named(None, 1000)),
        (WORDS, Named(None, 1000)),
        (WORDS, Named(SYNSETS)),
        ([str(number) for number in range(1000)], Named(None, 1000)),
        ([f"{number:03}" for number in range(1000)], Named(None, 1000)),
        ([name.split(",")[0].upper() for name in WORDS], Named(None, 1000)),
        (["cat", "wolf"], Named(["cat", "dog"])),
    ],
)
def test_classes_in_the_model_s_order_stay(names: list[str], model: nn.Module) -> None:
    assert order(names, model) is None


def test_the_same_names_in_another_order_are_renumbered() -> None:
    assert order(["dog", "emu", "cat"], Named(["cat", "dog", "emu"])) == (1, 2, 0)
    model = Named(["a", "b", "c"])
    model.pretrained_cfg["label_descriptions"] = {"a": "cat", "b": "dog", "c": "emu"}
    assert order(["emu", "cat", "dog"], model) == (2, 0, 1)
    reverse = order(SYNSETS[::-1], Named(None, 1000))
    assert reverse == tuple(range(999, -1, -1))


def test_numbers_sorted_as_text_are_numbers(caplog: pytest.LogCaptureFixture) -> None:
    for model in (Named(None, 1000), Named(SYNSETS), Named([f"thing {k}" for k in range(1000)])):
        found = order(AS_TEXT, model)
        assert found is not None
        assert (found[:5], found[999]) == ((0, 1, 10, 100, 101), 999)
    (said,) = caplog.messages  # of names that are not ImageNet's, which has its numbers
    assert "the model's by names (thing 0, thing 1" in said
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # a model of nameless classes may have been trained on the same folders
        assert order(sorted(str(number) for number in range(12)), Named(None, 12)) is None
    assert "numbers sorted as text (0, 1, 10, 11 …)" in caplog.text


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(InputError, match="'dog' is number 0 in the data and number 1 in the model"):
        order(["dog", "emu", "cow"], Named(["cat", "dog", "emu"]))
    with pytest.raises(InputError, match="no class in common: car, bus there, cat, dog in the model"):
        order(["car", "bus"], Named(["cat", "dog"]))
    alphabetical = sorted(name.split(",")[0] for name in WORDS)
    with pytest.raises(InputError, match="and number .* in ImageNet"):
        order(alphabetical, Named(None, 1000))


def test_unknown_names_for_a_thousand_classes_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert order([f"thing {number}" for number in range(1000)], Named(None, 1000)) is None
    assert "none of the classes of the data (thing 0, thing 1, thing 2 …)" in caplog.text


def test_the_reassessed_labels_are_those_of_the_paper() -> None:
    found = imagenet_real_labels(timm.create_model("seresnet20_cifar", num_classes=1000))
    file = Path(timm.data.__file__).parent / "_info" / "imagenet_real_labels.json"
    assert list(map(list, found)) == json.loads(file.read_text())
    assert found[1] == (970, 795)
    with pytest.raises(InputError, match="1,000 classes of ImageNet-1k, the model 10"):
        imagenet_real_labels(timm.create_model("seresnet20_cifar", num_classes=10))
    assert torch.tensor(max(map(max, filter(None, found)))) == 999


def test_numbers_for_names_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Digits measured with a model of animals and vehicles must not pass in silence."""
    model = timm.create_model("seresnet20_cifar.c10", pretrained=False)
    assert class_order([str(k) for k in range(10)], model, source="digits") is None
    assert "the classes of digits are called by numbers, the model's by names (airplane" in caplog.text
