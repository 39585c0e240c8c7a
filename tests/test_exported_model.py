"""An exported file must predict as the network that it was made from, by the bytes of its record, or be refused."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import numbered_picture
from exported_by_hand import logits_of, prepared_by_timm, rewrite_record, write_export
from hub_fixtures import write_folder
from hub_server import HubServer
from PIL import Image
from warm_python import run_python

import seresnet_hub
from seresnet_hub.commands import predict, validate
from seresnet_hub.conversion.convert import convert
from seresnet_hub.engines.export_facts import ExportFacts
from seresnet_hub.engines.exported_files import files_of, read_record, record_of, record_text
from seresnet_hub.engines.onnx_contents import onnx_metadata
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError
from seresnet_hub.inference import write_predictions as table_of_predictions
from seresnet_hub.inference.model_identity import engine_of, model_identity, tensors_sha256
from seresnet_hub.inference.parts import PartWriter
from seresnet_hub.inference.write_predictions import write_predictions
from seresnet_hub.models.load import load
from seresnet_hub.models.names import is_model_name, parse_name
from seresnet_hub.publishing.push import push

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
    hashes = {"model.onnx": hashlib.sha256((folder / "onnx/model.onnx").read_bytes()).hexdigest()}
    assert engine_of(model) == {"engine": "onnx", "precision": "fp32", "fused": False, "exported_sha256": hashes}
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
    values["facts"] |= {"std": [1, 1, 1], "held_out": {"split": ["train"]}}
    record.write_text(json.dumps(values))
    with pytest.raises(InputError, match="'held_out' is .*, expected a table of texts and numbers"):
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


# --- both engines, by small files whose logits are known without any runtime ------------------------------------------

PICTURES = 6  # of each class


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with exports of four classes, and pictures beside it, one of which is no picture."""
    pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    folder: Path = tmp_path_factory.mktemp("by_hand")
    write_folder(folder / "model")
    for format in FORMATS:
        write_export(folder / "model", format=format)
        write_export(folder / "model", format=format, precision="int8", batch=3)
    for number in range(PICTURES):
        for name in "abcd":
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            picture = numbered_picture(number * 99_991 + ord(name), 40)
            (folder / "photos" / name / f"{number:02}.png").write_bytes(picture if number else b"no picture")
    return folder


FORMATS = ("onnx", "openvino")


def named(format: str, by_hand: Path, precision: str = "fp32") -> str:
    return f"{format}:{by_hand / 'model' / files_of(format, precision)[0]}"


@pytest.mark.parametrize("format", FORMATS)
def test_each_engine_computes_what_is_written(format: str, by_hand: Path) -> None:
    for precision, count in (("fp32", 1), ("fp32", 7), ("int8", 3), ("int8", 7)):  # of the latter three images a batch
        images = torch.randn(count, 3, 32, 32)
        found = load(named(format, by_hand, precision))(images)
        np.testing.assert_allclose(found.numpy(), logits_of(images.numpy()), rtol=1e-4, atol=1e-5)


def test_a_signal_is_survived_after_engines_of_openvino_are_gone(by_hand: Path) -> None:
    code = (
        "import gc, os, signal, sys, torch\n"
        "from seresnet_hub.models.load import load\n"
        "first, second = load(sys.argv[1]), load(sys.argv[1])\n"
        "for model in (first, second): model(torch.zeros(1, 3, 32, 32))\n"
        "del model, first; gc.collect()\n"  # not in the opposite order of their making
        "del second; gc.collect()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('survived'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = run_python([sys.executable, "-c", code, named("openvino", by_hand)])
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@pytest.mark.parametrize("ending", [".xml", ".bin"])
def test_each_file_of_openvino_is_compared(ending: str, by_hand: Path, tmp_path: Path) -> None:
    shutil.copytree(by_hand / "model/openvino", tmp_path / "openvino")
    file = (tmp_path / files_of("openvino", "fp32")[0]).with_suffix(ending)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"openvino_model{ending} is damaged or exchanged"):
        load(f"openvino:{tmp_path / 'openvino/openvino_model.xml'}")
    file.unlink()
    with pytest.raises(InputError, match=f"openvino_model{ending}"):
        load(f"openvino:{tmp_path / 'openvino/openvino_model.json'}")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_workers_and_where_one_goes_on_change_no_bit(
    format: str, precision: str, by_hand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(named(format, by_hand, precision))
    monkeypatch.setattr(PartWriter.__init__, "__kwdefaults__", {"rows": 8, "seconds": 1e9})

    def written(name: str, **options: Any) -> bytes:
        write_predictions(model, str(by_hand / "photos"), tmp_path / name, batch_size=4, scores=True, **options)
        return (tmp_path / name).read_bytes()

    one = written("one.parquet")
    assert written("two.parquet", workers=2) == one

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(table_of_predictions, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            written("three.parquet")
    sorted((tmp_path / "three.parquet.parts").glob("rows-*"))[0].unlink()
    model = load(named(format, by_hand, precision))
    assert written("three.parquet", workers=1) == one
    rows = pq.read_table(tmp_path / "one.parquet").to_pylist()
    images = prepared_by_timm(by_hand / "model", Image.open(rows[1]["image"]).convert("RGB"))
    expected = torch.from_numpy(logits_of(images)).softmax(1)[0].tolist()
    assert rows[1]["scores"] == pytest.approx(expected, abs=1e-5)
    assert (rows[0]["error"] is None, len(rows)) == (False, 4 * PICTURES)


def test_another_export_of_the_same_network_does_not_go_on_with_a_table(by_hand: Path, tmp_path: Path) -> None:
    shutil.copytree(by_hand / "model", tmp_path / "model")
    name = named("openvino", tmp_path)
    write_predictions(name, str(by_hand / "photos"), tmp_path / "t.csv")
    weights = (tmp_path / "model/openvino/openvino_model.xml").with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1  # another number in the matrix
    weights.write_bytes(content)
    record = read_record(tmp_path / "model" / record_of("openvino", "fp32"))
    rewrite_record(tmp_path / "model", record.facts)
    with pytest.raises(InputError, match="exported_sha256 was"):
        write_predictions(name, str(by_hand / "photos"), tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (predict, ["--fuse"]),
        (predict, ["--compile"]),
        (predict, ["--amp", "bf16"]),
        (predict, ["--features", "--output", "t.csv"]),
        (validate, ["--fuse"]),
        (validate, ["--compile", "epilogue"]),
        (validate, ["--amp", "bf16"]),
        (validate, ["--knn"]),
        (validate, ["--input-size", "64"]),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_options_of_a_network_are_refused_before_any_work(
    command: ModuleType, options: list[str], format: str, by_hand: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    source = (
        [str(by_hand / "photos")] if command is predict else ["--data", str(by_hand / "photos"), "--split", "train"]
    )
    message = "takes images of 3 x 32 x 32 alone" if "64" in options else "needs the network itself"
    with pytest.raises(InputError, match=message) as raised:
        command.main([named(format, by_hand), *source, *options])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_it_is_neither_pushed_nor_converted(by_hand: Path, tmp_path: Path) -> None:
    name = named("onnx", by_hand)
    with pytest.raises(InputError, match="is an exported file: push the model folder it lies in"):
        push(name, "someone/model", dry_run=True)
    with pytest.raises(InputError, match="is an exported file, and no checkpoint"):
        convert(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
