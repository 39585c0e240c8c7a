"""The architecture and its tensors must be those of the file, and what fits none must be refused with the reason."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from foreign_files import SHORT, assert_same, images, load, saved, small
from references import networks

from seresnet_hub.conversion.convert import convert
from seresnet_hub.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_weights")


def test_averages_of_old_mmcls_files_are_dropped_by_name(tmp_path: Path) -> None:
    """Protects the list of what was left out, which a reader needs to judge the result."""
    original = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False))
    state = original.checkpoint("backbone.")
    state["ema_backbone_conv1_weight"] = state["backbone.conv1.weight"] + 1
    content = {"state_dict": state, "ema_state_dict": {"steps": torch.ones(1)}, "optimizer": {}}
    result = convert(saved(content, tmp_path / "a.pth"), tmp_path / "out")
    assert result["dropped"] == ["ema_backbone_conv1_weight", "ema_state_dict/*"]
    assert_same(tmp_path / "out", original, 65, 81)


def test_a_backbone_alone_becomes_a_model_without_classifier(tmp_path: Path) -> None:
    """Protects feature extractors, whose files have no head; and a new head is drawn from a fixed seed and listed."""
    original = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False))
    state = {name: tensor for name, tensor in original.checkpoint().items() if not name.startswith("head.")}
    path = saved(state, tmp_path / "a.pth")
    result = convert(path, tmp_path / "out")
    assert (result["fresh"], load(tmp_path / "out").num_classes) == ([], 0)
    assert load(tmp_path / "out")(images(64, 64)).shape == (2, 512)
    again = [convert(path, tmp_path / name, num_classes=5) for name in ("one", "two")]
    assert again[0]["fresh"] == ["fc.weight", "fc.bias"]
    assert again[0]["sha256_weights"] == again[1]["sha256_weights"]


def test_timm_training_files(tmp_path: Path) -> None:
    """Protects wrapper prefixes, the choice of the averaged weights, and the architecture that the file names."""
    original = networks.randomise(timm.create_model("seresnet18", num_classes=10))
    state = {f"_orig_mod.module.{name}": tensor for name, tensor in original.state_dict().items()}
    raw = {name: tensor + 1 for name, tensor in original.state_dict().items()}
    content = {"arch": "seresnet18", "state_dict": raw, "state_dict_ema": state, "epoch": 3}
    result = convert(saved(content, tmp_path / "a.pth.tar"), tmp_path / "out")
    assert (result["architecture"], result["dropped"]) == ("seresnet18", ["state_dict/*"])
    assert_same(tmp_path / "out", original, 64, 64)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"model_kwargs": {"output_stride": 16}}, {"output_stride": 16}),
        ({"gp": "max", "model_kwargs": {}}, {"global_pool": "max"}),
    ],
    ids=str,
)
def test_options_of_timm_training_files(tmp_path: Path, options: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Protects what `train.py` changed in the network and no tensor shows."""
    original = networks.randomise(timm.create_model("seresnet18", num_classes=5, **arguments))
    content = {"arch": "seresnet18", "state_dict": original.state_dict(), "args": Namespace(**options)}
    result = convert(saved(content, tmp_path / "a.pth.tar"), tmp_path / "out")
    assert result["model_args"] == arguments
    assert_same(tmp_path / "out", original, 64, 64)
    content["args"] = Namespace(model_kwargs={"checkpoint_path": "x.pth"})
    with pytest.raises(InputError, match="'checkpoint_path'"):
        convert(saved(content, tmp_path / "b.pth.tar"), tmp_path / "other")


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("seresnet18", {"layers": [900_000, 1, 1, 1]}, "far more layers than its file has tensors"),
        ("convnext_atto", {"depths": [10**9, 1, 1, 1]}, "absurd numbers"),
        ("seresnet18", {"device": "cpu"}, "'device'"),
    ],
)
def test_options_that_no_network_has(tmp_path: Path, architecture: str, options: dict[str, Any], message: str) -> None:
    """Protects time and memory: a network of a million blocks takes hours to make."""
    state = timm.create_model("seresnet18", num_classes=5).state_dict()
    content = {"arch": architecture, "state_dict": state, "args": Namespace(model_kwargs=options)}
    with pytest.raises(InputError, match=message):
        convert(saved(content, tmp_path / "a.pth.tar"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_model_option_is_checked(tmp_path: Path) -> None:
    """Protects --model from being a way around the proof."""
    original = networks.randomise(networks.mmpretrain((2, 2, 2, 2), bottleneck=False))
    path = saved({"state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"do not fit seresnet34.*missing: 'layer1\.2"):
        convert(path, tmp_path / "out", model="seresnet34")
    with pytest.raises(InputError, match="no architecture 'seresnet99'"):
        convert(path, tmp_path / "out", model="seresnet99")
    assert convert(path, tmp_path / "out", model="seresnet18")["architecture"] == "seresnet18"


@pytest.mark.parametrize("name", ["seresnet50", "seresnet50.mm_in1k", "seresnet50_8xb32_in1k"])
def test_the_model_option_keeps_what_the_tensors_show(tmp_path: Path, name: str) -> None:
    """Protects files of other depths, under whichever name of the architecture a person types."""
    original = networks.randomise(networks.mmpretrain(SHORT, bottleneck=True))
    path = saved({"state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth")
    result = convert(path, tmp_path / "out", model=name)
    assert (result["architecture"], result["model_args"]) == ("seresnet50", {"layers": [1, 1, 1, 1]})


def test_unmapped_and_missing_names_are_listed_with_the_closest(tmp_path: Path) -> None:
    """Protects the message a person needs to repair a file."""
    state = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False)).checkpoint("backbone.")
    extra = {**state, "backbone.layer1.0.conv1.wieght": state["backbone.layer1.0.conv1.weight"]}
    with pytest.raises(InputError, match=r"1 unmapped.*conv1\.wieght' \(closest: 'backbone\.layer1\.0\.conv1\.weight"):
        convert(saved(extra, tmp_path / "a.pth"), tmp_path / "out")
    short = {name: tensor for name, tensor in state.items() if name != "backbone.layer2.0.bn1.bias"}
    with pytest.raises(InputError, match=r"1 missing: 'layer2\.0\.bn1\.bias'"):
        convert(saved(short, tmp_path / "b.pth"), tmp_path / "out")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: s.update({"backbone.conv1.weight": s["backbone.conv1.weight"] * float("nan")}), "NaN or infinite"),
        (lambda s: s.update({"backbone.bn1.running_var": -s["backbone.bn1.running_var"]}), "negative variances"),
        (lambda s: s.update({"backbone.bn1.bias": s["backbone.bn1.bias"].long()}), "torch.int64"),
        (lambda s: s.update({"module.backbone.bn1.bias": s["backbone.bn1.bias"]}), "two tensors are named"),
        (lambda s: s.update({"bn1.bias": s["backbone.bn1.bias"]}), "would both become 'bn1.bias'"),
    ],
    ids=["NaN", "variance", "type", "wrapper", "twice"],
)
def test_damaged_weights_are_refused(tmp_path: Path, break_it: Any, message: str) -> None:
    """Protects from files that are well formed and hold nonsense."""
    state = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False)).checkpoint("backbone.")
    break_it(state)
    with pytest.raises(InputError, match=message):
        convert(saved(state, tmp_path / "a.pth"), tmp_path / "out")


def test_pytorchcv_networks_that_stride_first_are_refused_by_name(tmp_path: Path) -> None:
    """Protects from the twin networks seresnet50 and seresnet50b, which have the same tensors."""
    state = {"features.stage1.unit1.se.conv1.weight": torch.ones(1)}
    with pytest.raises(InputError, match="only seresnet50b can be converted"):
        convert(saved(state, tmp_path / "seresnet50-0560-2f7bc1ed.pth"), tmp_path / "out")


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({"backbone.layer4.0.bn2.weight": torch.tensor(1.0)}, {"num_classes": 3}, "other shapes"),
        ({"backbone.layer1.0.se_layer.conv1.conv.weight": torch.ones(1, 10**6, 1, 1)}, {}, "squeeze"),
        ({"backbone.conv1.weight": torch.ones(64, 0, 7, 7)}, {}, "first convolution"),
        ({}, {"num_classes": 10**12}, "number from 0 to"),
        ({"backbone.bn1.bias": None, "bn1.bias": torch.ones(64)}, {}, r"does not find 'backbone\.bn1\.bias'"),
    ],
    ids=["0-d norm", "wide SE unit", "no channels", "classes", "half a prefix"],
)
def test_absurd_shapes_and_numbers_are_refused(
    tmp_path: Path, tensors: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    """Protects memory, and people from tracebacks."""
    state = {name: tensor for name, tensor in {**small(), **tensors}.items() if tensor is not None}
    with pytest.raises(InputError, match=message):
        convert(saved(state, tmp_path / "a.pth"), tmp_path / "out", **options)


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(10**6)], ids=["0-d", "wide"])
def test_an_initialisation_from_absurd_shapes_is_refused(tmp_path: Path, value: torch.Tensor) -> None:
    """Protects memory: new SE units take the square of the width."""
    state = {**timm.create_model("resnet18", num_classes=2).state_dict(), "layer1.0.bn2.weight": value}
    with pytest.raises(InputError, match="shape|wide"):
        convert(saved(state, tmp_path / "a.pth"), tmp_path / "out")
