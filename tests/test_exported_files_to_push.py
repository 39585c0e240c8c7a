"""Exported files are pushed beside their model where they are its own, whole and named by a record; nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_fixtures
import numpy as np
import pytest
import torch
from exported_by_hand import facts_of, logits_of, prepared_by_timm, rewrite_record, write_export
from hub_faults import Drop, LoseAnswer, Status
from hub_fixtures import REPO, commits, other_weights, write_folder
from hub_server import HubServer
from PIL import Image

from seresnet_hub.engines.exported_model import load_exported
from seresnet_hub.errors import InputError
from seresnet_hub.exporting.calibration_pictures import CalibrationPictures
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.models.trial_forward import check_runs
from seresnet_hub.publishing.push import push
from seresnet_hub.publishing.upload import ready_repository
from seresnet_hub.publishing.verify import verify

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("openvino", reason="needs the extra [openvino]")

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SECRET = "hf_a_token_of_somebody"
MODEL_FILES = ["model.safetensors", "config.json", "README.md"]
ONNX_FILES = ["onnx/model.json", "onnx/model.onnx"]
OPENVINO_FILES = ["openvino/openvino_model.json", "openvino/openvino_model.xml", "openvino/openvino_model.bin"]


# The licence of timm's own config of the architecture, which the card of a model must not contradict.
CARD = hub_fixtures.CARD.replace("mit", "apache-2.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "model"
    write_folder(folder, card=CARD)
    write_export(folder)
    write_export(folder, format="openvino")
    return folder


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def test_exports_are_pushed_in_the_commit_of_their_model(
    hub: HubServer, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (exported / "onnx" / "notes.txt").write_text(SECRET)
    (exported / "onnx" / "model_int8.onnx").write_bytes(b"an export that was not finished has no record")
    result = push(exported, REPO)
    assert sorted(result["files"]) == sorted([*MODEL_FILES, *ONNX_FILES, *OPENVINO_FILES])
    assert (result["files"], commits(hub)) == (result["changed"], 1)
    stored = hub.files(REPO)
    assert set(stored) == {*result["files"], ".gitattributes"}
    for name in {*result["files"]} - {"README.md"}:
        assert stored[name].read() == (exported / name).read_bytes(), name
    assert stored["onnx/model.onnx"].sha256 == sha256_of(exported / "onnx" / "model.onnx")
    assert stored["openvino/openvino_model.bin"].sha256
    assert "no record there names it: onnx/model_int8.onnx, onnx/notes.txt\n" in capsys.readouterr().err
    sent = len(hub.asked("PUT", "/cdn/"))
    assert push(exported, REPO)["changed"] == []
    assert (commits(hub), len(hub.asked("PUT", "/cdn/"))) == (1, sent)


def test_an_export_made_later_is_pushed_alone(hub: HubServer, folder: Path) -> None:
    write_folder(folder, card=CARD)
    push(folder, REPO)
    write_export(folder)
    assert push(folder, REPO)["changed"] == ["README.md", *ONNX_FILES]
    assert commits(hub) == 2


def test_a_folder_without_exports_is_pushed_as_before(hub: HubServer, folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "torch-export").mkdir()
    (folder / "torch-export" / "model.pt2").write_bytes(b"a program")
    assert push(folder, REPO)["files"] == MODEL_FILES
    assert hub.files(REPO)["README.md"].read().decode() == hub_fixtures.CARD.replace("local-dir:.", f"hf-hub:{REPO}")


# --- what is not the model's ------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def other_metadata(folder: Path, **changes: Any) -> None:
    """Write a record that is not what the file says of itself."""
    rewrite_record(folder, facts_of(folder, **changes))


def edited(folder: Path, change: Callable[[Any], None]) -> None:
    """Change an ONNX file, and let its record have the hash of the new bytes."""
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    rewrite_record(folder, facts_of(folder))


def external_initializer(folder: Path) -> None:
    path = folder / "onnx" / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    rewrite_record(folder, facts_of(folder))


def external_constant(model: Any) -> None:
    constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.ones(4), "c"))
    tensor = constant.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    model.graph.node.append(constant)


def with_bytes(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    rewrite_record(folder, facts_of(folder, format=name.partition("/")[0]))


def another_config(folder: Path, change: Callable[[Any], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: damage(f / "onnx/model.onnx"), "model.onnx is not the file that onnx/model.json describes"),
        (lambda f: damage(f / "openvino/openvino_model.bin"), "openvino_model.bin is not the file that"),
        (lambda f: damage(f / "openvino/openvino_model.xml"), "openvino_model.xml is not the file that"),
        (lambda f: (f / "openvino/openvino_model.bin").unlink(), "cannot read .*openvino_model.bin: No such file"),
        (lambda f: (f / "onnx/model.json").write_text("{"), "cannot read .*model.json"),
        (lambda f: (f / "onnx/model.json").write_text("{}"), "model.json is no record of an export"),
        (lambda f: other_metadata(f, license="mit"), "model.onnx says something else of itself than model.json"),
        (lambda f: (f / "onnx/model.json").rename(f / "onnx/model_int8.json"), "it is the record of onnx in fp32, and"),
        (external_initializer, "model.onnx is no whole ONNX file: it has tensors in other files"),
        (lambda f: edited(f, external_constant), "it has tensors in other files"),
        (lambda f: edited(f, lambda m: m.ClearField("metadata_props")), "its facts are not those of an export"),
        (lambda f: with_bytes(f, "onnx/model.onnx", SECRET.encode()), "model.onnx is no whole ONNX file"),
        (lambda f: with_bytes(f, "onnx/model.onnx", b""), "model.onnx is no whole ONNX file: it has no graph"),
        (lambda f: with_bytes(f, "openvino/openvino_model.xml", b"<net/>"), "is no whole OpenVINO model: it has no l"),
        (lambda f: with_bytes(f, "openvino/openvino_model.xml", SECRET.encode()), "is no whole OpenVINO model"),
        (lambda f: write_export(f, tensors_sha256="0" * 64), "model.onnx: it was made of other weights"),
        (lambda f: write_export(f, sha256="0" * 64), "model.onnx: it was made of other weights"),
        (lambda f: (f / "README.md").write_text(hub_fixtures.CARD), "model.onnx: the model beside it has another lic"),
        (lambda f: write_export(f, license="mit"), "beside it has another license: export the model again"),
        (lambda f: write_export(f, class_names=tuple("abcd")), "beside it has another class_names"),
        (lambda f: write_export(f, architecture="seresnet20"), "beside it has another architecture"),
        (lambda f: another_config(f, lambda c: c["pretrained_cfg"].update(mean=[0.1, 0.2, 0.3], crop_pct=0.5)),
         "beside it has another mean, another crop_pct: export the model again, or delete that file and .*model.json"),
        (lambda f: another_config(f, lambda c: c["pretrained_cfg"].update(license="mit")), "beside it has another lic"),
        (lambda f: another_config(f, lambda c: c.update(label_names=list("abcd"))), "beside it has another class"),
    ],
)  # fmt: skip
def test_what_is_not_the_models_is_refused_before_anything_is_sent(
    hub: HubServer, exported: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(exported)
    with pytest.raises(InputError, match=message) as error:
        push(exported, REPO)
    assert "\n" not in str(error.value)
    assert hub.requests == []


def test_an_export_of_weights_that_were_trained_on_is_refused(hub: HubServer, exported: Path) -> None:
    write_folder(exported, seed=1, card=CARD)
    with pytest.raises(InputError, match="made of other weights than those beside it: export the model again"):
        push(exported, REPO)
    other_weights(exported)
    with pytest.raises(InputError, match="is not the file that config.json describes"):
        push(exported, REPO)
    assert hub.requests == []


def test_an_export_of_a_model_made_in_python_is_known_by_its_tensors(hub: HubServer, exported: Path) -> None:
    write_export(exported, sha256=None)
    assert "onnx/model.onnx" in push(exported, REPO)["files"]


@pytest.mark.parametrize("name", [*ONNX_FILES, OPENVINO_FILES[1]])
@pytest.mark.parametrize("kind", ["link", "FIFO", "folder", "link of the folder"])
def test_what_is_no_file_of_the_folder_is_never_uploaded(
    hub: HubServer, exported: Path, name: str, kind: str, tmp_path: Path
) -> None:
    path, secret = exported / name, tmp_path / "elsewhere"
    if kind == "link of the folder":
        path.parent.rename(secret)
        path.parent.symlink_to(secret)
    else:
        path.rename(secret)
        if kind == "link":
            path.symlink_to(secret)
        elif kind == "FIFO":
            os.mkfifo(path)
        else:
            path.mkdir()
    try:
        push(exported, REPO)
    except InputError as error:
        assert "not pushed" in str(error)  # noqa: PT017
        assert hub.requests == []
        return
    assert name.endswith(".json")  # an export without a record is left, with its files
    assert kind not in ("link", "link of the folder")
    assert not {name.partition("/")[0]} & {one.partition("/")[0] for one in hub.files(REPO)}


def test_files_too_large_are_refused(hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "seresnet_hub.publishing.exported_files_to_push."
    for limit, message in (("LARGEST_TEXT", "openvino_model.xml has more than the 100 bytes"),
                           ("LARGEST_TOTAL", "its exports have [0-9,]+ bytes; at most 100 are pushed"),
                           ("LARGEST_WEIGHTS", "model.onnx has more than the 100 bytes")):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module + limit, 100)
            with pytest.raises(InputError, match=message):
                push(exported, REPO)
    with (exported / "onnx" / "model.json").open("r+b") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match="model.json has more than the"):
        push(exported, REPO)
    assert hub.requests == []


# --- files that change, and a Hub that fails --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnx/model.json", "openvino/openvino_model.xml"])
def test_a_file_exchanged_while_it_is_checked_is_not_uploaded(
    hub: HubServer, exported: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_and_exchange(*arguments: Any) -> None:
        check_runs(*arguments)
        (exported / name).write_text(SECRET)

    monkeypatch.setattr("seresnet_hub.publishing.push.check_runs", check_and_exchange)
    with pytest.raises(InputError, match=f"{name} has changed while it was being checked"):
        push(exported, REPO)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["onnx/model.onnx", "openvino/openvino_model.bin"])
def test_a_large_file_exchanged_after_the_check_makes_no_commit(
    hub: HubServer, exported: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange(*arguments: Any, **keywords: Any) -> Any:
        (exported / name).write_bytes(SECRET.encode())
        return ready_repository(*arguments, **keywords)

    monkeypatch.setattr("seresnet_hub.publishing.push.ready_repository", exchange)
    with pytest.raises(InputError, match=f"{name} has changed while it was being checked: nothing was pushed"):
        push(exported, REPO)
    assert commits(hub) == 0


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_upload_that_always_fails_leaves_the_repository_as_it_was(
    hub: HubServer, exported: Path, after: int
) -> None:
    """Whichever of the large files it is: the weights, or one of the exports'."""
    hub.create("model", REPO)
    fault = hub.fault("PUT", "/cdn/", Status(503), times=None, after=after)
    with pytest.raises(InputError, match="uploading .* to someone/model: the Hub answered 503"):
        push(exported, REPO)
    assert (commits(hub), len(hub.files(REPO))) == (0, 1)
    hub.faults.remove(fault)
    hub.part_size = 300_000
    hub.fault("PUT", "/cdn/", Drop(), after=2 - after)
    hub.fault("POST", "/commit/", LoseAnswer())
    push(exported, REPO)
    assert commits(hub) == 1
    for name in ("model.safetensors", "onnx/model.onnx", "openvino/openvino_model.bin"):
        assert hub.files(REPO)[name].read() == (exported / name).read_bytes()


def test_where_tensors_may_be_in_an_onnx_file_is_what_onnx_says() -> None:
    """The table of fields that are followed is compared with the definition that the onnx package carries."""
    from seresnet_hub.engines import onnx_contents as contents

    kinds = {"model": "ModelProto", "training": "TrainingInfoProto", "graph": "GraphProto", "function": "FunctionProto",
             "node": "NodeProto", "attribute": "AttributeProto", "sparse": "SparseTensorProto",
             "tensor": "TensorProto"}  # fmt: skip
    names = {proto: kind for kind, proto in kinds.items()}
    for kind, proto in kinds.items():
        fields = getattr(onnx, proto).DESCRIPTOR.fields
        leads = {
            field.number: names[field.message_type.name]
            for field in fields
            if field.message_type and field.message_type.name in names
        }
        assert contents.LEADS.get(kind, {}) == leads
    numbers = {field.name: field.number for field in onnx.TensorProto.DESCRIPTOR.fields}
    assert (numbers["external_data"], numbers["data_location"]) == (contents.EXTERNAL_DATA, contents.DATA_LOCATION)
    numbers = {field.name: field.number for field in onnx.ModelProto.DESCRIPTOR.fields}
    assert (numbers["ir_version"], numbers["metadata_props"]) == (contents.IR_VERSION, contents.METADATA)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_compares_exports_with_their_records(
    hub: HubServer, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"model.safetensors", *ONNX_FILES[1:], *OPENVINO_FILES[1:]}
    found = verify(exported)
    assert (found["ok"], set(found["files"])) == (True, files)
    assert found["files"]["onnx/model.onnx"] == {"hash": sha256_of(exported / "onnx" / "model.onnx"), "ok": True}
    push(exported, REPO)
    on_the_hub = verify(REPO)
    assert on_the_hub["ok"]
    assert {*files, *ONNX_FILES, *OPENVINO_FILES} < set(on_the_hub["files"])
    damage(exported / "onnx" / "model.onnx")
    (exported / "openvino" / "openvino_model.bin").unlink()
    found = verify(exported)
    assert not found["ok"]
    wrong = {name for name, file in found["files"].items() if not file["ok"]}
    assert wrong == {"onnx/model.onnx", "openvino/openvino_model.bin"}
    said = capsys.readouterr().err
    assert all(f"{exported / name} is not what it must be" in said for name in wrong)


@pytest.mark.parametrize(
    ("harm", "name", "message"),
    [
        (lambda f: damage(f / "onnx/model.onnx"), "onnx/model.onnx", "is not the file that onnx/model.json describes"),
        (lambda f: (f / "onnx/model.onnx").unlink(), "onnx/model.onnx", "is not the file that onnx/model.json descr"),
        (lambda f: (f / "openvino/openvino_model.xml").write_text("<net/>"), "openvino/openvino_model.xml",
         "is not the file that"),
        (lambda f: (f / "onnx/model.json").write_text("{}"), "onnx/model.json", "is no record of an export"),
        (lambda f: write_export(f, tensors_sha256="0" * 64), "onnx/model.onnx", "made of other weights than those"),
        (lambda f: other_metadata(f, license="mit"), "onnx/model.onnx", "says something else of itself"),
    ],
)  # fmt: skip
def test_verify_names_the_exports_on_the_hub_that_are_not_the_models(
    hub: HubServer, exported: Path, harm: Callable[[Path], None], name: str, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Whoever put them there: the Hub has the bytes that it says, and they are not those of the record."""
    harm(exported)
    paths = [path for path in exported.rglob("*") if path.is_file()]
    hub.create("model", REPO, {path.relative_to(exported).as_posix(): path for path in paths})
    found = verify(REPO)
    assert not found["ok"]
    assert {file for file, one in found["files"].items() if not one["ok"]} <= {name}
    assert message in capsys.readouterr().err


def test_what_hf_downloads_is_run_by_its_engine(hub: HubServer, exported: Path, tmp_path: Path) -> None:
    """The way of somebody who has the repository's name and a picture."""
    push(exported, REPO)
    downloaded = tmp_path / "downloaded"
    environment = hub.environment(tmp_path / "home", token=None) | {"OMP_NUM_THREADS": "1"}
    hf = [str(Path(sys.executable).with_name("hf")), "download", REPO, "--local-dir", str(downloaded)]
    subprocess.run(hf, env=environment, capture_output=True, timeout=120, check=True)
    assert (downloaded / "onnx" / "model.onnx").read_bytes() == (exported / "onnx" / "model.onnx").read_bytes()
    images = prepared_by_timm(exported, Image.new("RGB", (50, 40), (200, 30, 60)))
    expected = torch.from_numpy(logits_of(images)).softmax(1)
    for name in (f"onnx:{downloaded}", f"openvino:{downloaded}"):
        found = load_exported(name)(torch.from_numpy(images)).softmax(1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("source", "public"),
    [("someone/pets", "someone/pets"), ("digits", "digits"), ("/home/me/secret/pets", "pets"), ("data/pets", "pets")],
)
def test_records_name_no_folder_of_a_machine(
    source: str, public: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are pushed, and whoever exports may have other people's names in the paths of data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "pets").mkdir(parents=True)
    assert CalibrationPictures(inputs=(), source=source, split="train", classes=None).record()["data"] == public
