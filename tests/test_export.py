"""An export is whole, proven and described, or one line of error with nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import seresnet_hub
from seresnet_hub.engines.exported_files import checked_bytes, find_export, read_record, record_text
from seresnet_hub.errors import InputError
from seresnet_hub.exporting import export as export_module
from seresnet_hub.exporting import formats
from seresnet_hub.exporting.export import export
from seresnet_hub.exporting.export_proof import photograph_crops
from seresnet_hub.exporting.export_request import ExportRequest
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.inference.model_identity import tensors_sha256

NAME = "seresnet20_cifar.c10"
QUICK = {"format": "torch-export"}  # needs no other package


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seresnet_hub.load(NAME)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return export(NAME, tmp_path_factory.mktemp("exported") / "new" / "folder", **QUICK)


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_record_says_what_the_file_is(exported: dict[str, Any], model: nn.Module) -> None:
    folder = Path(exported["output"])
    assert left(folder) == ["torch-export", "torch-export/model.json", "torch-export/model.pt2"]
    record = read_record(Path(exported["record"]))
    assert record.facts.tensors_sha256 == tensors_sha256(model)
    assert record.facts.class_names is not None
    assert record.facts.class_names[:2] == ("airplane", "automobile")
    assert (record.facts.architecture, record.facts.model, record.facts.fused) == ("seresnet20_cifar", NAME, True)
    assert (record.facts.batch, record.facts.dynamic_size, record.facts.preprocessing) == (None, False, False)
    assert record.proof["largest_difference"] == exported["largest_difference"] <= 1e-5
    assert (record.accuracy, record.quantization) == (None, None)
    json.dumps(exported, allow_nan=False)


def test_plain_torch_runs_the_file(exported: dict[str, Any], model: nn.Module) -> None:
    network = torch.export.load(exported["files"][0]).module()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-4)


def test_what_is_there_is_replaced_with_force_alone(exported: dict[str, Any]) -> None:
    before = Path(exported["record"]).read_bytes()
    with pytest.raises(InputError, match=r"model\.json exists; .*--force"):
        export(NAME, exported["output"], **QUICK)
    assert Path(exported["record"]).read_bytes() == before
    again = export(NAME, exported["output"], batch=2, force=True, **QUICK)
    assert read_record(Path(again["record"])).facts.batch == 2
    export(NAME, exported["output"], force=True, **QUICK)  # as the other tests expect it


def test_a_kill_leaves_the_old_export_or_the_new_one_or_none(exported: dict[str, Any], tmp_path: Path) -> None:
    """Of OpenVINO's two files, neither this package nor another program may open one with the other's forerunner."""
    facts = replace(read_record(Path(exported["record"])).facts, format="openvino")
    request = ExportRequest(
        output=tmp_path, format="openvino", precision="fp32", fuse=True, batch=None, side=None, dynamic_size=False,
        with_preprocessing=False, calibrate=None, data=None, split=None, keep=(), max_drop=None,
    )  # fmt: skip

    def write(folder: Path, text: str) -> None:
        folder.mkdir(exist_ok=True)
        for name in request.files:
            (folder / name).write_text(f"{text} {name}")
        hashes = {name: sha256_of(folder / name) for name in request.files}
        (folder / request.record.name).write_text(record_text(facts, hashes, {}))

    def replace_all() -> None:
        with export_module._only_if_whole(request) as staged:
            write(staged, "new")

    def killed(event: int) -> bool:
        """Whether a child that replaces the export is killed, at one of its changes of the folder."""
        if (child := os.fork()) == 0:
            seen = 0

            def hook(name: str, arguments: tuple[Any, ...]) -> None:
                nonlocal seen
                if name in ("os.rename", "os.remove") and str(arguments[0]).startswith(str(tmp_path)):
                    seen += 1
                    if seen == event:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            try:
                replace_all()
            finally:
                os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    def version() -> bytes | None:
        """Of the files, None where they are refused."""
        try:
            contents = checked_bytes(read_record(find_export(tmp_path, "openvino"))).values()
        except InputError as error:
            return None if "has no export to openvino" in str(error) else b"damaged"
        (one,) = {content.split()[0] for content in contents}
        return one

    folder, found = request.record.parent, set()
    write(folder, "old")
    for event in range(1, 20):
        if not killed(event):
            break
        there = {path.name: path.read_text().partition(" ")[0] for path in folder.iterdir() if path.is_file()}
        if "openvino_model.xml" in there:
            assert there["openvino_model.xml"] == there["openvino_model.bin"]
        found.add(version())
        write(folder, "old")
    assert found == {b"old", None}
    assert event > 5
    replace_all()
    assert left(folder) == ["openvino_model.bin", "openvino_model.json", "openvino_model.xml"]
    assert version() == b"new"


def test_exports_of_another_network_are_not_mixed(exported: dict[str, Any]) -> None:
    other = seresnet_hub.load("resnet20_cifar", pretrained=False)
    with pytest.raises(InputError, match=r"is of another network, whose tensors differ"):
        export(other, exported["output"], precision="fp16", **QUICK)


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself is changed on its way, so the comparison has to notice."""
    write = formats.FORMATS["torch-export"].write

    def wrong(program: Any, path: Path, facts: Any) -> None:
        for name, weights in program.state_dict.items():
            if name.endswith("fc.bias"):
                weights += 1e-3
        write(program, path, facts)

    monkeypatch.setitem(
        export_module.FORMATS, "torch-export",
        formats.Format(**{**vars(formats.FORMATS["torch-export"]), "write": wrong}),
    )  # type: ignore[index]  # fmt: skip
    with pytest.raises(InputError, match="does not compute what the network does"):
        export(NAME, tmp_path / "out", **QUICK)
    assert left(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(program: Any, path: Path, facts: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setitem(
        export_module.FORMATS, "torch-export",
        formats.Format(**{**vars(formats.FORMATS["torch-export"]), "write": full}),
    )  # type: ignore[index]  # fmt: skip
    with pytest.raises(InputError, match="cannot write .*No space left"):
        export(NAME, tmp_path / "out", **QUICK)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"format": "onxx"}, "format=onxx: must be onnx, openvino, torch-export"),
        ({"precision": "fp8"}, "precision=fp8: must be fp32"),
        ({"format": "onnx", "precision": "bf16"}, "no bf16 kernels for CPUs"),
        ({"format": "torch-export", "precision": "int8"}, "int8 is for --format onnx and openvino"),
        ({"precision": "int8"}, "int8 needs pictures to calibrate on"),
        ({"batch": 0}, "batch=0: must be a whole number"),
        ({"input_size": 0}, "input_size=0: must be a whole number"),
        ({"input_size": "dynamic", "with_preprocessing": True}, "any size of pictures is taken"),
        ({"keep": ["fc"]}, "are for --precision int8"),
        ({"max_drop": 0.5, "precision": "int8", "calibrate": "x"}, "--max-drop needs labelled pictures"),
        ({"with_preprocessing": True, "data": "x"}, "export without --with-preprocessing"),
        ({"split": "test"}, "split=test: it is of the data set that --data names"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(export_module, "load", lambda name: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match=message):
        export(NAME, tmp_path / "out", **asked)
    assert left(tmp_path) == []


def test_a_network_made_in_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = seresnet_hub.load("resnet20_cifar", pretrained=False)
    made = export(network, tmp_path, fuse=False, batch=1, **QUICK)
    assert (made["model"], made["fused"], made["batch"]) == ("resnet20_cifar", False, 1)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_each_runtime_runs_its_file(tmp_path: Path, model: nn.Module, format: str) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[format], reason="the extra is not installed")
    made = export(model, tmp_path, format=format)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    run = formats.FORMATS[format].run(read_record(Path(made["record"])))
    with torch.inference_mode():
        expected = model(images).numpy()
    assert np.abs(run(images.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("format", "precision"),
    [
        ("torch-export", "fp32"), pytest.param("onnx", "int8", marks=pytest.mark.slow),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_fixed_batch_of_pictures_that_the_file_prepares_itself(
    tmp_path: Path, model: nn.Module, format: str, precision: str
) -> None:
    """Also where int8 is calibrated on pictures of several sizes, of which no number is a multiple of the batch."""
    if precision == "int8":
        pytest.importorskip("nncf", reason="int8 needs the extra onnx or openvino")
        pytest.importorskip({"onnx": "onnxruntime"}.get(format, format), reason="the extra is not installed")
    sizes = [(53, 41)] * 7 + [(43, 37)] * 4 + [(47, 67)]
    crops = photograph_crops(len(sizes))
    pictures = [np.asarray(crop.resize(size)) for crop, size in zip(crops, sizes, strict=True)]
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number:02}.png")
    made = export(
        model, tmp_path, format=format, precision=precision, batch=3, with_preprocessing=True,
        calibrate=str(tmp_path / "photos") if precision == "int8" else None,
    )  # fmt: skip
    assert (made["batch"], made["preprocessing"]) == (3, True)
    if precision == "int8":
        assert made["quantization"]["calibration"]["pictures"] == 12
    found = formats.FORMATS[format].run(read_record(Path(made["record"])))(np.stack(pictures[:3]))
    expected = np.zeros((3, 10))
    for row, answers in enumerate(seresnet_hub.predict(model, pictures[:3], topk=10)):
        for answer in answers:
            expected[row, answer["index"]] = answer["score"]
    assert np.abs(found - expected).max() <= (2e-3 if precision == "fp32" else 0.2)


def test_a_wrong_graph_is_refused_although_rounding_would_hide_it(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is in the extra 'openvino'")
    traced = export_module.traced

    def wrong(network: Any, **options: Any) -> Any:
        network.fc.bias.data += 1e-3  # of a copy, which was fused
        return traced(network, **options)

    monkeypatch.setattr(export_module, "traced", wrong)
    with pytest.raises(InputError, match=r"differs by .* and fp32 may change 1e-05"):
        export(model, tmp_path / "out", format="openvino", precision="bf16")
    assert left(tmp_path) == []
