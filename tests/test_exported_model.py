"""An exported file must predict as the network that it was made from, by the bytes of its record, or be refused."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from PIL import Image

import seresnet_hub
from seresnet_hub.engines.export_facts import ExportFacts
from seresnet_hub.engines.exported_files import files_of, read_record, record_of, record_text
from seresnet_hub.engines.onnx_contents import onnx_metadata
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError
from seresnet_hub.inference.model_identity import engine_of, model_identity, tensors_sha256
from seresnet_hub.models.load import load
from seresnet_hub.models.names import is_model_name, parse_name

NAME = "seresnet20_cifar.c10"
onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")


def facts(**changes: object) -> ExportFacts:
    model = load(NAME)
    config = model.pretrained_cfg
    given: dict[str, object] = {
        "format": "onnx", "precision": "fp32", "architecture": "seresnet20_cifar", "model": NAME, "num_classes": 10,
        "class_names": tuple(config["label_names"]), "input_size": (3, 32, 32), "mean": tuple(config["mean"]),  # type: ignore[index]
        "std": tuple(config["std"]), "interpolation": config["interpolation"], "crop_pct": config["crop_pct"],  # type: ignore[index]
        "crop_mode": "center", "license": "mit", "sha256": None, "tensors_sha256": tensors_sha256(model),
        "fused": False, "form": "plain", "batch": 4, "dynamic_size": False, "preprocessing": False, "version": "1",
    }  # fmt: skip
    return ExportFacts(**{**given, **changes})  # type: ignore[arg-type]


def write(folder: Path, model: onnx.ModelProto, known: ExportFacts) -> Path:
    file, record = (folder / name for name in (*files_of("onnx", "fp32"), record_of("onnx", "fp32")))
    file.parent.mkdir(parents=True, exist_ok=True)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, known.to_text())
    file.write_bytes(model.SerializeToString())
    record.write_text(record_text(known, {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}, {}))
    return folder


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    program = torch.export.export(load(NAME), (torch.zeros(4, 3, 32, 32),))
    return torch.onnx.export(program, (), dynamo=True, verbose=False).model_proto  # type: ignore[union-attr]


@pytest.fixture
def folder(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    return write(tmp_path / "out", copy.deepcopy(proto), facts())


def test_it_computes_what_the_network_does_in_batches_of_any_size(folder: Path) -> None:
    images, own, model = torch.randn(7, 3, 32, 32), load(NAME), load(f"onnx:{folder}")
    with torch.no_grad():
        torch.testing.assert_close(model(images), own(images), rtol=0, atol=1e-4)
        torch.testing.assert_close(
            copy.deepcopy(model).half().to("meta")(images[:1]), own(images[:1]), rtol=0, atol=1e-4
        )
    assert model_identity(model).tensors_sha256 == tensors_sha256(own)
    assert engine_of(model) == {"engine": "onnx", "precision": "fp32", "fused": False}
    with pytest.raises(InputError, match="takes images of 3 x 32 x 32 alone"):
        model(torch.zeros(1, 3, 64, 64))


def test_predictions_are_those_of_the_network(folder: Path, photo: Image.Image) -> None:
    (best,), (own,) = (seresnet_hub.predict(name, photo) for name in (f"onnx:{folder}", NAME))
    assert [one["name"] for one in best] == [one["name"] for one in own]
    assert best[0]["score"] == pytest.approx(own[0]["score"], abs=1e-5)


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_a_changed_byte_is_noticed(folder: Path, place: int) -> None:
    file = folder / "onnx/model.onnx"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged or exchanged"):
        load(f"onnx:{folder}")


def test_a_record_that_says_otherwise_than_its_file_is_refused(folder: Path) -> None:
    record = folder / record_of("onnx", "fp32")
    values = json.loads(record.read_text())
    values["facts"]["mean"][0] += 0.1
    record.write_text(json.dumps(values))
    with pytest.raises(InputError, match="say different things"):
        load(f"onnx:{folder}")(torch.zeros(1, 3, 32, 32))
    values["facts"]["std"] = [0, 1, 1]
    record.write_text(json.dumps(values))
    with pytest.raises(InputError, match="'std' is"):
        read_record(record)


def test_tensors_in_other_files_are_not_read(proto: onnx.ModelProto, tmp_path: Path) -> None:
    hostile = copy.deepcopy(proto)
    tensor = hostile.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    write(tmp_path, hostile, facts())
    with pytest.raises(InputError, match="has tensors in other files"):
        load(f"onnx:{tmp_path}")(torch.zeros(1, 3, 32, 32))
    graph = hostile.graph.SerializeToString()
    # A field's tag with bits above the 32nd: what leaves them out finds the graph (field 7, of bytes).
    hidden = b"\x08\x0a" + b"\xba\x80\x80\x80\x10" + onnx_length(graph) + graph + b"\x3a\x00"
    with pytest.raises(ValueError, match="damaged"):
        onnx_metadata(BytesIO(hidden))


def onnx_length(content: bytes) -> bytes:
    """The length of a field as protobuf writes it: as the length of this text in a message."""
    whole = onnx.TensorProto(raw_data=content).SerializeToString()
    return whole[1 : -len(content)]


def test_the_runtime_alone_suffices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="onnx .* cannot be imported"):
        require_package("onnx")
    assert load(f"onnx:{folder}")(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_runtime_that_fails_says_so_in_one_line(proto: onnx.ModelProto, tmp_path: Path) -> None:
    unknown = copy.deepcopy(proto)
    unknown.graph.node[0].op_type = "NoSuchOperator"
    write(tmp_path, unknown, facts())
    with pytest.raises(InputError, match="ONNX Runtime cannot open .*model.onnx") as raised:
        load(f"onnx:{tmp_path}")(torch.zeros(1, 3, 32, 32))
    assert "\n" not in str(raised.value)


def test_what_needs_the_network_itself_is_refused(folder: Path, photo: Image.Image) -> None:
    model = load(f"onnx:{folder}")
    for call in (
        lambda: seresnet_hub.fuse(model),
        lambda: seresnet_hub.extract_features(model, photo),
        lambda: seresnet_hub.extract_features(model, photo, stage=1),
        model.train,
        lambda: parse_name(f"onnx:{folder}"),
    ):
        with pytest.raises(InputError, match="needs the network itself"):
            call()
    with pytest.raises(InputError, match="takes no options of a network"):
        load(f"onnx:{folder}", num_classes=3)


@pytest.mark.parametrize("name", ["onnx:x", "ONNX:someone/model", "openvino:x/y.xml"])
def test_names_of_exported_files(name: str) -> None:
    assert is_model_name(name)


def test_one_of_several_has_to_be_named(folder: Path) -> None:
    shutil.copy(folder / record_of("onnx", "fp32"), folder / record_of("onnx", "int8"))
    with pytest.raises(InputError, match=r"several exports: name one, onnx:.*model.onnx or onnx:.*model_int8.onnx"):
        load(f"onnx:{folder}")
    assert load(f"onnx:{folder}/onnx/model.onnx").num_classes == 10
    with pytest.raises(InputError, match="and not called so"):
        load(f"onnx:{folder}/onnx/model_int8.json")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("name", ["someone/model", "someone/model@main", "hf-hub:someone/model/onnx/model.onnx"])
def test_from_the_hub(hub: HubServer, folder: Path, name: str) -> None:
    files = [*files_of("onnx", "fp32"), record_of("onnx", "fp32")]
    hub.create("model", "someone/model", {"config.json": b"{}", **{file: folder / file for file in files}})
    model = load(f"onnx:{name}")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model_identity(model).commit
