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


def test_get_model_converts_a_checkpoint(tmp_path: Path, photo: Image.Image) -> None:
    """mmpretrain loads the file; timm would load its own default weights instead."""
    torch.manual_seed(0)
    source = timm.create_model("seresnet20_cifar").eval()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "my.pth")
    for pretrained in (tmp_path / "my.pth", str(tmp_path / "my.pth")):
        model = seresnet_hub.get_model("seresnet20_cifar", pretrained=pretrained)
        assert not model.training
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in source.state_dict().items())
    assert seresnet_hub.get_model("seresnet20_cifar", pretrained=tmp_path / "my.pth", num_classes=3).num_classes == 3
    assert seresnet_hub.predict(model, photo)  # it needs nothing of the folder, which is gone
    assert [path.name for path in tmp_path.iterdir()] == ["my.pth"]


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("seresnet20_cifar", "no.pth", "no.pth cannot become a seresnet20_cifar: no.pth: no such file"),
        ("seresnet20_cifar", None, r"get_model\(pretrained=None\): True, False or a checkpoint is needed"),
        ("seresnet20_cifar", 1, "True, False or a checkpoint is needed"),
        ("seresnet56_cifar", "my.pth", "my.pth cannot become a seresnet56_cifar: the tensors do not fit"),
        ("seresnet50_8xb32_in1k", "my.pth", "my.pth cannot become a seresnet50: "),
        ("local-dir:.", "my.pth", "timm has no architecture 'local-dir:.'"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, pretrained: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": timm.create_model("seresnet20_cifar").state_dict()}, "my.pth")
    with pytest.raises(InputError, match=message):
        seresnet_hub.get_model(name, pretrained=pretrained)


def test_get_model_checks_what_it_loads() -> None:
    own = seresnet_hub.get_model("seresnet20_cifar", pretrained=True)
    assert own.pretrained_cfg["tag"] == "c10"
    with pytest.raises(InputError, match="no_such_place: there is no such folder"):
        seresnet_hub.get_model("local-dir:no_such_place", pretrained=True)
