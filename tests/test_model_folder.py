"""A model folder must load in plain timm, appear whole or not at all, and leave what stood there when it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import pytest
import safetensors
import timm
import torch

import seresnet_hub  # noqa: F401
from seresnet_hub.errors import InputError
from seresnet_hub.files import atomic_writing as writing
from seresnet_hub.files import durability, locks
from seresnet_hub.files import model_folder as folder
from seresnet_hub.training import checkpoint
from seresnet_hub.training import start_or_resume as starting


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
    writing.write_text(target, "old")
    with pytest.raises(KeyError), writing.replacing(target) as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise KeyError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_written_is_on_the_disk_before_anything_else_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power between any two calls leaves the old state or the new one."""
    checkpoint.save_checkpoint(tmp_path, {"step": 1})
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
    checkpoint.save_checkpoint(tmp_path, {"step": 2})
    written = calls[0][1]
    assert re.fullmatch(rf"\.step-00000002\.safetensors\.{os.getpid()}-[0-9a-f]{{8}}-\d+\.partial", written)
    assert calls == [
        ("fsync", written), ("replace", "step-00000002.safetensors"), ("fsync", "training"),
        ("unlink", "step-00000001.safetensors"),
    ]  # fmt: skip


def test_a_new_folders_files_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the names in it, before it gets its own name, and the names of the folders that were made around it."""
    flushed: list[str] = []
    monkeypatch.setattr(durability, "_flush", lambda path, _: flushed.append(path.name))
    with writing.replacing(tmp_path / "around" / "new") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file").touch()
    assert flushed == [tmp_path.name, "file", "inner", temporary.name, "around"]


def test_a_disk_that_fails_is_not_taken_for_one_that_cannot_flush_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older state must stay where the new one's name may not be on the disk."""
    checkpoint.save_checkpoint(tmp_path, {"step": 1})
    fsync = os.fsync
    for code, message in ((errno.EIO, "cannot write .*step-00000002.safetensors"), (errno.EINVAL, None)):

        def fail(descriptor: int, code: int = code) -> None:
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(InputError, match=message) if message else nullcontext():
            checkpoint.save_checkpoint(tmp_path, {"step": 2})
        assert (tmp_path / "training" / "step-00000001.safetensors").exists() == bool(message)


def test_names_that_are_too_long_are_one_line(tmp_path: Path) -> None:
    name = tmp_path / ("x" * 256)
    for filled in (writing.filling(name), writing.staging(name, [])):
        with pytest.raises(InputError, match="cannot write .*File name too long"), filled as staged:
            raise AssertionError(staged)


def test_a_name_with_a_nul_is_one_line(tmp_path: Path) -> None:
    for write in (writing.write_text, lambda path, _: checkpoint.save_checkpoint(path, {"step": 1})):
        with pytest.raises(InputError, match="cannot write"):
            write(tmp_path / "a\0b", "text")


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    for name in ("x" * 255, "\u5b57" * 85):
        writing.write_text(tmp_path / name, "text")
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """safetensors writes such a file, but cannot read it: the run could never go on."""
    output = tmp_path / os.fsdecode(b"\xff\xfe")
    with pytest.raises(InputError, match="is not valid UTF-8"):
        checkpoint.save_checkpoint(output, {"step": 1, "model": {"weight": torch.ones(2)}})
    with pytest.raises(InputError, match="is not valid UTF-8"), ExitStack() as on_exit:
        starting.begin(output, resume=True, say=print, on_exit=on_exit)
    assert list(tmp_path.iterdir()) == []


only_writer = partial(locks.only_writer, patience=0.4)


def test_files_are_replaced_together_and_by_one_writer(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with writing.staging(tmp_path / "model", ["a", "b"]) as staged:
        for name in ("a", "b"):
            (staged / name).write_text("first")
        with pytest.raises(InputError, match="model is in use by another process"), only_writer(tmp_path / "model"):
            raise AssertionError("two are in there")
        assert not (tmp_path / "model" / "a").exists()
    assert {path.name: path.read_text() for path in (tmp_path / "model").iterdir()} == {"a": "first", "b": "first"}
    with pytest.raises(KeyError), writing.staging(tmp_path / "model", ["a", "b"]) as staged:  # noqa: PT012
        (staged / "a").write_text("second")
        raise KeyError
    assert {path.name: path.read_text() for path in (tmp_path / "model").iterdir()} == {"a": "first", "b": "first"}


def test_a_training_run_keeps_others_out_of_its_folder(tmp_path: Path) -> None:
    lock = locks.acquire(tmp_path / locks.RUN_LOCK, what="run", say=print)
    with pytest.raises(InputError, match=f"is in use by process {os.getpid()} on "), only_writer(tmp_path):
        raise AssertionError("two are in there")
    lock.release()
