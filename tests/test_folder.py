"""A model folder must load in plain timm, appear whole or not at all, and leave what stood there when it fails."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors
import timm
import torch

import seresnet_hub  # noqa: F401
from seresnet_hub import folder, states
from seresnet_hub.errors import InputError


def write(directory: Path, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("seresnet20_cifar", num_classes=4).eval()
    config = folder.timm_config(
        model,
        pretrained_cfg={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 24, 24), "crop_pct": 0.9,
                        "interpolation": "bicubic"},
        label_names=["a", "b", "c", "d"],
    )  # fmt: skip
    folder.write_model(
        directory,
        model.state_dict(),
        config=config,
        card=lambda config: f"# card of {config['architecture']}\n",
        metadata={"origin": "here"},
    )
    return model


def test_timm_reads_back_weights_and_preprocessing(tmp_path: Path) -> None:
    model = write(tmp_path / "model")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    x = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    config = timm.data.resolve_model_data_config(loaded)
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()} == {
        "input_size": [3, 24, 24], "interpolation": "bicubic", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
        "crop_pct": 0.9, "crop_mode": "center",
    }  # fmt: skip
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (stored["architecture"], stored["num_classes"]) == ("seresnet20_cifar", 4)
    hashes = {"model.safetensors": hashlib.sha256((tmp_path / "model" / "model.safetensors").read_bytes()).hexdigest()}
    assert stored["seresnet_hub"] == {"sha256": hashes}
    assert (tmp_path / "model" / "README.md").read_text() == "# card of seresnet20_cifar\n"
    assert stored["label_names"] == ["a", "b", "c", "d"]
    with safetensors.safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "origin": "here"}
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_the_model_itself_is_not_changed(tmp_path: Path) -> None:
    model = timm.create_model("seresnet20_cifar")
    before = dict(model.pretrained_cfg)
    folder.timm_config(model, pretrained_cfg={"crop_pct": 0.5})
    assert dict(model.pretrained_cfg) == before


def test_an_argument_that_json_cannot_hold_is_named() -> None:
    model = timm.create_model("seresnet20_cifar")
    with pytest.raises(InputError, match="config.json"):
        folder.timm_config(model, pretrained_cfg={}, model_args={"act_layer": torch.nn.ReLU})


def test_a_failed_write_leaves_no_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(folder, "save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        write(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model", seed=0)
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}

    def half(tensors: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(folder, "save_file", half)
    with pytest.raises(InputError):
        write(tmp_path / "model", seed=1)
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "file"
    folder.write_text(target, "old")
    with pytest.raises(KeyError), folder.replacing(target) as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise KeyError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_written_is_on_the_disk_before_anything_else_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power between any two calls leaves the old state or the new one."""
    states.save_state(tmp_path, {"step": 1})
    calls: list[tuple[str, str]] = []
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink

    def flushed(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        calls.append(("replace", Path(new).name))
        replace(old, new)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            calls.append(("unlink", path.name))
        unlink(path, missing_ok=missing_ok)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not say which files are open")
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", unlinked)
    states.save_state(tmp_path, {"step": 2})
    assert calls == [
        ("fsync", f".step-00000002.safetensors.{os.getpid()}.partial"), ("replace", "step-00000002.safetensors"),
        ("fsync", "training"), ("unlink", "step-00000001.safetensors"),
    ]  # fmt: skip


def test_a_new_folders_files_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(folder, "_flush", lambda path: flushed.append(path.name))
    with folder.replacing(tmp_path / "new") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file").touch()
    assert {*flushed} == {"inner", "file", tmp_path.name}
