"""mmpretrain's users must find its calls, with its keys, over the same predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import seresnet_hub
from seresnet_hub.errors import InputError


def test_inference_model_gives_the_best_class(photo: Image.Image) -> None:
    torch.manual_seed(0)
    model = timm.create_model("seresnet18").eval()
    config = timm.data.resolve_model_data_config(model)
    with torch.no_grad():
        scores = model(timm.data.create_transform(**config)(photo)[None]).softmax(-1)[0]
    result = seresnet_hub.inference_model(model, photo)
    assert list(result) == ["pred_label", "pred_score", "pred_class"]
    assert result["pred_label"] == int(scores.argmax())
    assert result["pred_score"] == pytest.approx(float(scores.max()), rel=1e-5)
    assert result["pred_class"] == timm.data.ImageNetInfo().index_to_description(result["pred_label"])


def test_get_model_takes_both_names() -> None:
    ours = seresnet_hub.get_model("seresnet101_8xb32_in1k", num_classes=3)
    timms = seresnet_hub.get_model("seresnet101", num_classes=3)
    assert ours.state_dict().keys() == timms.state_dict().keys()
    assert not ours.training
    with pytest.raises(InputError, match="cannot create model 'seresnet50_16xb32_in1k'"):
        seresnet_hub.get_model("seresnet50_16xb32_in1k")


@pytest.mark.parametrize("pretrained", ["my.pth", "https://example.org/my.pth", Path("my.pth"), None, 1])
def test_a_checkpoint_is_not_taken_for_yes(pretrained: object) -> None:
    """mmpretrain loads the file; timm would load its own default weights instead."""
    with pytest.raises(InputError, match=r"True or False is needed; convert a checkpoint first"):
        seresnet_hub.get_model("seresnet20_cifar", pretrained=pretrained)


def test_get_model_checks_what_it_loads() -> None:
    own = seresnet_hub.get_model("seresnet20_cifar", pretrained=True)
    assert own.pretrained_cfg["tag"] == "c10"
    with pytest.raises(InputError, match="no_such_place: there is no such folder"):
        seresnet_hub.get_model("local-dir:no_such_place", pretrained=True)
