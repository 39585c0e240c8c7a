"""A conversion must compute exactly what its source computes, or be refused with the reason."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from foreign_files import EXACT, SHORT, assert_same, images, load, saved, small
from references import networks
from safetensors import safe_open
from torch import nn
from warm_python import run_python

from seresnet_hub.conversion.convert import convert
from seresnet_hub.conversion.run_in_float64 import float64_outputs
from seresnet_hub.errors import InputError
from seresnet_hub.files import model_folder

pytestmark = pytest.mark.usefixtures("quick_weights")


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
def test_mmpretrain_api(
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
    run_python([sys.executable, "-c", code, given, answer, *folders], check=True)
    return torch.load(answer, weights_only=True)


def test_the_script_prints_one_json_line(tmp_path: Path) -> None:
    """Protects the command's contract: the keys of its answer, exit code 2 and one line where the input is wrong."""
    state = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False)).checkpoint("backbone.")
    path = saved(state, tmp_path / "a.pth")
    script = Path(__file__).parents[1] / "scripts" / "convert.py"
    command = [sys.executable, script, path, "--output", tmp_path / "out"]
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result) == [
        "output", "source", "architecture", "model_args", "tensors", "parameters", "sha256_source", "sha256_weights",
        "max_abs_diff", "dropped", "fresh", "assumed",
    ]  # fmt: skip
    again = run_python(command)
    assert (again.returncode, again.stdout) == (2, "")
    assert re.fullmatch(r"error: .*exists.*--force\n", again.stderr)


def test_a_folder_of_a_legacy_network_is_converted(tmp_path: Path) -> None:
    """Protects this converter's own output as its input."""
    original = networks.randomise(timm.create_model("legacy_seresnet18", num_classes=5))
    convert(saved(original.state_dict(), tmp_path / "a.pth"), tmp_path / "one")
    assert convert(tmp_path / "one" / "model.safetensors", tmp_path / "two")["architecture"] == "legacy_seresnet18"
    assert_same(tmp_path / "two", original, 65, 81)


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


def test_weights_of_double_precision_stay_what_they_are(tmp_path: Path) -> None:
    """Protects the proof from rounding: it compares the tensors of the file, and so does what is written."""
    state = {
        name: tensor.double() * (1 + 1e-9) if tensor.is_floating_point() else tensor
        for name, tensor in timm.create_model("seresnet20_cifar").state_dict().items()
    }
    result = convert(saved(state, tmp_path / "double.pth"), tmp_path / "out")
    assert result["max_abs_diff"] < 1e-12
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as written:
        assert torch.equal(written.get_tensor("conv1.weight"), state["conv1.weight"])
