"""No layer may be random that nobody asked to be: config and file must describe one network, or nothing is loaded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.folder import sha256_of, timm_config, write_json, write_weights
from seresnet_hub.hub import verify
from seresnet_hub.strict import load_weights

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model("seresnet20_cifar", num_classes=4)
    write_weights(tmp_path / "model", model.state_dict())
    write_json(tmp_path / "model" / "config.json", timm_config(model, pretrained_cfg={}, label_names=NAMES))
    return tmp_path / "model"


def edit(folder: Path, **changes: Any) -> None:
    """Lay `changes` over the config; tables are merged."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))


def change(folder: Path, do: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    do(tensors)
    save_file(tensors, folder / "model.safetensors")


CONTRADICTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "other number of classes": (
        lambda f: edit(f, num_classes=5),
        "'fc.weight' has the shape (4, 64), expected (5, 64)",
    ),
    "as older folders have it": (
        lambda f: edit(f, num_classes=5, model_args={"num_classes": 4}),
        "config.json says 5 classes, and the network that it describes has 4",
    ),
    "arguments dropped": (lambda f: edit(f, model_args={"kwargs_filter": ["num_classes"]}), "has 'kwargs_filter'"),
    "strictness off": (
        lambda f: edit(f, architecture="seresnet56_cifar", model_args={"pretrained_strict": False}),
        "has 'pretrained_strict'",
    ),
    "another architecture": (lambda f: edit(f, architecture="seresnet56_cifar"), "'layer1.3.conv1.weight' is missing"),
    "another file": (lambda f: edit(f, model_args={"checkpoint_path": "/etc/passwd"}), "has 'checkpoint_path'"),
    "missing tensor": (
        lambda f: change(f, lambda t: t.pop("layer2.0.conv1.weight")),
        "'layer2.0.conv1.weight' is missing",
    ),
    "extra tensor": (
        lambda f: change(f, lambda t: t.update(more=torch.ones(2))),
        "'more' belongs to none of its layers",
    ),
    "other shape": (
        lambda f: change(f, lambda t: t.update({"layer3.0.conv2.weight": torch.ones(3, 3)})),
        "'layer3.0.conv2.weight' has the shape (3, 3), expected (64, 64, 3, 3)",
    ),
    "no such architecture": (lambda f: edit(f, architecture="seresnet9000"), "has no architecture 'seresnet9000'"),
    "no architecture": (lambda f: edit(f, architecture=None), "names no architecture"),
    "a million blocks": (lambda f: edit(f, model_args={"layers": [1_000_000, 1, 1]}), "more blocks than"),
    "a wrong argument": (lambda f: edit(f, model_args={"output_stride": 1}), "output_stride=1"),
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b"\x10" * 40), "is no whole safetensors file"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 3}, {"features_only": True}], ids=str)
@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_one_line(case: str, kwargs: dict[str, Any], folder: Path) -> None:
    damage, message = CONTRADICTIONS[case]
    damage(folder)
    with pytest.raises(InputError) as caught:
        seresnet_hub.load(folder, **kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_way_to_name_a_model_is_strict(folder: Path, photo: Image.Image) -> None:
    edit(folder, num_classes=5, model_args={"num_classes": 4})
    for name in (str(folder), f"local-dir:{folder}", f"LOCAL-DIR:{folder}", folder):
        for call in (
            lambda name=name: seresnet_hub.predict(name, photo),
            lambda name=name: seresnet_hub.extract_features(name, photo),
            lambda name=name: seresnet_hub.inference_model(name, photo),
            lambda name=name: seresnet_hub.get_model(name, pretrained=True),
        ):
            with pytest.raises(InputError, match="config.json says 5 classes"):
                call()


WRONG_TYPES = [
    ("num_classes", "four"), ("num_classes", True), ("num_classes", -1), ("label_names", 7), ("label_names", [1, 2]),
    ("model_args", None), ("model_args", [1]), ("pretrained_cfg", None), ("architecture", 5), ("architecture", ["a"]),
]  # fmt: skip
WRONG_PREPROCESSING = [
    ("input_size", 32), ("input_size", [3, 32]), ("input_size", [3, 0, 32]), ("mean", "grey"), ("mean", ["a"]),
    ("std", 1), ("crop_pct", "all"), ("interpolation", 3), ("crop_mode", []), ("num_classes", 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES)
def test_a_value_of_the_wrong_type_is_named(key: str, value: Any, folder: Path) -> None:
    edit(folder, **{key: value})
    with pytest.raises(InputError, match=f"config.json: '{key}' is .*, expected"):
        seresnet_hub.load(folder)


@pytest.mark.parametrize(("key", "value"), WRONG_PREPROCESSING)
def test_preprocessing_of_the_wrong_type_is_named(key: str, value: Any, folder: Path) -> None:
    edit(folder, pretrained_cfg={key: value})
    with pytest.raises(InputError, match=f"config.json: '{key}' is .*, expected"):
        seresnet_hub.load(folder)


@pytest.mark.parametrize(
    "kwargs",
    [
        {}, {"num_classes": 4}, {"num_classes": 7}, {"num_classes": 0}, {"in_chans": 1}, {"in_chans": 5},
        {"features_only": True}, {"features_only": True, "out_indices": (1, 2), "in_chans": 1},
        {"features_only": True, "feature_cls": "getter"}, {"drop_path_rate": 0.1}, {"dtype": torch.bfloat16},
        {"num_classes": 0, "global_pool": ""},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_asked_for_is_timms(kwargs: dict[str, Any], folder: Path) -> None:
    torch.manual_seed(1)
    ours = seresnet_hub.load(folder, **kwargs)
    torch.manual_seed(1)
    timms = timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()
    published = load_file(folder / "model.safetensors")
    for name, tensor in timms.state_dict().items():
        mine = ours.state_dict()[name]
        assert mine.shape == tensor.shape
        assert mine.dtype == tensor.dtype
        if not name.startswith("fc."):  # drawn anew
            assert torch.equal(mine, tensor), name
        if name in published and published[name].shape == tensor.shape:
            assert torch.equal(mine, published[name].to(mine.dtype)), name
    assert not ours.training


def test_arguments_that_leave_other_layers_random_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"num_classes=3, layers=\[4, 3, 3\] asks for: tensor 'layer1.3"):
        seresnet_hub.load(folder, num_classes=3, layers=[4, 3, 3])


def test_a_stem_is_as_it_should_be_or_refused_and_never_random(tmp_path: Path) -> None:
    """What timm can adapt depends on its version; its older ones make even the folder's own four channels random."""
    model = timm.create_model("seresnet20_cifar", in_chans=4)
    write_weights(tmp_path, model.state_dict())
    config = timm_config(model, pretrained_cfg={"input_size": (4, 32, 32)}, model_args={"in_chans": 4})
    write_json(tmp_path / "config.json", config)
    for kwargs in ({}, {"in_chans": 1}, {"in_chans": 3}, {"in_chans": 6}):
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            with contextlib.suppress(InputError):
                found.append(seresnet_hub.load(tmp_path, **kwargs).conv1.weight)
        assert len(found) in (0, 2)
        assert not found or torch.equal(*found)
        assert kwargs or not found or torch.equal(found[0], model.conv1.weight)


def test_a_norm_without_its_step_count_is_whole(folder: Path) -> None:
    """torch fills that in for old files; nothing is computed with it."""
    change(
        folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith("num_batches_tracked")]
    )
    seresnet_hub.load(folder)
    seresnet_hub.load(folder, num_classes=3)


def test_a_file_of_a_timm_name_is_held_against_its_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t")
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    adapted = load_weights("resnet10t.c3_in1k", tmp_path / "whole.safetensors", num_classes=3)
    assert torch.equal(adapted.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    state = model.state_dict()
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "part.safetensors")
    for kwargs in ({}, {"num_classes": 3}, {"features_only": True}):
        with pytest.raises(InputError, match="resnet10t.c3_in1k has not the tensors .*'layer1.0.conv1.weight' is miss"):
            load_weights("resnet10t.c3_in1k", tmp_path / "part.safetensors", **kwargs)


def test_what_timm_renames_itself_still_loads(tmp_path: Path) -> None:
    """timm's table takes ConvNeXt files of their authors' own names."""
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto")
    own = {"norm.": "head.norm.", "head.": "head.fc."}
    theirs = {}
    for name, tensor in model.state_dict().items():
        for old, new in own.items():
            name = old + name.removeprefix(new) if name.startswith(new) else name
        theirs[name.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv")] = tensor
    save_file(theirs, tmp_path / "theirs.safetensors")
    for kwargs in ({}, {"num_classes": 3}):
        loaded = load_weights("convnext_atto.d2_in1k", tmp_path / "theirs.safetensors", **kwargs)
        assert torch.equal(loaded.stem[0].weight, model.stem[0].weight)


def test_verify_is_as_strict(folder: Path) -> None:
    edit(folder, seresnet_hub={"sha256": {"model.safetensors": sha256_of(folder / "model.safetensors")}})
    assert verify(folder)["ok"]
    assert verify(str(folder))["ok"]
    edit(folder, num_classes=5, model_args={"num_classes": 4})
    assert not verify(folder)["ok"]
