"""What comes from the Hub must be the bytes that are there, from no pickle, and `verify` must say whether it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from hub_faults import FlipByte, Status, Truncate
from hub_fixtures import REPO, nan_weights, other_weights, outputs, write_folder
from hub_server import EXPIRED_TOKEN, HubServer
from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_download
from PIL import Image
from safetensors.torch import save_file

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.hub.client import licence_on_the_hub
from seresnet_hub.hub.messages import say
from seresnet_hub.models.load import load, origin_of
from seresnet_hub.publishing.push import push
from seresnet_hub.publishing.verify import verify

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SCRIPTS = Path(__file__).parents[1] / "scripts"


def asked_for_pickles(hub: HubServer) -> bool:
    return any("pytorch_model.bin" in request.path for request in hub.requests)


@pytest.mark.parametrize("name", [REPO, f"hf-hub:{REPO}", f"hf-hub:{REPO}@main"])
def test_a_model_comes_back_as_it_was(hub: HubServer, published: torch.nn.Module, name: str) -> None:
    model = load(name)
    assert torch.equal(outputs(model), outputs(published))
    assert not model.training
    assert model.pretrained_cfg["hf_hub_id"] == REPO
    assert load(name, num_classes=9).fc.out_features == 9
    assert not asked_for_pickles(hub)


def test_a_folder_that_exists_is_never_asked_of_the_hub(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Image.Image
) -> None:
    here = write_folder(tmp_path / REPO, seed=5)
    monkeypatch.chdir(tmp_path)
    asked = len(hub.requests)
    assert torch.equal(outputs(load(REPO)), outputs(here))
    assert origin_of(REPO).name == "local-dir:model"
    assert verify(REPO)["repo_id"] == f"local-dir:{REPO}"
    seresnet_hub.predict(REPO, photo)
    shutil.rmtree(tmp_path / REPO)
    with pytest.raises(InputError, match=f"there is no such folder; for the Hub's repository write hf-hub:{REPO}"):
        load(REPO)
    assert len(hub.requests) == asked
    assert torch.equal(outputs(load(f"HF-HUB:{REPO}")), outputs(published))


@pytest.mark.parametrize("prefix", ["", "hf-hub:", "HF-HUB:", "Hf_Hub:"])
def test_every_way_to_a_repository_checks_its_bytes(
    hub: HubServer, published: torch.nn.Module, photo: Image.Image, prefix: str
) -> None:
    hub.fault("GET", "/cdn/", FlipByte(-5), times=None)
    calls = (
        load,
        lambda name: seresnet_hub.predict(name, photo),
        lambda name: seresnet_hub.extract_features(name, photo),
        lambda name: seresnet_hub.inference_model(name, photo),
        lambda name: seresnet_hub.get_model(name, pretrained=True),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"model.safetensors of someone/model arrive with other bytes"):
            call(prefix + REPO)


def test_a_repository_whose_config_contradicts_its_file_is_refused(hub: HubServer, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_classes": 5}))
    hub.create("model", REPO, {name: folder / name for name in ("model.safetensors", "config.json")})
    with pytest.raises(InputError, match=f"hf-hub:{REPO} has not the tensors .*'fc.weight' has the shape"):
        load(REPO)
    assert not verify(REPO)["ok"]


def test_a_revision_is_what_it_says(hub: HubServer, published: torch.nn.Module, tmp_path: Path) -> None:
    old = hub.history(REPO)[0].oid
    newer = write_folder(tmp_path / "newer", seed=5)
    hub.commit(REPO, {name: tmp_path / "newer" / name for name in ("model.safetensors", "config.json")})
    assert torch.equal(outputs(load(REPO)), outputs(newer))
    assert torch.equal(outputs(load(f"{REPO}@{old}")), outputs(published))
    with pytest.raises(InputError, match="no such branch, tag or commit"):
        load(f"{REPO}@nothing")


def test_a_byte_that_flips_on_the_way_is_noticed(hub: HubServer, published: torch.nn.Module) -> None:
    hub.fault("GET", "/cdn/", FlipByte(-5))
    assert torch.equal(outputs(load(REPO)), outputs(published))
    assert len(hub.asked("GET", "/cdn/")) == 2


def test_bytes_that_always_flip_are_never_loaded(
    hub: HubServer, published: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault("GET", "/cdn/", FlipByte(-5), times=None)
    with pytest.raises(InputError, match=r"model.safetensors of someone/model arrive with other bytes"):
        load(REPO)
    result = verify(REPO)
    assert not result["ok"]
    assert [name for name, file in result["files"].items() if not file["ok"]] == ["model.safetensors"]
    assert "delete it and fetch it again" in capsys.readouterr().err


def test_damage_in_the_cache_is_noticed_and_mended(hub: HubServer, published: torch.nn.Module, tmp_path: Path) -> None:
    load(REPO)
    (blob,) = (tmp_path / "cache").rglob(hub.files(REPO)["model.safetensors"].sha256)
    damaged = bytearray(blob.read_bytes())
    damaged[-100] ^= 1
    blob.write_bytes(damaged)
    assert not verify(REPO)["ok"]
    assert torch.equal(outputs(load(REPO)), outputs(published))
    assert verify(REPO)["ok"]


def test_a_truncated_answer_is_completed(hub: HubServer, published: torch.nn.Module) -> None:
    hub.fault("GET", "/cdn/", Truncate(1000))
    assert torch.equal(outputs(load(REPO)), outputs(published))


def test_no_pickle_takes_the_place_of_weights_that_cannot_be_had(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.fault("HEAD", "/resolve/.*/model.safetensors", Status(503), times=2)
    assert torch.equal(outputs(load(REPO)), outputs(published))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    hub.fault("HEAD", "/resolve/.*/model.safetensors", Status(503), times=None)
    with pytest.raises(InputError, match="fetching model.safetensors of someone/model: the Hub answered 503"):
        load(REPO)
    assert not asked_for_pickles(hub)


def test_a_repository_of_pickles_is_refused(hub: HubServer) -> None:
    hub.create("model", REPO, {"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    for work in (load, verify):
        with pytest.raises(InputError, match="no model.safetensors, only pytorch_model.bin, and pickles are not"):
            work(REPO)
    assert not asked_for_pickles(hub)


def test_verify_names_every_file(hub: HubServer, published: torch.nn.Module) -> None:
    result = verify(REPO)
    assert (result["repo_id"], result["commit"], result["ok"]) == (REPO, hub.history(REPO)[0].oid, True)
    assert set(result["files"]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert result["files"]["model.safetensors"] == {"hash": hub.files(REPO)["model.safetensors"].sha256, "ok": True}
    assert not asked_for_pickles(hub)


def test_weights_that_do_not_run_are_not_ok(hub: HubServer, folder: Path) -> None:
    nan_weights(folder)
    hub.create("model", REPO, {name: folder / name for name in ("model.safetensors", "config.json")})
    assert verify(REPO)["ok"] is False


def test_a_repository_that_says_not_what_network_it_is_for_is_not_ok(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.create("model", REPO, {"model.safetensors": folder / "model.safetensors"})
    assert verify(REPO)["ok"] is False
    assert "has no config.json, which says what network its model.safetensors belongs to" in capsys.readouterr().err


def test_offline_a_part_of_a_repository_is_not_ok(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hf_hub_download(REPO, "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, and it is not all in the cache"):
        verify(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = verify(REPO)
    assert (result["ok"], set(result["files"])) == (True, {"model.safetensors", "config.json"})
    assert "only the files in the cache are looked at; the repository may have others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "licence"),
    [("mit", "mit"), (["mit", "apache-2.0"], ""), ("unknown", ""), ("other", ""), ("My own", ""), (5, ""), (None, "")],
)
def test_only_a_licence_that_has_a_name_is_one(named: object, licence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ModelInfo(id=REPO, cardData={"license": named})
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: info)
    assert licence_on_the_hub(REPO) == licence


def test_a_strangers_names_send_no_codes_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("a file called \x1b[2J")
    assert capsys.readouterr().err == "a file called \\x1b[2J\n"


@pytest.mark.parametrize("way", ["HF_HUB_OFFLINE", "no network"])
def test_without_a_network_the_cache_serves(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, way: str, tmp_path: Path
) -> None:
    verify(REPO)
    asked = len(hub.requests)
    if way == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(constants, name, getattr(constants, name).replace(hub.url, "http://127.0.0.1:9"))
    assert torch.equal(outputs(load(REPO)), outputs(published))
    assert verify(REPO)["ok"]
    with pytest.raises(InputError, match="someone/other.*(HF_HUB_OFFLINE|is there a network)"):
        load("someone/other")
    assert len(hub.requests) == asked
    (blob,) = (tmp_path / "cache").rglob(hub.files(REPO)["model.safetensors"].sha256)
    blob.write_bytes(blob.read_bytes()[:-1])
    assert not verify(REPO)["ok"]
    with pytest.raises(InputError, match="fetching model.safetensors"):
        load(REPO)


def test_a_private_model_needs_its_token(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push(folder, REPO, private=True)
    assert verify(REPO)["ok"]
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(InputError, match="no such repository, or it is private"):
        load(REPO)
    monkeypatch.setenv("HF_TOKEN", EXPIRED_TOKEN)
    with pytest.raises(InputError, match="hf auth login"):
        load(REPO)


def test_a_local_folder_is_checked_too(folder: Path) -> None:
    model = load(f"local-dir:{folder}")
    assert torch.equal(outputs(model), outputs(timm.create_model(f"local-dir:{folder}", pretrained=True)))
    assert verify(f"local-dir:{folder}")["ok"]
    other_weights(folder)
    assert not verify(f"local-dir:{folder}")["ok"]
    with pytest.raises(InputError, match="is missing, damaged or exchanged"):
        load(f"local-dir:{folder}")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="has no model.safetensors, and pickles are not loaded"):
        load(f"local-dir:{folder}")


def test_timms_own_weights_are_checked(hub: HubServer, tmp_path: Path) -> None:
    """Protects `load('seresnet18…')` of any timm tag that lives on the Hub; here the double plays timm's repository."""
    model = timm.create_model("resnet10t").eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    hub.create("model", "timm/resnet10t.c3_in1k", {"model.safetensors": tmp_path / "model.safetensors"})
    hub.fault("GET", "/cdn/", FlipByte(-5))
    loaded = load("resnet10t.c3_in1k")
    x = torch.randn(1, 3, 176, 176)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert load("seresnet20_cifar", pretrained=False).num_classes == 10
    with pytest.raises(InputError, match="cannot create model 'no_such_model'"):
        load("no_such_model")
