"""No layer may be random that nobody asked to be: config and file must describe one network, or nothing is loaded."""

from __future__ import annotations

import inspect
import json
import shutil
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
from seresnet_hub.files.atomic_writing import sha256_of, write_json
from seresnet_hub.files.model_folder import timm_config, write_weights
from seresnet_hub.models.load import origin_of
from seresnet_hub.models.strict_loading import load_weights
from seresnet_hub.publishing.verify import verify

NAMES = ["ant", "bee", "cat", "dog"]


pytestmark = pytest.mark.usefixtures("quick_weights")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("original") / "model"
    model = timm.create_model("seresnet20_cifar", num_classes=4)
    write_weights(folder, model.state_dict())
    write_json(folder / "config.json", timm_config(model, pretrained_cfg={}, label_names=NAMES))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


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
    "very many blocks": (lambda f: edit(f, model_args={"layers": [900_000, 1, 1]}), "far more layers than"),
    "very many blocks of another network": (
        lambda f: edit(f, architecture="convnext_atto", model_args={"depths": [900_000, 1, 1, 1]}),
        "far more values than its file",
    ),
    "a billion blocks": (
        lambda f: edit(f, architecture="vit_tiny_patch16_224", model_args={"depth": 1_000_000_000}),
        "expected a table whose numbers are at most 1,000,000 together",
    ),
    "a billion blocks in many stages": (
        lambda f: edit(f, architecture="convnext_atto", model_args={"depths": [1_000_000] * 1000}),
        "expected a table whose numbers are at most 1,000,000 together",
    ),
    "another device": (lambda f: edit(f, model_args={"device": "cpu"}), "has 'device'"),
    "not a number": (
        lambda f: change(f, lambda t: t["layer1.0.conv1.weight"].view(-1)[:1].fill_(float("nan"))),
        "tensor 'layer1.0.conv1.weight' has NaN or infinite values",
    ),
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
    ("label_names", {"a": "ant", "b": "bee", "c": "cat", "d": "dog"}), ("label_descriptions", {"ant": 5}),
    ("seresnet_hub", None), ("seresnet_hub", [1]), ("seresnet_hub", "mit"), ("seresnet_hub", 5),
]  # fmt: skip
WRONG_PREPROCESSING = [
    ("input_size", 32), ("input_size", [3, 32]), ("input_size", [3, 0, 32]), ("mean", "grey"), ("mean", ["a"]),
    ("std", 1), ("crop_pct", "all"), ("interpolation", 3), ("crop_mode", []), ("num_classes", 1.5),
    ("input_size", [3, 10**9, 10**9]), ("mean", [0.5, 0.5]), ("mean", [0.5, float("nan"), 0.5]), ("std", [1, 0, 1]),
    ("std", [1, float("inf"), 1]), ("crop_pct", -1), ("crop_pct", 0), ("crop_pct", float("nan")), ("license", ["mit"]),
    ("interpolation", "xyz"), ("interpolation", "random"), ("crop_mode", "xyz"), ("label_names", {"a": "b"}),
    ("label_descriptions", {"ant": 5}), ("classifier", 5), ("first_conv", [1]), ("mean", [10**400] * 3),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES)
def test_a_value_of_the_wrong_type_is_named(key: str, value: Any, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    for call in (seresnet_hub.load, verify, origin_of):
        with pytest.raises(InputError, match=f"config.json: '{key}' is .*, expected"):
            call(folder)


@pytest.mark.parametrize(("key", "value"), WRONG_PREPROCESSING)
def test_preprocessing_of_the_wrong_type_is_named(key: str, value: Any, folder: Path) -> None:
    edit(folder, pretrained_cfg={key: value})
    with pytest.raises(InputError, match=f"config.json: '{key}' is .*, expected"):
        seresnet_hub.load(folder)


def test_a_config_of_nothing_but_brackets_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    for call in (seresnet_hub.load, verify, origin_of):
        with pytest.raises(InputError, match="cannot read .*config.json"):
            call(folder)


def test_a_recorded_file_that_is_missing_is_named(folder: Path) -> None:
    hashes = {"model.safetensors": sha256_of(folder / "model.safetensors"), "README.md": "0" * 64}
    edit(folder, seresnet_hub={"sha256": hashes})
    with pytest.raises(InputError, match=r"README.md is missing, damaged or exchanged"):
        seresnet_hub.load(folder)
    result = verify(folder)
    assert not result["ok"]
    assert {name: file["ok"] for name, file in result["files"].items()} == {
        "README.md": False,
        "model.safetensors": True,
    }


@pytest.mark.parametrize(
    "kwargs",
    [
        {}, {"num_classes": 4}, {"num_classes": 7}, {"num_classes": 0}, {"in_chans": 1}, {"in_chans": 5},
        {"features_only": True}, {"features_only": True, "out_indices": (1, 2), "in_chans": 1},
        {"features_only": True, "feature_cls": "getter"}, {"drop_path_rate": 0.1}, {"dtype": torch.bfloat16},
        {"num_classes": 0, "global_pool": ""}, {"num_classes": 3, "global_pool": "catavgmax"},
        {"num_classes": 4, "in_chans": 1}, {"num_classes": 4, "features_only": True},
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


def four_channels(folder: Path) -> dict[str, torch.Tensor]:
    """Write a model folder of four channels, and return its tensors."""
    model = timm.create_model("seresnet20_cifar", in_chans=4)
    write_weights(folder, model.state_dict())
    config = timm_config(model, pretrained_cfg={"input_size": (4, 32, 32)}, model_args={"in_chans": 4})
    write_json(folder / "config.json", config)
    return dict(model.state_dict())


def test_a_stem_is_the_files_whatever_the_version_of_timm(tmp_path: Path) -> None:
    """timm 1.0.26 makes even the four channels that a folder has random."""
    tensors = four_channels(tmp_path)
    assert torch.equal(seresnet_hub.load(tmp_path).conv1.weight, tensors["conv1.weight"])


@pytest.mark.parametrize("in_chans", [1, 3, 6])
def test_a_stem_of_other_channels_is_the_files_adapted(tmp_path: Path, in_chans: int) -> None:
    stem = four_channels(tmp_path)["conv1.weight"]
    if "base_chans" not in inspect.signature(timm.models.adapt_input_conv).parameters:
        with pytest.raises(InputError, match="cannot (be adapted|create model)"):
            seresnet_hub.load(tmp_path, in_chans=in_chans)
        return
    grey = torch.ones(2, 1, 32, 32)
    found = seresnet_hub.load(tmp_path, in_chans=in_chans).conv1(grey.expand(-1, in_chans, -1, -1))
    inputs = grey.expand(-1, 4, -1, -1)
    if in_chans == 1:  # its weights are the sum of the four channels'
        torch.testing.assert_close(found, torch.conv2d(inputs, stem, padding=1))
    else:  # the first channels', repeated, and scaled to the sum of four
        used = torch.arange(in_chans) % 4
        expected = torch.conv2d(inputs, stem[:, used].sum(1, keepdim=True).expand(-1, 4, -1, -1), padding=1) / in_chans
        torch.testing.assert_close(found, expected)


def test_a_stem_that_timm_cannot_adapt_is_refused(tmp_path: Path) -> None:
    """Of a plain file of 48 channels behind a stem of space to depth, timm can make one channel, and not five."""
    torch.manual_seed(0)
    model = timm.create_model("tresnet_m", num_classes=4)
    write_weights(tmp_path, model.state_dict())
    write_json(tmp_path / "config.json", timm_config(model, pretrained_cfg={}))
    assert seresnet_hub.load(tmp_path, in_chans=1).num_classes == 4
    with pytest.raises(InputError, match="in_chans=5: the stem of .*, of 3, cannot be adapted"):
        seresnet_hub.load(tmp_path, in_chans=5)


@pytest.mark.parametrize(
    ("in_chans", "missing", "message"),
    [
        (5, "", r"'conv1.weight' has the shape \(16, 4, 3, 3\), expected \(16, 5, 3, 3\)"),
        (4, "layer2.0.conv1.weight", "'layer2.0.conv1.weight' is missing"),
        (4, "bn1.bias", "'bn1.bias' is missing"),  # which would be zeros, whatever the seed
    ],
)
def test_where_timm_switches_strictness_off_itself_nothing_is_random(
    tmp_path: Path, in_chans: int, missing: str, message: str
) -> None:
    """timm 1.0.26 does where it cannot adapt a stem."""
    four_channels(tmp_path)
    three = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}
    edit(tmp_path, pretrained_cfg=three, model_args={"in_chans": in_chans})
    if missing:
        change(tmp_path, lambda tensors: tensors.pop(missing))
    for kwargs in ({}, {"num_classes": 3}, {"features_only": True}):
        with pytest.raises(InputError, match=message):
            seresnet_hub.load(tmp_path, **kwargs)


@pytest.mark.parametrize(
    ("architecture", "classifier"),
    [("seresnet20_cifar", ["fc", "layer2.0.conv1"]), ("vit_tiny_patch16_224", ["head", "blocks.0.attn.qkv"])],
)
def test_the_config_does_not_say_which_layers_may_be_random(
    tmp_path: Path, architecture: str, classifier: list[str]
) -> None:
    model = timm.create_model(architecture, num_classes=4)
    write_weights(tmp_path, model.state_dict())
    write_json(tmp_path / "config.json", timm_config(model, pretrained_cfg={"classifier": classifier}))
    seresnet_hub.load(tmp_path)
    for kwargs in ({"num_classes": 3}, {"features_only": True}, {"features_only": True, "feature_cls": "getter"}):
        with pytest.raises(InputError, match=rf"did not take tensor '(model\.)?{classifier[1]}.weight' from the file"):
            seresnet_hub.load(tmp_path, **kwargs)
    write_json(tmp_path / "config.json", timm_config(model, pretrained_cfg={}))
    for kwargs in ({"num_classes": 3}, {"features_only": True}, {"features_only": True, "feature_cls": "getter"}):
        seresnet_hub.load(tmp_path, **kwargs)


def test_a_tensor_that_timm_would_resize_is_refused(tmp_path: Path) -> None:
    """The config asks for images of 64 pixels, the file's places are those of 224."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4)
    write_weights(tmp_path, model.state_dict())
    write_json(tmp_path / "config.json", timm_config(model, pretrained_cfg={}))
    edit(tmp_path, model_args={"img_size": 64})
    for kwargs in ({}, {"num_classes": 3}):
        with pytest.raises(InputError, match=r"'pos_embed' has the shape \(1, 197, 192\), expected \(1, 17, 192\)"):
            seresnet_hub.load(tmp_path, **kwargs)


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
    adapted = load_weights("resnet10t.c3_in1k", tmp_path / "whole.safetensors", {"num_classes": 3})
    assert torch.equal(adapted.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    state = model.state_dict()
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "part.safetensors")
    for kwargs in ({}, {"num_classes": 3}, {"features_only": True}):
        with pytest.raises(InputError, match="resnet10t.c3_in1k has not the tensors .*'layer1.0.conv1.weight' is miss"):
            load_weights("resnet10t.c3_in1k", tmp_path / "part.safetensors", kwargs)


def of_its_authors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A ConvNeXt's tensors under its authors' names, which timm's table takes."""
    own = {"norm.": "head.norm.", "head.": "head.fc."}
    theirs = {}
    for name, tensor in model.state_dict().items():
        for old, new in own.items():
            name = old + name.removeprefix(new) if name.startswith(new) else name
        theirs[name.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv")] = tensor
    return theirs


def test_what_timm_renames_itself_still_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto")
    save_file(of_its_authors(model), tmp_path / "theirs.safetensors")
    for kwargs in ({}, {"num_classes": 3}, {"features_only": True}, {"in_chans": 1}):
        loaded = load_weights("convnext_atto.d2_in1k", tmp_path / "theirs.safetensors", kwargs)
        found = {name.replace(".", "_"): tensor for name, tensor in loaded.state_dict().items()}
        for name, tensor in model.state_dict().items():
            if name == "stem.0.weight" and "in_chans" in kwargs:
                torch.testing.assert_close(found["stem_0_weight"], tensor.sum(1, keepdim=True))
            elif not name.startswith("head.") or not kwargs:
                assert torch.equal(found[name.replace(".", "_")], tensor), name


def test_what_timm_renames_itself_is_as_strict(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto")
    write_weights(tmp_path, of_its_authors(model))
    write_json(tmp_path / "config.json", timm_config(model, pretrained_cfg={}))
    seresnet_hub.load(tmp_path)
    for kwargs in ({"num_classes": 3}, {"features_only": True}):
        with pytest.raises(InputError, match=r"depths=\(2, 2, 8, 2\) asks for: tensor 'stages.2.blocks.6.* is missing"):
            seresnet_hub.load(tmp_path, **kwargs, depths=(2, 2, 8, 2))
    change(tmp_path, lambda tensors: tensors.pop("norm.weight"))
    with pytest.raises(InputError, match="has not the tensors"):
        seresnet_hub.load(tmp_path)


def test_weights_that_timm_once_had_from_numpy_are_read_as_what_they_are(tmp_path: Path) -> None:
    """timm 1.0.26 reads any file of such a name as NumPy's format."""
    name = "vit_tiny_patch16_224.augreg_in21k"
    torch.manual_seed(0)
    model = timm.create_model(name.split(".")[0], num_classes=4)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    overlay = {"num_classes": 4, "custom_load": True}
    for kwargs in ({"num_classes": 3}, {"features_only": True}):
        load_weights(name, tmp_path / "model.safetensors", {**kwargs, "pretrained_cfg_overlay": overlay})


def test_our_own_weights_are_as_strict() -> None:
    with pytest.raises(InputError, match=r"layers=\[4, 3, 3\] asks for: tensor 'layer1.3"):
        seresnet_hub.load("seresnet20_cifar.c10", num_classes=3, layers=[4, 3, 3])


def test_verify_is_as_strict(folder: Path) -> None:
    edit(folder, seresnet_hub={"sha256": {"model.safetensors": sha256_of(folder / "model.safetensors")}})
    assert verify(folder)["ok"]
    assert verify(str(folder))["ok"]
    edit(folder, num_classes=5, model_args={"num_classes": 4})
    assert not verify(folder)["ok"]
