"""A conversion must compute exactly what its source computes, or be refused with the reason."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import pickle
import re
import socketserver
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_faults import FlipByte
from hub_server import HubServer
from references import networks
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from seresnet_hub.checkpoints.key_maps import SOURCES
from seresnet_hub.conversion import proof, references, source_file
from seresnet_hub.conversion.convert import convert
from seresnet_hub.conversion.float64 import float64_outputs
from seresnet_hub.conversion.provenance import licence_of
from seresnet_hub.conversion.source_file import published_file
from seresnet_hub.errors import InputError
from seresnet_hub.files import model_folder
from seresnet_hub.hub import download_limits as hub_limits
from seresnet_hub.models.weights import WEIGHTS
from seresnet_hub.publishing.push import push

SHORT = (1, 1, 1, 1)
EXACT = 1e-10


def images(*size: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def saved(value: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def load(folder: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def assert_same(folder: Path, original: nn.Module, *size: int) -> None:
    """Compare with the module that wrote the checkpoint, end to end in float64."""
    batch = images(*size)
    expected = original.double()(batch.double()).detach()
    features, logits = float64_outputs(load(folder), batch)
    assert (logits - expected).abs().max() < EXACT
    for found, wanted in zip(features, getattr(original, "features", []), strict=False):
        if isinstance(wanted, torch.Tensor):
            assert (found - wanted).abs().max() < EXACT


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("options", "architecture", "model_args"),
    [
        ({}, "seresnet50", {"layers": [1, 1, 1, 1]}),
        ({"bottleneck": False, "classes": 37}, "seresnet18", {"layers": [1, 1, 1, 1]}),
        ({"ratio": 8}, "seresnet50_r8", {"layers": [1, 1, 1, 1]}),
        ({"ratio": 24}, "seresnet50", {"layers": [1, 1, 1, 1]}),
        (
            {"deep": 32, "avg_down": True, "groups": 32, "group_width": 4},
            "seresnext26d_32x4d",
            {"layers": [1, 1, 1, 1]},
        ),
    ],
    ids=["plain", "basic", "ratio 8", "ratio 24", "deep, avg_down, groups"],
)
def test_mmpretrain(
    tmp_path: Path, legacy: bool, options: dict[str, Any], architecture: str, model_args: dict[str, Any]
) -> None:
    """Protects the key map, the stem, the shifted first shortcut, and the choice of architecture from shapes."""
    original = networks.randomise(networks.mmpretrain(SHORT, **options))
    path = saved({"meta": {}, "state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth", legacy=legacy)
    result = convert(path, tmp_path / "out")
    assert (result["architecture"], result["model_args"]) == (architecture, model_args)
    assert result["max_abs_diff"] < EXACT
    assert result["dropped"] == []
    assert result["sha256_source"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(tmp_path / "out", original, 65, 81)


@pytest.mark.parametrize("options", [{"caffe": True}, {"dilated": True}, {"eps": 1e-3}], ids=str)
def test_networks_that_only_look_the_same_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """Protects from the silent traps: all three load strictly and compute something else."""
    original = networks.randomise(networks.mmpretrain(SHORT, **options))
    backbone = {
        "caffe": "style='caffe'",
        "dilated": "dilations=(1, 1, 1, 2)",
        "eps": "norm_cfg=dict(type='BN', eps=0.001)",
    }[next(iter(options))]
    for key in ("config", "cfg"):
        config = f"model = dict(type='ImageClassifier', backbone=dict(type='SEResNet', {backbone}))\n"
        state = original.checkpoint("backbone.")
        path = saved({"meta": {key: config}, "state_dict": state}, tmp_path / f"{key}.pth")
        with pytest.raises(InputError, match="style=|dilations=|eps="):
            convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_proof_notices_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the proof itself: a reference that strides elsewhere must stop the conversion."""
    original = networks.randomise(networks.mmpretrain(SHORT))
    path = saved({"state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth")
    caffe = dataclasses.replace(references.LAYOUTS["mmpretrain"], stride_in=0)
    monkeypatch.setitem(references.LAYOUTS, "mmpretrain", caffe)
    with pytest.raises(InputError, match="computes something else"):
        convert(path, tmp_path / "out")
    assert convert(path, tmp_path / "out", verify=False)["max_abs_diff"] is None


def test_configuration_preprocessing_and_classes_are_kept(tmp_path: Path) -> None:
    """Protects what the file says beside its weights: size, crop, statistics, class names."""
    original = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False, classes=3))
    config = (
        "img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[51.0, 51.0, 51.0], to_rgb=True)\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', size=(200, -1)),\n"
        "    dict(type='CenterCrop', crop_size=160), dict(type='Normalize', **img_norm_cfg)]\n"
        "model = dict(backbone=dict(type='SEResNet', depth=18, style='pytorch'),\n"
        "    neck=dict(type='GlobalAveragePooling'))"
    )
    meta = {"config": config, "CLASSES": ("ant", "bee", "cat")}
    path = saved({"meta": meta, "state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth")
    convert(path, tmp_path / "out")
    cfg = load(tmp_path / "out").pretrained_cfg
    assert (cfg["mean"], cfg["std"], cfg["crop_pct"]) == ([0.5] * 3, [0.2] * 3, 0.8)
    assert tuple(cfg["input_size"]) == (3, 160, 160)
    assert cfg["label_names"] == ["ant", "bee", "cat"]


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


def test_this_projects_own_folders(tmp_path: Path) -> None:
    """Protects the architecture, arguments and preprocessing that the config beside the weights names."""
    original = networks.randomise(timm.create_model("seresnet20_cifar_pre", num_classes=4))
    config = model_folder.timm_config(
        original, pretrained_cfg={"num_classes": 4, "crop_pct": 0.9}, label_names=["a", "b", "c", "d"]
    )
    model_folder.write_model(tmp_path / "in", original.state_dict(), config=config, card=lambda _: "")
    result = convert(tmp_path / "in" / "model.safetensors", tmp_path / "out")
    assert (result["architecture"], result["max_abs_diff"]) == ("seresnet20_cifar_pre", None)
    converted = load(tmp_path / "out")
    assert (converted.pretrained_cfg["crop_pct"], converted.pretrained_cfg["label_names"][3]) == (0.9, "d")
    assert_same(tmp_path / "out", original, 32, 32)


def test_cadene_files_become_legacy_networks(tmp_path: Path) -> None:
    """Protects from the renamed keys that load into seresnet50 and are wrong by two: stride, pool."""
    original = networks.randomise(timm.create_model("legacy_seresnet50", num_classes=10))
    result = convert(saved(original.state_dict(), tmp_path / "a.pth"), tmp_path / "out")
    assert (result["source"], result["architecture"]) == ("cadene", "legacy_seresnet50")
    assert result["max_abs_diff"] < EXACT
    assert_same(tmp_path / "out", original, 65, 81)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_moskomule(tmp_path: Path, bottleneck: bool) -> None:
    """Protects linear SE layers without biases, and widths below timm's smallest: zeros that change nothing."""
    original = networks.randomise(networks.moskomule(SHORT, bottleneck=bottleneck))
    result = convert(saved(original.checkpoint(), tmp_path / "a.pkl"), tmp_path / "out")
    assert result["source"] == "moskomule"
    assert result["architecture"] == ("seresnet50" if bottleneck else "seresnet18")
    assert result["max_abs_diff"] < EXACT
    assert_same(tmp_path / "out", original, 65, 81)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("options", "architecture"),
    [
        ({"deep": 32}, "seresnet152d"),
        ({"deep": 0, "groups": 32}, "seresnext50_32x4d"),
        ({"deep": 64, "groups": 32}, "seresnext26d_32x4d"),
    ],
    ids=["SE_ResNet_vd", "SE_ResNeXt", "SE_ResNeXt_vd"],
)
def test_paddle(tmp_path: Path, options: dict[str, Any], architecture: str, protocol: int) -> None:
    """Protects the array pickles of .pdparams, transposed linears, the pooled shortcut and the wide deep stem."""
    original = networks.randomise(networks.Paddle(SHORT, **options))
    arrays: dict[str, Any] = dict(original.checkpoint())
    arrays["StructuredToParameterName@@"] = {name: f"parameter {k}" for k, name in enumerate(arrays)}
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))
    result = convert(path, tmp_path / "out")
    assert (result["source"], result["architecture"]) == ("paddle", architecture)
    assert result["max_abs_diff"] < EXACT
    assert_same(tmp_path / "out", original, 65, 81)


def test_pytorchcv_cifar(tmp_path: Path) -> None:
    """Protects the CIFAR networks, which this package adds to timm."""
    original = networks.randomise(networks.PytorchcvCifar())
    path = saved(original.checkpoint(), tmp_path / "seresnet20_cifar10-0601.pth")
    result = convert(path, tmp_path / "out")
    assert (result["source"], result["architecture"]) == ("pytorchcv", "seresnet20_cifar")
    assert result["max_abs_diff"] < EXACT
    assert_same(tmp_path / "out", original, 32, 32)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnext50_32x4d",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("wide_resnet50_2", marks=pytest.mark.slow),
    ],
)
def test_torchvision_networks_initialise_se_networks(tmp_path: Path, name: str) -> None:
    """Protects an initialisation: with open gates it is torchvision's network, and every new tensor is listed."""
    import torchvision

    original = networks.randomise(getattr(torchvision.models, name)(weights=None, num_classes=10))
    result = convert(saved(original.state_dict(), tmp_path / "a.pth"), tmp_path / "out")
    converted = load(tmp_path / "out")
    assert sorted(result["fresh"]) == sorted(key for key in converted.state_dict() if ".se." in key)
    assert result["max_abs_diff"] < EXACT
    batch = images(65, 81)
    expected = original.double()(batch.double())
    _, logits = float64_outputs(converted, batch, without_se=True)
    assert (logits - expected).abs().max() < EXACT
    assert convert(tmp_path / "a.pth", tmp_path / "again")["sha256_weights"] == result["sha256_weights"]


def test_the_model_option_is_checked(tmp_path: Path) -> None:
    """Protects --model from being a way around the proof."""
    original = networks.randomise(networks.mmpretrain((2, 2, 2, 2), bottleneck=False))
    path = saved({"state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"do not fit seresnet34.*missing: 'layer1\.2"):
        convert(path, tmp_path / "out", model="seresnet34")
    with pytest.raises(InputError, match="no architecture 'seresnet99'"):
        convert(path, tmp_path / "out", model="seresnet99")
    assert convert(path, tmp_path / "out", model="seresnet18")["architecture"] == "seresnet18"


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


def test_the_folder_is_reproducible_complete_and_guarded(tmp_path: Path) -> None:
    """Protects determinism (byte for byte), provenance, atomic writing, and existing folders."""
    original = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False))
    path = saved({"state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth")
    code = "import sys; from seresnet_hub.conversion.convert import convert; convert(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, path, tmp_path / "one"], check=True)  # with another hash seed than here
    convert(path, tmp_path / "two")
    files = {name: {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two")}
    assert files["one"] == files["two"]
    assert sorted(files["one"]) == ["README.md", "config.json", "model.safetensors"]
    with safe_open(tmp_path / "one" / "model.safetensors", framework="pt") as file:
        said = file.metadata()
    assert said["format"] == "pt"
    assert said["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    config = json.loads(files["one"]["config.json"])
    assert config["seresnet_hub"]["provenance"]["source"] == said["source"] == "mmpretrain"
    with pytest.raises(InputError, match="exists"):
        convert(path, tmp_path / "one")
    (tmp_path / "one" / "notes.txt").write_text("mine")
    convert(path, tmp_path / "one", force=True)
    assert (tmp_path / "one" / "notes.txt").read_text() == "mine"
    (tmp_path / "b.pth").write_bytes(b"\x80")
    with pytest.raises(InputError):
        convert(tmp_path / "b.pth", tmp_path / "three")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pth", "b.pth", "one", "two"]


# --- licence and preprocessing: what nobody said is not claimed -------------------------------------------------------

OF_OTHER_WEIGHTS = {"license", "paper_ids", "origin_url", "test_input_size", "test_crop_pct", "hf_hub_id", "url"}


def bare_file(tmp_path: Path) -> Path:
    """A state dict alone, of an architecture for which timm itself has weights."""
    network = networks.randomise(timm.create_model("seresnet18", num_classes=3))
    timms = timm.get_pretrained_cfg("seresnet50").to_dict()
    assert timms["license"], "timm's entry of an architecture names a licence, which a file of it does not have"
    return saved(network.state_dict(), tmp_path / "mine.pth")


def test_a_file_that_says_nothing_gets_no_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in (("timm", bare_file(tmp_path)), ("mmpretrain", saved(small(), tmp_path / "a.pth"))):
        convert(path, tmp_path / name)
        assert "warning: no licence is known" in capsys.readouterr().err
        text = (tmp_path / name / "config.json").read_text()
        config = json.loads(text)
        assert not OF_OTHER_WEIGHTS & set(config["pretrained_cfg"])
        assert config["seresnet_hub"]["license"] == ""
        with safe_open(tmp_path / name / "model.safetensors", framework="pt") as file:
            assert "license" not in file.metadata()
        card = (tmp_path / name / "README.md").read_text()
        assert "No licence is known" in card
        assert "apache" not in card + text
        assert load(tmp_path / name).pretrained_cfg.get("license") is None
        with pytest.raises(InputError, match="names no licence.*--license ID"):
            push(tmp_path / name, "someone/model", dry_run=True)


def test_the_licence_that_is_given_is_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bare_file(tmp_path)
    convert(path, tmp_path / "out", license="cc-by-nc-4.0")
    assert "licence" not in capsys.readouterr().err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["seresnet_hub"]["license"] == config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    assert "\nlicense: cc-by-nc-4.0\n" in (tmp_path / "out" / "README.md").read_text()
    # A config beside the weights keeps what it names, unless another is given.
    convert(tmp_path / "out" / "model.safetensors", tmp_path / "again")
    convert(tmp_path / "out" / "model.safetensors", tmp_path / "other", license="mit")
    for name, license in (("again", "cc-by-nc-4.0"), ("other", "mit")):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["seresnet_hub"]["license"] == config["pretrained_cfg"]["license"] == license
    for wrong in ("", "Apache 2.0", "mit\nx"):
        with pytest.raises(InputError, match="--license .*apache-2.0, mit"):
            convert(path, tmp_path / "wrong", license=wrong)


def test_published_files_are_known_by_hash_or_address() -> None:
    known = published_file("8efdb4bb" + "0" * 56)
    assert known is not None
    assert (known.architecture, known.tag, known.license) == ("seresnet50", "ra2_in1k", "apache-2.0")
    assert published_file("0" * 64) is None
    kinds = {kind.name: kind for kind in SOURCES}
    assert licence_of(None, kinds["timm"], None, known, {}, "x.pth") == "apache-2.0"
    assert licence_of(None, kinds["mmpretrain"], WEIGHTS[0], None, {}, "x.pth") == "apache-2.0"
    at_home = "https://github.com/osmr/imgclsmob/releases/download/v0.0.1/seresnet50b-0560-2f7bc1ed.pth.zip"
    assert licence_of(None, kinds["pytorchcv"], None, None, {}, at_home) == "mit"
    assert [licence_of(None, kind, None, None, {}, "http://elsewhere/x.pth") for kind in SOURCES] == [""] * len(SOURCES)


def test_a_published_file_is_prepared_as_its_authors_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's record of the file also names networks that tensors do not show, such as anti-aliased ones."""
    original = networks.randomise(timm.create_model("seresnextaa101d_32x8d", layers=[1, 1, 1, 1], num_classes=5))
    path = saved(original.state_dict(), tmp_path / "a.pth")
    record = timm.get_pretrained_cfg("seresnextaa101d_32x8d.ah_in1k")
    monkeypatch.setattr(source_file, "published_file", lambda sha256: record)
    with pytest.raises(InputError, match="do not fit seresnextaa101d_32x8d"):  # its depth is the published one
        convert(path, tmp_path / "out")
    path = bare_file(tmp_path)
    record = dataclasses.replace(
        timm.get_pretrained_cfg("seresnet50.ra2_in1k"), architecture="seresnet18", crop_pct=0.9
    )
    result = convert(path, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (result["architecture"], result["assumed"]) == ("seresnet18", "")
    assert (config["pretrained_cfg"]["crop_pct"], config["pretrained_cfg"]["license"]) == (0.9, "apache-2.0")


@pytest.mark.parametrize("recorded", [{"model.safetensors": "0" * 64}, {"other.safetensors": "0" * 64}, None])
def test_a_config_lends_nothing_to_other_weights_beside_it(
    tmp_path: Path, recorded: dict[str, str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its licence and accuracies are of the file that it describes; where both came from is written in any case."""
    folder, weights = tmp_path / "in", "other.safetensors"
    convert(bare_file(tmp_path), folder, license="mit")
    config = json.loads((folder / "config.json").read_text())
    facts = {**config["seresnet_hub"], "title": "best net"}
    config["seresnet_hub"] = (
        {**facts, "sha256": recorded} if recorded else {k: v for k, v in facts.items() if k != "sha256"}
    )
    (folder / "config.json").write_text(json.dumps(config))
    other = networks.randomise(timm.create_model("seresnet18", num_classes=3), seed=9)
    save_file(other.state_dict(), folder / weights)
    result = convert(folder / weights, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made["seresnet_hub"]["title"] != "best net"
    assert (made["seresnet_hub"]["license"], made["pretrained_cfg"].get("license")) == ("", None)
    assert made["seresnet_hub"]["provenance"]["source_sha256"] == result["sha256_source"]
    assert "no licence is known" in capsys.readouterr().err


def test_a_config_lends_what_it_states_to_the_weights_that_it_describes(tmp_path: Path) -> None:
    convert(bare_file(tmp_path), tmp_path / "in", license="mit")
    result = convert(tmp_path / "in" / "model.safetensors", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["seresnet_hub"]
    assert facts["license"] == "mit"
    assert facts["provenance"]["source_sha256"] == result["sha256_source"]


def test_guessed_preprocessing_is_listed(tmp_path: Path) -> None:
    result = convert(bare_file(tmp_path), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    cfg = config["pretrained_cfg"]
    for text in (
        f"images of {cfg['input_size'][1]} x {cfg['input_size'][2]}", f"mean {tuple(cfg['mean'])}",
        f"std {tuple(cfg['std'])}", f"{cfg['interpolation']} interpolation", f"crop_pct {cfg['crop_pct']}",
    ):  # fmt: skip
        assert text in result["assumed"]
        assert text in config["seresnet_hub"]["provenance"]["assumed"]
        assert text in (tmp_path / "out" / "README.md").read_text()
    # What the config beside the weights names is not assumed.
    (tmp_path / "in").mkdir()
    save_file(load(tmp_path / "out").state_dict(), tmp_path / "in" / "model.safetensors")
    said = {"architecture": "seresnet18", "pretrained_cfg": {k: cfg[k] for k in ("input_size", "mean", "std")}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(said))
    assumed = convert(tmp_path / "in" / "model.safetensors", tmp_path / "third")["assumed"]
    expected = f"{cfg['interpolation']} interpolation, crop_pct {cfg['crop_pct']}"
    assert assumed == f"nothing says how images were prepared: {expected} are assumed"


@pytest.mark.parametrize(
    ("num_classes", "message"),
    [(None, "8 SE units are new"), (3, "8 SE units and the classifier are new")],
)
def test_new_tensors_are_warned_of(
    tmp_path: Path, num_classes: int | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from using drawn numbers as if they were trained."""
    path = saved(networks.randomise(timm.create_model("resnet18", num_classes=2)).state_dict(), tmp_path / "a.pth")
    convert(path, tmp_path / "out", num_classes=num_classes)
    assert f"warning: {message} and untrained: fine-tune before use\n" in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"> **{message} and untrained: fine-tune before use.**" in card
    compared = "stage features and logits" if num_classes is None else "stage features"
    claim = "Without its new SE units the converted network was compared with the source's own in float64: "
    assert f"{claim}{compared} differ by at most " in card


def test_labels(tmp_path: Path) -> None:
    """Protects class names: as many as classes, in the config."""
    state = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False, classes=2)).checkpoint("backbone.")
    path = saved(state, tmp_path / "a.pth")
    (tmp_path / "three.txt").write_text("x\ny\nz\n")
    with pytest.raises(InputError, match="3 labels for 2 classes"):
        convert(path, tmp_path / "out", labels=tmp_path / "three.txt")
    (tmp_path / "two.txt").write_text("x\ny\n")
    convert(path, tmp_path / "out", labels=tmp_path / "two.txt")
    assert load(tmp_path / "out").pretrained_cfg["label_names"] == ["x", "y"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_addresses_and_promised_hashes(tmp_path: Path, server: str) -> None:
    """Protects downloads: the address is kept as provenance, and OpenMMLab's hash in the name is checked."""
    state = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False)).checkpoint("backbone.")
    path = saved(state, tmp_path / "a.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = f"se-resnet18_20200804-{digest[:8]}.pth"
    path.rename(tmp_path / good)
    result = convert(f"{server}/{good}", tmp_path / "out")
    assert result["sha256_source"] == digest
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["seresnet_hub"]["provenance"]["source_url"] == f"{server}/{good}"
    (tmp_path / good).rename(tmp_path / "se-resnet18_20200804-00000000.pth")
    with pytest.raises(InputError, match="its name promises 00000000"):
        convert(f"{server}/se-resnet18_20200804-00000000.pth", tmp_path / "bad")
    with pytest.raises(InputError, match="cannot download"):
        convert(f"{server}/missing.pth", tmp_path / "bad")
    with pytest.raises(InputError, match="from the Hub"):
        convert("nobody/nothing:model.pth", tmp_path / "bad")
    with pytest.raises(InputError, match="no such file"):
        convert(tmp_path / "missing.pth", tmp_path / "bad")


def test_plain_timm_computes_the_same_for_every_source(tmp_path: Path) -> None:
    """Protects the promise that a folder of one of timm's architectures needs nothing of this package."""
    import torchvision

    timm_own, legacy = (timm.create_model(name, num_classes=5) for name in ("seresnet18", "legacy_seresnet18"))
    written: dict[str, tuple[nn.Module, Any]] = {}
    for name, network in {
        "mmpretrain": networks.mmpretrain(SHORT, deep=32, classes=37),
        "moskomule": networks.moskomule(SHORT, bottleneck=False),
        "paddle": networks.Paddle(SHORT),
        "timm": timm_own,
        "cadene": legacy,
        "torchvision": torchvision.models.resnet18(weights=None, num_classes=5),
    }.items():
        original = networks.randomise(network)
        state = original.checkpoint() if hasattr(original, "checkpoint") else original.state_dict()
        written[name] = original, {"state_dict": state} if name != "paddle" else state
    folders = []
    for name, (_, content) in written.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(pickle.dumps(content, 4)) if name == "paddle" else torch.save(content, path)
        assert convert(path, tmp_path / name)["source"] == name
        folders.append(tmp_path / name)
    batch = images(65, 81)
    for folder, logits in zip(folders, plain_timm_logits(folders, batch), strict=True):
        ours = load(folder)(batch) if folder.name == "torchvision" else written[folder.name][0](batch)
        assert (logits - ours).abs().max() < 1e-5, folder.name


def plain_timm_logits(folders: list[Path], batch: torch.Tensor) -> list[torch.Tensor]:
    """Return the folders' logits, computed by a process that knows timm and not this package."""
    code = (
        "import sys, timm, torch\n"
        "batch, answer, *folders = sys.argv[1:]\n"
        "models = [timm.create_model('local-dir:' + folder, pretrained=True).eval() for folder in folders]\n"
        "assert not [name for name in sys.modules if name.startswith('seresnet_hub')]\n"
        "torch.save([model(torch.load(batch)).detach() for model in models], answer)\n"
    )
    given, answer = folders[0].parent / "batch.pt", folders[0].parent / "logits.pt"
    torch.save(batch, given)
    subprocess.run([sys.executable, "-c", code, given, answer, *folders], check=True)
    return torch.load(answer, weights_only=True)


def test_the_script_prints_one_json_line(tmp_path: Path) -> None:
    """Protects the command's contract: the keys of its answer, exit code 2 and one line where the input is wrong."""
    state = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False)).checkpoint("backbone.")
    path = saved(state, tmp_path / "a.pth")
    script = Path(__file__).parents[1] / "scripts" / "convert.py"
    command = [sys.executable, script, path, "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result) == [
        "output", "source", "architecture", "model_args", "tensors", "parameters", "sha256_source", "sha256_weights",
        "max_abs_diff", "dropped", "fresh", "assumed",
    ]  # fmt: skip
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (2, "")
    assert re.fullmatch(r"error: .*exists.*--force\n", again.stderr)


def small(**options: Any) -> dict[str, torch.Tensor]:
    return networks.randomise(networks.mmpretrain(SHORT, bottleneck=False, **options)).checkpoint("backbone.")


BACKBONE = "backbone=dict(type='SEResNet', style='pytorch')"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "norm = dict(type='BN', eps=1e-3)\nmodel = dict(backbone=dict(type='SEResNet', norm_cfg=norm))",
            "not complete",
        ),
        ("more = dict(style='caffe')\nmodel = dict(backbone=dict(type='SEResNet', **more))", "not complete"),
        (f"model = dict({BACKBONE})\nmodel['backbone']['style'] = 'caffe'", "not complete"),
        (f"_base_ = ['caffe.py']\nmodel = dict({BACKBONE})", "not complete"),
        (Namespace(model={"backbone": {"style": "caffe"}}), "pickled object"),
        (f"model = dict({BACKBONE})\ndata_preprocessor = dict(mean=[1, 2, 3], std=[1, 2, 3])", "BGR"),
        (f"model = dict({BACKBONE})\nimg_norm_cfg = dict(mean=[1, 2, 3], std=[1, 2, 3], to_rgb=False)", "BGR"),
        ({"model": {"backbone": {"dilations": ([1],)}}}, "dilations"),
        ({"model": {"backbone": {"depth": 50}, "neck": {"type": ["x"]}}}, "neck"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_relied_on_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    """Protects from options that are there and not seen: they would count as the usual ones."""
    path = saved({"meta": {"cfg": config}, "state_dict": small()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        convert(path, tmp_path / "out")


def test_preprocessing_is_kept_where_only_a_part_can_be_read(tmp_path: Path) -> None:
    """Protects the pixel statistics of a configuration without a centre crop; what is assumed is said."""
    config = f"data_preprocessor = dict(mean=[127.5] , std=[51.0])\nmodel = dict({BACKBONE})"
    config = config.replace("[127.5] ", "[127.5, 127.5, 127.5]").replace("[51.0]", "[51.0, 51.0, 51.0], to_rgb=True")
    result = convert(saved({"meta": {"cfg": config}, "state_dict": small()}, tmp_path / "a.pth"), tmp_path / "out")
    assert result["source"] == "mmpretrain"
    assert load(tmp_path / "out").pretrained_cfg["mean"] == [0.5] * 3
    assert "centre crop of 224" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_config_beside_the_weights_decides(tmp_path: Path, name: str, hub: HubServer) -> None:
    """Protects from anti-aliased networks, whose tensors are those of plain ones; from the Hub as well."""
    original = networks.randomise(timm.create_model("seresnetaa50d", layers=[1, 1, 1, 1], num_classes=5))
    (tmp_path / "in").mkdir()
    if name.endswith(".bin"):
        saved(original.state_dict(), tmp_path / "in" / name)
    else:
        save_file(original.state_dict(), tmp_path / "in" / name)
    config = {"architecture": "seresnetaa50d", "model_args": {"layers": [1, 1, 1, 1]}}
    assert convert(tmp_path / "in" / name, tmp_path / "plain")["architecture"] == "seresnet152d"
    assert "anti-aliasing" in (tmp_path / "plain" / "README.md").read_text()
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    hub.create("model", "timm/anything", {file.name: file.read_bytes() for file in (tmp_path / "in").iterdir()})
    for number, src in enumerate((tmp_path / "in" / name, f"timm/anything:{name}")):
        result = convert(src, tmp_path / str(number))
        assert (result["architecture"], result["max_abs_diff"]) == ("seresnetaa50d", None)
        assert_same(tmp_path / str(number), original, 64, 64)


def test_a_file_of_the_hub_is_what_its_listing_says(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects from other bytes than those that were published, and from a disk that is filled."""
    path = saved(small(), tmp_path / "a.pth")
    hub.create("model", "timm/anything", {"sub/a.pth": path.read_bytes()})
    hub.fault("GET", "a.pth", FlipByte(-5), times=None)
    with pytest.raises(InputError, match="cannot get timm/anything:sub/a.pth from the Hub"):
        convert("timm/anything:sub/a.pth", tmp_path / "out")
    hub.faults.clear()
    with pytest.raises(InputError, match=r"has no sub/b\.pth"):
        convert("timm/anything:sub/b.pth", tmp_path / "out")
    assert convert("timm/anything:sub/a.pth", tmp_path / "out")["source"] == "mmpretrain"
    monkeypatch.setattr(hub_limits, "LARGEST_WEIGHTS", path.stat().st_size - 1)
    with pytest.raises(InputError, match="bytes"):
        convert("timm/anything:sub/a.pth", tmp_path / "other")


def test_a_folder_of_a_legacy_network_is_converted(tmp_path: Path) -> None:
    """Protects this converter's own output as its input."""
    original = networks.randomise(timm.create_model("legacy_seresnet18", num_classes=5))
    convert(saved(original.state_dict(), tmp_path / "a.pth"), tmp_path / "one")
    assert convert(tmp_path / "one" / "model.safetensors", tmp_path / "two")["architecture"] == "legacy_seresnet18"
    assert_same(tmp_path / "two", original, 65, 81)


@pytest.mark.parametrize(
    "config",
    [
        {"model_args": {"checkpoint_path": "x.pth"}},
        {"model_args": [1]},
        {"pretrained_cfg": "x"},
        {"label_names": 7},
        "[" * 100_000,
    ],
    ids=lambda config: str(config)[:40],
)
def test_a_strange_config_beside_the_weights_is_refused(tmp_path: Path, config: Any) -> None:
    """Protects from arguments that make timm open other files, and from tracebacks."""
    save_file(timm.create_model("seresnet18", num_classes=2).state_dict(), tmp_path / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps({"architecture": "seresnet18", **config})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        convert(tmp_path / "model.safetensors", tmp_path / "out")


def test_the_proof_notices_another_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the proof from comparing block by block what already entered the blocks differently."""
    path = saved({"state_dict": small()}, tmp_path / "a.pth")
    other = dataclasses.replace(references.LAYOUTS["mmpretrain"], stem_norm="layer1.0.bn1")
    monkeypatch.setitem(references.LAYOUTS, "mmpretrain", other)
    with pytest.raises(InputError, match="computes something else"):
        convert(path, tmp_path / "new" / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_a_new_classifier_where_blocks_are_compared_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the comparison block by block, which must leave a new classifier out."""
    answers, equal = iter([True, False]), proof.is_equal
    monkeypatch.setattr(proof, "is_equal", lambda *pair: next(answers, equal(*pair)))
    path = saved({"state_dict": small()}, tmp_path / "a.pth")
    assert convert(path, tmp_path / "out", num_classes=3)["fresh"] == ["fc.weight", "fc.bias"]


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


def test_text_that_utf8_cannot_write(tmp_path: Path) -> None:
    """Protects from half surrogate pairs in class names and bytes in file names."""
    content = {"meta": {"CLASSES": ["\ud800"] * 10}, "state_dict": small()}
    convert(saved(content, tmp_path / os.fsdecode(b"\xff.pth")), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == ["?"] * 10


def test_odd_output_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the current folder as a target, and a folder that cannot be replaced whole from half of that."""
    path = saved({"state_dict": small()}, tmp_path / "a.pth")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(path, ".", force=True)
    assert sorted(entry.name for entry in Path().iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (tmp_path / "odd" / "config.json").mkdir(parents=True)
    (tmp_path / "odd" / "model.safetensors").write_text("old")
    with pytest.raises(InputError, match=r"config\.json is a folder"):
        convert(path, tmp_path / "odd", force=True)
    assert (tmp_path / "odd" / "model.safetensors").read_text() == "old"
    for target in (tmp_path / ("a" * 300), tmp_path / "a.pth" / "below"):
        with pytest.raises(InputError, match="cannot write"):
            convert(path, target)
    with pytest.raises(InputError, match="no such file"):
        convert("a" * 5000, tmp_path / "out")


@pytest.mark.parametrize(
    "answer",
    [b"garbage\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc", b""],
    ids=["no HTTP", "cut", "nothing"],
)
def test_servers_that_break_off(tmp_path: Path, answer: bytes) -> None:
    """Protects from tracebacks of the HTTP client."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        with pytest.raises(InputError, match="cannot download"):
            convert(f"http://127.0.0.1:{running.server_address[1]}/a.pth", tmp_path / "out")
        running.shutdown()
        thread.join()
    with pytest.raises(InputError, match="cannot download"):
        convert("http://127.0.0.1:port/a.pth", tmp_path / "out")
