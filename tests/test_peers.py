"""Checkpoints written by the real code bases must convert to networks that compute what those code bases compute.

These tests need mmpretrain, mmengine, pytorchcv and pretrainedmodels beside this project: `pytest -m peer`.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from references.networks import randomise
from torch import nn

from seresnet_hub.conversion.convert import convert
from seresnet_hub.conversion.run_in_float64 import float64_outputs
from seresnet_hub.errors import InputError
from seresnet_hub.models.create import list_models

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed beside this project")
    pytorchcv = pytest.importorskip("pytorchcv.model_provider", reason="pytorchcv is not installed beside this project")
    pretrainedmodels = pytest.importorskip("pretrainedmodels", reason="pretrainedmodels is not installed")
    import mmengine
    import mmpretrain.models  # noqa: F401  # registers the networks
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

EXACT = 1e-10


def batch(*size: int) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(9)) * 4 - 2


def classifier(kind: str, depth: int, *, classes: int = 1000, **options: Any) -> nn.Module:
    """Return mmpretrain's own classifier with seeded weights and statistics."""
    init_default_scope("mmpretrain")
    config = classifier_config(kind, depth, classes, **options)
    return calmed(randomise(MODELS.build(config)))


def classifier_config(kind: str, depth: int, classes: int, **options: Any) -> dict[str, Any]:
    width = {18: 512, 34: 512}.get(depth, 2048)
    return {
        "type": "ImageClassifier",
        "backbone": {"type": kind, "depth": depth, "num_stages": 4, "out_indices": (0, 1, 2, 3), **options},
        "neck": {"type": "GlobalAveragePooling"},
        "head": {"type": "LinearClsHead", "num_classes": classes, "in_channels": width,
                 "loss": {"type": "CrossEntropyLoss"}},
        "data_preprocessor": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True},
    }  # fmt: skip


def calmed(network: nn.Module) -> nn.Module:
    """Shrink each block's last norm, so that fifty blocks of random weights do not amplify rounding errors."""
    with torch.no_grad():
        for name, layer in network.named_modules():
            if name.endswith((".bn3", "body.conv3.bn")):
                layer.weight.mul_(0.3)
    return network


def as_text(value: Any) -> str:
    """Return a configuration as mmengine writes it: dict(key=value)."""
    if isinstance(value, dict):
        return "dict(" + ", ".join(f"{key}={as_text(item)}" for key, item in value.items()) + ")"
    return repr(value)


def publish(network: nn.Module, config: dict[str, Any], path: Path, *, old: bool = False) -> Path:
    """Write a file as mmpretrain publishes it; mmcls 0.x used the legacy format and another key for the config."""
    meta: dict[str, Any] = {"CLASSES": None, "config" if old else "cfg": f"model = {as_text(config)}\n"}
    content = {"meta": meta, "state_dict": network.state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def mmpretrain_outputs(network: nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    with torch.no_grad():
        features = list(network.double().eval().backbone(images.double()))
        return features, network(images.double(), mode="tensor")


def assert_equal(folder: Path, images: torch.Tensor, features: list[torch.Tensor], logits: torch.Tensor) -> float:
    """Compare a folder, through timm, with what the peer computed; return the largest difference."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found, found_logits = float64_outputs(model, images)
    pairs = [*zip(found, features, strict=True), (found_logits, logits)] if features else [(found_logits, logits)]
    worst = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    print(f"{folder.parent.name}: {worst:.2g}")
    assert worst < EXACT
    return worst


def assert_plain_timm_agrees(folder: Path, architecture: str, images: torch.Tensor, logits: torch.Tensor) -> None:
    """Load the folder in a process without the plugin, where timm has the architecture."""
    if architecture in list_models():
        return
    code = (
        "import sys, timm, torch\n"
        "model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval().double()\n"
        "assert not [name for name in sys.modules if name.startswith('seresnet_hub')]\n"
        "torch.save(model(torch.load(sys.argv[2]).double()).detach(), sys.argv[3])\n"
    )
    given, answer = folder.parent / "images.pt", folder.parent / "logits.pt"
    torch.save(images, given)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder, given, answer], check=True)
    assert (torch.load(answer) - logits).abs().max() < EXACT


@pytest.mark.parametrize("old", [False, True], ids=["mmpretrain 1.x", "mmcls 0.x"])
@pytest.mark.parametrize(
    ("kind", "depth", "options"),
    [
        ("SEResNet", 50, {}),
        ("SEResNet", 101, {}),
        ("SEResNet", 152, {}),
        ("SEResNeXt", 50, {"groups": 32, "width_per_group": 4}),
        ("SEResNeXt", 101, {"groups": 32, "width_per_group": 4}),
        ("SEResNet", 50, {"deep_stem": True}),
        ("SEResNet", 50, {"avg_down": True}),
        ("SEResNet", 50, {"deep_stem": True, "avg_down": True, "classes": 37}),
        ("SEResNet", 50, {"se_ratio": 8}),
        ("SEResNet", 101, {"se_ratio": 8, "deep_stem": True, "avg_down": True}),
        ("SEResNet", 50, {"se_ratio": 24}),
        ("SEResNet", 50, {"se_ratio": 32}),
        ("SEResNeXt", 50, {"groups": 32, "width_per_group": 4, "deep_stem": True, "avg_down": True}),
    ],
    ids=str,
)
def test_files_published_by_mmpretrain(
    tmp_path: Path, kind: str, depth: int, options: dict[str, Any], old: bool
) -> None:
    """Protects every supported option against the code that trains and writes these networks."""
    network = classifier(kind, depth, **options)
    given = {key: value for key, value in options.items() if key != "classes"}
    config = classifier_config(kind, depth, options.get("classes", 1000), **given)
    path = publish(network, config, tmp_path / "a.pth", old=old)
    result = convert(path, tmp_path / "out")
    assert result["max_abs_diff"] < EXACT
    images = batch(65, 97)
    features, logits = mmpretrain_outputs(network, images)
    assert_equal(tmp_path / "out", images, features, logits)
    if not old:
        assert_plain_timm_agrees(tmp_path / "out", result["architecture"], images, logits)


@pytest.mark.parametrize(
    "options",
    [
        {"style": "caffe"},
        {"dilations": (1, 1, 2, 4), "strides": (1, 2, 1, 1)},
        {"dilations": (1, 1, 1, 2)},
        {"norm_cfg": {"type": "BN", "eps": 1e-3}},
    ],
    ids=str,
)
def test_networks_that_timm_does_not_have_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """Protects from the options that load strictly and compute something else."""
    network = classifier("SEResNet", 50, **options)
    for old in (False, True):
        path = publish(network, classifier_config("SEResNet", 50, 1000, **options), tmp_path / "a.pth", old=old)
        with pytest.raises(InputError, match="style|dilations|strides|eps"):
            convert(path, tmp_path / "out")


def test_what_a_file_without_configuration_leaves_open_is_said(tmp_path: Path) -> None:
    """Protects the reader: caffe style cannot be seen in tensors, so the folder says what was assumed.

    It also shows that the comparisons of this file can fail: the wrong network is wrong by far more than rounding.
    """
    network = classifier("SEResNet", 50, style="caffe")
    torch.save({"state_dict": network.state_dict()}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "out")
    assert "style='pytorch', no dilation" in (tmp_path / "out" / "README.md").read_text()
    images = batch(65, 97)
    features, logits = mmpretrain_outputs(network, images)
    with pytest.raises(AssertionError):
        assert_equal(tmp_path / "out", images, features, logits)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert (float64_outputs(model, images)[1] - logits).abs().max() > 1e6 * EXACT


class Pictures(torch.utils.data.Dataset):
    """Four random pictures, as mmpretrain's pipelines hand them on."""

    metainfo: dict[str, Any] = {"classes": tuple("abcde")}  # noqa: RUF012  # mmengine reads it from the class

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        sample = DataSample().set_gt_label(index)
        return {"inputs": torch.randint(0, 256, (3, 64, 64), generator=generator).byte(), "data_samples": sample}


@pytest.mark.parametrize("average", [False, True], ids=["plain", "EMA"])
def test_files_written_by_a_training_run(tmp_path: Path, average: bool) -> None:
    """Protects runner files: history buffers, optimizer, and an average whose place is the opposite of timm's."""
    config = classifier_config("SEResNet", 50, 5)
    runner = mmengine.runner.Runner(
        model=config,
        work_dir=str(tmp_path / "work"),
        train_dataloader={"dataset": Pictures(), "batch_size": 2, "num_workers": 0,
                          "sampler": {"type": "DefaultSampler", "shuffle": False},
                          "collate_fn": {"type": "default_collate"}},
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.001, "momentum": 0.9}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        custom_hooks=[{"type": "EMAHook", "momentum": 0.3}] if average else [],
        default_scope="mmpretrain",
        log_level="ERROR",
        cfg=mmengine.Config({"model": config}),
        experiment_name="run",
    )  # fmt: skip
    runner.train()
    path = tmp_path / "work" / "epoch_1.pth"
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        torch.load(path, weights_only=True)
    result = convert(path, tmp_path / "out")
    assert result["architecture"] == "seresnet50"
    assert result["max_abs_diff"] < EXACT
    fresh = MODELS.build(config)
    fresh.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
    images = batch(65, 97)
    features, logits = mmpretrain_outputs(fresh, images)
    assert_equal(tmp_path / "out", images, features, logits)
    assert ("ema_state_dict/*" in result["dropped"]) == average
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == list("abcde")


@pytest.mark.parametrize("name", ["seresnet50b", "seresnet101b", "seresnext50_32x4d", "seresnext101_32x4d"])
def test_pytorchcv_for_imagenet(tmp_path: Path, name: str) -> None:
    """Protects pytorchcv's networks of the same strides as timm's."""
    network = calmed(randomise(pytorchcv.get_model(name, pretrained=False)))
    torch.save(network.state_dict(), tmp_path / f"{name}-0500-0123abcd.pth")
    result = convert(tmp_path / f"{name}-0500-0123abcd.pth", tmp_path / "out")
    assert result["max_abs_diff"] < EXACT
    images = batch(224, 224)  # its last pool is 7 x 7
    logits = network.double()(images.double()).detach()
    assert_equal(tmp_path / "out", images, [], logits)
    assert_plain_timm_agrees(tmp_path / "out", result["architecture"], images, logits)


def test_pytorchcv_networks_that_stride_first_are_refused(tmp_path: Path) -> None:
    """Protects from the twin of seresnet50b: same tensors, another network."""
    network = randomise(pytorchcv.get_model("seresnet50", pretrained=False))
    torch.save(network.state_dict(), tmp_path / "seresnet50-0560-2f7bc1ed.pth")
    with pytest.raises(InputError, match="only seresnet50b"):
        convert(tmp_path / "seresnet50-0560-2f7bc1ed.pth", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("seresnet20_cifar10", "seresnet20_cifar"),
        ("seresnet56_cifar100", "seresnet56_cifar"),
        ("seresnet110_cifar10", "seresnet110_cifar"),
        ("seresnet164bn_cifar10", "seresnet164_cifar"),
    ],
)
def test_pytorchcv_for_cifar(tmp_path: Path, name: str, architecture: str) -> None:
    """Protects the CIFAR networks against the code that trained the only public weights."""
    network = randomise(pytorchcv.get_model(name, pretrained=False))
    with torch.no_grad():
        for key, layer in network.named_modules():
            if key.endswith("body.conv2.bn" if "164" not in name else "body.conv3.bn"):
                layer.weight.mul_(0.2)
    torch.save(network.state_dict(), tmp_path / f"{name}-0601.pth")
    result = convert(tmp_path / f"{name}-0601.pth", tmp_path / "out")
    assert result["architecture"] == architecture
    assert result["max_abs_diff"] < EXACT
    images = batch(32, 32)
    assert_equal(tmp_path / "out", images, [], network.double()(images.double()).detach())


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("se_resnet50", "legacy_seresnet50"),
        ("se_resnet101", "legacy_seresnet101"),
        ("se_resnet152", "legacy_seresnet152"),
        ("se_resnext50_32x4d", "legacy_seresnext50_32x4d"),
        ("se_resnext101_32x4d", "legacy_seresnext101_32x4d"),
        ("senet154", "legacy_senet154"),
    ],
)
def test_cadene(tmp_path: Path, name: str, architecture: str) -> None:
    """Protects Cadene's networks, which are timm's legacy ones and not its newer ones."""
    network = calmed(randomise(getattr(pretrainedmodels, name)(pretrained=None)))
    torch.save(network.state_dict(), tmp_path / f"{name}.pth", _use_new_zipfile_serialization=False)
    result = convert(tmp_path / f"{name}.pth", tmp_path / "out")
    assert result["architecture"] == architecture
    assert result["max_abs_diff"] < EXACT
    images = batch(224, 224)
    logits = network.double()(images.double()).detach()
    assert_equal(tmp_path / "out", images, [], logits)
    assert_plain_timm_agrees(tmp_path / "out", architecture, images, logits)
