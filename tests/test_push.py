"""What is pushed must arrive whole, once, and come back as the same bytes, or be an error, whatever the Hub does.

The real client talks to a loopback double of the Hub (`hub_server.py`, which says what it does not prove).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import WriteSplit
from hub_faults import Drop, FlipByte, LoseAnswer, Pause, Status, Truncate
from hub_fixtures import CARD, REPO, commits, outputs, write_folder
from hub_server import EXPIRED_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer
from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_download
from PIL import Image
from safetensors.torch import load_file, save_file

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import timm_config, write_model
from seresnet_hub.files.writing import sha256_of
from seresnet_hub.hub.client import licence_on_the_hub, say
from seresnet_hub.publishing import push as room
from seresnet_hub.training.outputs import write_summary
from seresnet_hub.training.progress import Row

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SCRIPTS = Path(__file__).parents[1] / "scripts"


# --- push -------------------------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_of_the_models_files(hub: HubServer, folder: Path) -> None:
    history: list[Row] = [
        {"step": 1, "epoch": 1.0, "train_loss": 2.5},
        {"step": 2, "epoch": 2.0, "top1": 50.0},
    ]
    write_summary(history, folder / "summary.csv")
    Image.new("RGB", (4, 4)).save(folder / "curves.png")
    (folder / "training").mkdir()
    (folder / "training" / "step-00000001.safetensors").write_bytes(b"a state")
    result = room.push(folder, REPO)
    names = ["model.safetensors", "config.json", "README.md", "summary.csv", "curves.png"]
    head = hub.history(REPO)[0]
    assert result == {
        "repo_id": REPO, "commit": head.oid, "url": f"{hub.url}/{REPO}/tree/{head.oid}", "files": names,
        "changed": names,
    }  # fmt: skip
    assert commits(hub) == 1
    stored = hub.files(REPO)
    assert set(stored) == {*names, ".gitattributes"}
    for name in set(names) - {"README.md"}:
        assert stored[name].read() == (folder / name).read_bytes(), name
    assert stored["README.md"].read().decode() == CARD.replace("local-dir:.", f"hf-hub:{REPO}")


def test_the_same_bytes_make_no_second_commit(hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = room.push(folder, REPO)
    sent = len(hub.asked("PUT", "/cdn/"))
    again = room.push(folder, REPO)
    assert again == {**first, "changed": []}
    assert (commits(hub), len(hub.asked("PUT", "/cdn/")), len(hub.asked("POST", "/commit/"))) == (1, sent, 1)
    assert "has these bytes already" in capsys.readouterr().err


def test_only_what_changed_is_pushed(hub: HubServer, folder: Path) -> None:
    room.push(folder, REPO)
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    assert room.push(folder, REPO)["changed"] == ["README.md"]
    assert commits(hub) == 2


def test_branch_tag_and_privacy(hub: HubServer, folder: Path) -> None:
    result = room.push(folder, REPO, private=True, branch="trial", tag="v1", message="The first")
    assert hub.repositories["model", REPO].private
    assert (commits(hub), commits(hub, revision="trial")) == (0, 1)
    assert hub.history(REPO, "trial")[0].title == "The first"
    assert hub.refs(REPO)["refs/tags/v1"] == result["commit"]
    assert room.push(folder, REPO, branch="trial", tag="v1")["changed"] == []
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    with pytest.raises(InputError, match="has a tag 'v1' already"):
        room.push(folder, REPO, branch="trial", tag="v1")
    assert commits(hub, revision="trial") == 1


def test_a_pull_request_is_opened_once(hub: HubServer, folder: Path) -> None:
    hub.create("model", REPO)
    opened = room.push(folder, REPO, pr=True)
    assert opened["url"] == f"{hub.url}/{REPO}/discussions/1"
    assert (commits(hub), commits(hub, revision="refs/pr/1")) == (0, 1)
    assert room.push(folder, REPO, pr=True) == {**opened, "changed": []}
    hub.fault("POST", "/commit/", LoseAnswer())
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    assert room.push(folder, REPO, pr=True, message="Another")["url"].endswith("/discussions/2")
    assert len(hub.repositories["model", REPO].discussions) == 2


def test_a_dry_run_changes_nothing(hub: HubServer, folder: Path) -> None:
    assert room.push(folder, REPO, dry_run=True)["changed"] == ["model.safetensors", "config.json", "README.md"]
    assert hub.repositories == {}
    room.push(folder, REPO)
    assert room.push(folder, REPO, dry_run=True)["changed"] == []
    assert {request.method for request in hub.requests if "/commit/" in request.path} == {"POST"}
    assert commits(hub) == 1


def test_a_dry_run_needs_no_login(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is local is checked, and what was left out is said."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    result = room.push(folder, REPO, dry_run=True)
    assert (result["files"], result["changed"]) == (["model.safetensors", "config.json", "README.md"], None)
    said = capsys.readouterr().err
    assert "the model loads and runs, and its card is valid" in said
    assert "not logged in to the Hub, so nothing there was looked at" in said
    nan_weights(folder)
    with pytest.raises(InputError, match="NaN or infinite"):
        room.push(folder, REPO, dry_run=True)
    assert hub.requests == []


def test_a_file_that_a_thousand_requests_could_not_carry_goes_in_parts(
    tmp_path: Path, folder: Path, hub: HubServer
) -> None:
    hub.part_size = 300_000
    room.push(folder, REPO)
    assert hub.files(REPO)["model.safetensors"].sha256 == sha256_of(folder / "model.safetensors")


def break_file(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])


def nan_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["fc.bias"][1] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")


def fewer_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["layer1.0.conv1.weight"]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no model folder: it lacks model.safetensors"),
        (lambda f: shutil.rmtree(f), "no model folder: it lacks model.safetensors, config.json, README.md"),
        (lambda f: break_file(f, "model.safetensors"), "model.safetensors is no whole safetensors file"),
        (lambda f: break_file(f, "config.json"), "cannot read .*config.json"),
        (nan_weights, "tensor 'fc.bias' has NaN or infinite values"),
        (other_weights, "is not the file that config.json describes"),
        (fewer_tensors, "has not the tensors of the network that it names: tensor 'layer1.0.conv1.weight' is missing"),
        (lambda f: (f / "README.md").write_text("# No front matter"), "names no licence"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "its front matter is not valid"),
        (lambda f: (f / "README.md").write_text("---\nlicense: mit\n---\n"), "needs 'library_name: timm'"),
    ],
)
def test_a_bad_folder_is_refused_before_anything_is_sent(
    hub: HubServer, folder: Path, damage: Any, message: str
) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message):
        room.push(folder, REPO)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["model", "a/b/c", "a/b c", "a/--b", ""])
def test_a_bad_repository_name_is_refused(hub: HubServer, folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name of a repository"):
        room.push(folder, name)
    assert hub.requests == []


# --- push, when the Hub fails -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_commit_that_is_turned_away_is_repeated(hub: HubServer, folder: Path, status: int) -> None:
    hub.fault("POST", "/commit/", Status(status), times=2)
    result = room.push(folder, REPO)
    assert (commits(hub), hub.history(REPO)[0].oid) == (1, result["commit"])


def test_retry_after_is_honoured(hub: HubServer, folder: Path, pauses: list[float]) -> None:
    hub.fault("POST", "/commit/", Status(429, {"Retry-After": "7"}))
    room.push(folder, REPO)
    assert pauses == [7]


@pytest.mark.parametrize("action", [Status(503), Drop()], ids=["503", "dropped"])
def test_a_commit_that_never_succeeds_says_so(hub: HubServer, folder: Path, action: Any, pauses: list[float]) -> None:
    hub.fault("POST", "/commit/", action, times=None)
    with pytest.raises(InputError, match=r"committing to someone/model: .*(503.*nothing was changed|network)"):
        room.push(folder, REPO)
    assert commits(hub) == 0
    assert pauses == [1, 2, 4, 8, 16, 32, 60]


def test_an_answer_that_was_lost_makes_no_second_commit(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault("POST", "/commit/", LoseAnswer(), times=None)
    result = room.push(folder, REPO)
    assert (commits(hub), hub.history(REPO)[0].oid) == (1, result["commit"])
    assert "only the answer was lost" in capsys.readouterr().err


def test_a_server_error_after_the_commit_makes_no_second_one(hub: HubServer, folder: Path) -> None:
    """Protects from a proxy that answers 504 while the work behind it is done."""
    hub.create("model", REPO)
    room.push(folder, REPO)
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    readme = (CARD + "\nMore.\n").replace("local-dir:.", f"hf-hub:{REPO}").encode()

    def commit_behind_the_proxy() -> None:
        hub.commit(REPO, {"README.md": readme})

    pause = Pause("before")
    hub.fault("POST", "/commit/", pause)
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(room.push, folder, REPO)
        assert pause.reached.wait(60)
        commit_behind_the_proxy()
        pause.abandon()
        result = pushed.result(60)
    assert (commits(hub), result["commit"]) == (2, hub.history(REPO)[0].oid)


def test_a_push_that_was_overtaken_overwrites_nothing(hub: HubServer, folder: Path) -> None:
    hub.create("model", REPO)
    pause = Pause("before")
    hub.fault("POST", "/commit/", pause)
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(room.push, folder, REPO)
        assert pause.reached.wait(60)
        theirs = hub.commit(REPO, {"README.md": b"theirs"})
        pause.resume()
        with pytest.raises(InputError, match=rf"somebody else pushed .* it is at {theirs[:12]}.*then push again"):
            pushed.result(60)
    assert hub.history(REPO)[0].oid == theirs
    assert room.push(folder, REPO)["changed"] == ["model.safetensors", "config.json", "README.md"]


def test_of_concurrent_pushes_none_overwrites_another_silently(hub: HubServer, tmp_path: Path) -> None:
    hub.create("model", REPO)
    for seed in range(4):
        write_folder(tmp_path / f"m{seed}", seed=seed)
    pauses = [Pause("before") for _ in range(4)]
    for k, pause in enumerate(pauses):
        hub.fault("POST", "/commit/", pause, after=0 if k == 0 else k)
    with ThreadPoolExecutor(4) as pool:
        pushed: list[Future[dict[str, Any]]] = [pool.submit(room.push, tmp_path / f"m{k}", REPO) for k in range(4)]
        for pause in pauses:  # all four have looked at the same head before the first commits
            assert pause.reached.wait(60)
        for pause in pauses:
            pause.resume()
        errors = [future.exception(60) for future in pushed]
    assert [error is None for error in errors].count(False) == 3
    assert all("somebody else pushed" in str(error) for error in errors if error)
    assert commits(hub) == 1


def test_an_upload_that_always_fails_leaves_the_repository_as_it_was(hub: HubServer, folder: Path) -> None:
    hub.create("model", REPO)
    hub.fault("PUT", "/cdn/", Status(500), times=None)
    with pytest.raises(InputError, match="uploading model.safetensors to someone/model: the Hub answered 500"):
        room.push(folder, REPO)
    assert commits(hub) == 0


def test_an_upload_that_fails_once_is_repeated(hub: HubServer, folder: Path) -> None:
    hub.fault("PUT", "/cdn/", Drop())
    room.push(folder, REPO)
    assert hub.files(REPO)["model.safetensors"].sha256 == sha256_of(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("token", "message"),
    [(EXPIRED_TOKEN, "hf auth login"), (READ_TOKEN, "write access"), ("", "not logged in.*hf auth login")],
    ids=["expired", "read-only", "none"],
)
def test_a_token_that_will_not_do(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str, tmp_path: Path
) -> None:
    hub.create("model", REPO)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(InputError, match=message) as error:
        room.push(folder, REPO)
    assert not token or token not in str(error.value)
    assert commits(hub) == 0


def test_a_busy_hub_is_asked_again_for_a_repository_but_not_for_ever(
    hub: HubServer, folder: Path, pauses: list[float]
) -> None:
    busy = Status(409, body={"error": "Cannot create repo: another conflicting operation is in progress"})
    hub.fault("POST", "/repos/create", busy, times=2)
    room.push(folder, REPO)
    assert (commits(hub), pauses) == (1, [1, 2])
    hub.fault("POST", "/repos/create", busy, times=None)
    with pytest.raises(InputError, match="creating someone/other: .*busy"):
        room.push(folder, "someone/other")


def test_a_card_that_the_hub_refuses_is_reported(hub: HubServer, folder: Path) -> None:
    hub.fault("POST", "/validate-yaml", Status(400, body={"errors": [{"message": "license is not allowed"}]}))
    with pytest.raises(InputError, match="committing to someone/model"):
        room.push(folder, REPO)
    assert commits(hub) == 0


def test_the_token_is_never_shown(hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fault("POST", "/commit/", Status(503), times=2)
    print(room.push(folder, REPO))
    hub.fault("POST", "/commit/", Status(503), times=None)
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    with pytest.raises(InputError) as error:
        room.push(folder, REPO)
    shown = capsys.readouterr()
    assert WRITE_TOKEN not in shown.out + shown.err + str(error.value)


# --- pull, load, verify -----------------------------------------------------------------------------------------------


def asked_for_pickles(hub: HubServer) -> bool:
    return any("pytorch_model.bin" in request.path for request in hub.requests)


@pytest.mark.parametrize("name", [REPO, f"hf-hub:{REPO}", f"hf-hub:{REPO}@main"])
def test_a_model_comes_back_as_it_was(hub: HubServer, published: torch.nn.Module, name: str) -> None:
    model = room.load(name)
    assert torch.equal(outputs(model), outputs(published))
    assert not model.training
    assert model.pretrained_cfg["hf_hub_id"] == REPO
    assert room.load(name, num_classes=9).fc.out_features == 9
    assert not asked_for_pickles(hub)


def test_a_folder_that_exists_is_never_asked_of_the_hub(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Image.Image
) -> None:
    here = write_folder(tmp_path / REPO, seed=5)
    monkeypatch.chdir(tmp_path)
    asked = len(hub.requests)
    assert torch.equal(outputs(room.load(REPO)), outputs(here))
    assert room.origin_of(REPO).name == "local-dir:model"
    assert room.verify(REPO)["repo_id"] == f"local-dir:{REPO}"
    seresnet_hub.predict(REPO, photo)
    shutil.rmtree(tmp_path / REPO)
    with pytest.raises(InputError, match=f"there is no such folder; for the Hub's repository write hf-hub:{REPO}"):
        room.load(REPO)
    assert len(hub.requests) == asked
    assert torch.equal(outputs(room.load(f"HF-HUB:{REPO}")), outputs(published))


@pytest.mark.parametrize("prefix", ["", "hf-hub:", "HF-HUB:", "Hf_Hub:"])
def test_every_way_to_a_repository_checks_its_bytes(
    hub: HubServer, published: torch.nn.Module, photo: Image.Image, prefix: str
) -> None:
    hub.fault("GET", "/cdn/", FlipByte(-5), times=None)
    calls = (
        room.load,
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
        room.load(REPO)
    assert not room.verify(REPO)["ok"]


def test_a_revision_is_what_it_says(hub: HubServer, published: torch.nn.Module, tmp_path: Path) -> None:
    old = hub.history(REPO)[0].oid
    newer = write_folder(tmp_path / "newer", seed=5)
    hub.commit(REPO, {name: tmp_path / "newer" / name for name in ("model.safetensors", "config.json")})
    assert torch.equal(outputs(room.load(REPO)), outputs(newer))
    assert torch.equal(outputs(room.load(f"{REPO}@{old}")), outputs(published))
    with pytest.raises(InputError, match="no such branch, tag or commit"):
        room.load(f"{REPO}@nothing")


def test_a_byte_that_flips_on_the_way_is_noticed(hub: HubServer, published: torch.nn.Module) -> None:
    hub.fault("GET", "/cdn/", FlipByte(-5))
    assert torch.equal(outputs(room.load(REPO)), outputs(published))
    assert len(hub.asked("GET", "/cdn/")) == 2


def test_bytes_that_always_flip_are_never_loaded(
    hub: HubServer, published: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault("GET", "/cdn/", FlipByte(-5), times=None)
    with pytest.raises(InputError, match=r"model.safetensors of someone/model arrive with other bytes"):
        room.load(REPO)
    result = room.verify(REPO)
    assert not result["ok"]
    assert [name for name, file in result["files"].items() if not file["ok"]] == ["model.safetensors"]
    assert "delete it and fetch it again" in capsys.readouterr().err


def test_damage_in_the_cache_is_noticed_and_mended(hub: HubServer, published: torch.nn.Module, tmp_path: Path) -> None:
    room.load(REPO)
    (blob,) = (tmp_path / "cache").rglob(hub.files(REPO)["model.safetensors"].sha256)
    damaged = bytearray(blob.read_bytes())
    damaged[-100] ^= 1
    blob.write_bytes(damaged)
    assert not room.verify(REPO)["ok"]
    assert torch.equal(outputs(room.load(REPO)), outputs(published))
    assert room.verify(REPO)["ok"]


def test_a_truncated_answer_is_completed(hub: HubServer, published: torch.nn.Module) -> None:
    hub.fault("GET", "/cdn/", Truncate(1000))
    assert torch.equal(outputs(room.load(REPO)), outputs(published))


def test_no_pickle_takes_the_place_of_weights_that_cannot_be_had(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.fault("HEAD", "/resolve/.*/model.safetensors", Status(503), times=2)
    assert torch.equal(outputs(room.load(REPO)), outputs(published))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    hub.fault("HEAD", "/resolve/.*/model.safetensors", Status(503), times=None)
    with pytest.raises(InputError, match="fetching model.safetensors of someone/model: the Hub answered 503"):
        room.load(REPO)
    assert not asked_for_pickles(hub)


def test_a_repository_of_pickles_is_refused(hub: HubServer) -> None:
    hub.create("model", REPO, {"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    for work in (room.load, room.verify):
        with pytest.raises(InputError, match="no model.safetensors, only pytorch_model.bin, and pickles are not"):
            work(REPO)
    assert not asked_for_pickles(hub)


def test_verify_names_every_file(hub: HubServer, published: torch.nn.Module) -> None:
    result = room.verify(REPO)
    assert (result["repo_id"], result["commit"], result["ok"]) == (REPO, hub.history(REPO)[0].oid, True)
    assert set(result["files"]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert result["files"]["model.safetensors"] == {"hash": hub.files(REPO)["model.safetensors"].sha256, "ok": True}
    assert not asked_for_pickles(hub)


def test_weights_that_do_not_run_are_not_ok(hub: HubServer, folder: Path) -> None:
    nan_weights(folder)
    hub.create("model", REPO, {name: folder / name for name in ("model.safetensors", "config.json")})
    assert room.verify(REPO)["ok"] is False


def test_a_repository_that_says_not_what_network_it_is_for_is_not_ok(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.create("model", REPO, {"model.safetensors": folder / "model.safetensors"})
    assert room.verify(REPO)["ok"] is False
    assert "has no config.json, which says what network its model.safetensors belongs to" in capsys.readouterr().err


def test_offline_a_part_of_a_repository_is_not_ok(
    hub: HubServer, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hf_hub_download(REPO, "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, and it is not all in the cache"):
        room.verify(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    room.load(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = room.verify(REPO)
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
    room.verify(REPO)
    asked = len(hub.requests)
    if way == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(constants, name, getattr(constants, name).replace(hub.url, "http://127.0.0.1:9"))
    assert torch.equal(outputs(room.load(REPO)), outputs(published))
    assert room.verify(REPO)["ok"]
    with pytest.raises(InputError, match="someone/other.*(HF_HUB_OFFLINE|is there a network)"):
        room.load("someone/other")
    assert len(hub.requests) == asked
    (blob,) = (tmp_path / "cache").rglob(hub.files(REPO)["model.safetensors"].sha256)
    blob.write_bytes(blob.read_bytes()[:-1])
    assert not room.verify(REPO)["ok"]
    with pytest.raises(InputError, match="fetching model.safetensors"):
        room.load(REPO)


def test_a_private_model_needs_its_token(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    room.push(folder, REPO, private=True)
    assert room.verify(REPO)["ok"]
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(InputError, match="no such repository, or it is private"):
        room.load(REPO)
    monkeypatch.setenv("HF_TOKEN", EXPIRED_TOKEN)
    with pytest.raises(InputError, match="hf auth login"):
        room.load(REPO)


def test_a_local_folder_is_checked_too(folder: Path) -> None:
    model = room.load(f"local-dir:{folder}")
    assert torch.equal(outputs(model), outputs(timm.create_model(f"local-dir:{folder}", pretrained=True)))
    assert room.verify(f"local-dir:{folder}")["ok"]
    other_weights(folder)
    assert not room.verify(f"local-dir:{folder}")["ok"]
    with pytest.raises(InputError, match="is missing, damaged or exchanged"):
        room.load(f"local-dir:{folder}")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="has no model.safetensors, and pickles are not loaded"):
        room.load(f"local-dir:{folder}")


def test_timms_own_weights_are_checked(hub: HubServer, tmp_path: Path) -> None:
    """Protects `load('seresnet18…')` of any timm tag that lives on the Hub; here the double plays timm's repository."""
    model = timm.create_model("resnet10t").eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    hub.create("model", "timm/resnet10t.c3_in1k", {"model.safetensors": tmp_path / "model.safetensors"})
    hub.fault("GET", "/cdn/", FlipByte(-5))
    loaded = room.load("resnet10t.c3_in1k")
    x = torch.randn(1, 3, 176, 176)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert room.load("seresnet20_cifar", pretrained=False).num_classes == 10
    with pytest.raises(InputError, match="cannot create model 'no_such_model'"):
        room.load("no_such_model")


# --- whole processes --------------------------------------------------------------------------------------------------


def script(hub: HubServer, home: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, env=hub.environment(home), capture_output=True, text=True, timeout=300, check=False)


def test_the_scripts_print_one_json_line(tmp_path: Path, folder: Path) -> None:
    with HubServer(tmp_path / "hub") as hub:
        pushed = script(hub, tmp_path / "home", "push.py", folder, "--repo-id", REPO)
        assert pushed.returncode == 0, pushed.stderr
        assert list(json.loads(pushed.stdout)) == ["repo_id", "commit", "url", "files", "changed"]
        verified = script(hub, tmp_path / "home", "verify.py", REPO)
        assert verified.returncode == 0, verified.stderr
        assert list(json.loads(verified.stdout)) == ["repo_id", "commit", "files", "ok"]
        hub.fault("GET", "/cdn/", FlipByte(-5), times=None)
        damaged = script(hub, tmp_path / "home2", "verify.py", REPO)
        assert (damaged.returncode, json.loads(damaged.stdout)["ok"]) == (1, False)
        refused = script(hub, tmp_path / "home", "push.py", folder, "--repo-id", "nonsense")
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


STAGES = [
    ("GET", "/api/models/", "before"),
    ("POST", "/repos/create", "before"),
    ("POST", "/repos/create", "done"),
    ("POST", "/preupload/", "before"),
    ("POST", "/preupload/", "done"),
    ("PUT", "/cdn/", "before"),
    ("PUT", "/cdn/", "body"),
    ("PUT", "/cdn/", "done"),
    ("POST", "/commit/", "before"),
    ("POST", "/commit/", "body"),
    ("POST", "/commit/", "done"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "stage"), STAGES, ids=["-".join(stage) for stage in STAGES])
def test_a_killed_push_is_completed_by_the_next(
    tmp_path: Path, folder: Path, method: str, path: str, stage: str
) -> None:
    with HubServer(tmp_path / "hub") as hub:
        pause = Pause(stage)
        hub.fault(method, path, pause)
        command = [sys.executable, str(SCRIPTS / "push.py"), str(folder), "--repo-id", REPO]
        process = subprocess.Popen(
            command, env=hub.environment(tmp_path / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert pause.reached.wait(120)
        process.send_signal(signal.SIGKILL)
        process.wait()
        pause.abandon()
        if ("model", REPO) in hub.repositories:
            assert set(hub.files(REPO)) in (
                {".gitattributes"}, {".gitattributes", "model.safetensors", "config.json", "README.md"}
            )  # fmt: skip
        again = script(hub, tmp_path / "home", "push.py", folder, "--repo-id", REPO)
        assert again.returncode == 0, again.stderr
        assert commits(hub) == 1
        assert hub.files(REPO)["model.safetensors"].sha256 == sha256_of(folder / "model.safetensors")


PEAK = """
import re, sys, pathlib
def resident(field):
    return int(re.search(field + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text()).group(1)) * 1024
from seresnet_hub.publishing import push as hub
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
{work}
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_hundred_megabytes_need_no_two_hundred_of_memory(tmp_path: Path, way: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("seresnet50").eval()
    write_model(tmp_path / "big", model.state_dict(), config=timm_config(model, pretrained_cfg={}), card=lambda _: CARD)
    assert (tmp_path / "big" / "model.safetensors").stat().st_size > 100e6
    with HubServer(tmp_path / "hub") as hub:
        if way == "pull":
            hub.create("model", REPO, {path.name: path for path in (tmp_path / "big").iterdir()})
        work = f"hub.push({str(tmp_path / 'big')!r}, {REPO!r})" if way == "push" else f"hub.verify({REPO!r})"
        done = subprocess.run(
            [sys.executable, "-c", PEAK.format(work=work)], env=hub.environment(tmp_path / "home"),
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        print(f"{way}: {int(done.stdout.splitlines()[-1]) / 1e6:.0f} MB")
        assert int(done.stdout.splitlines()[-1]) < 200e6


ROUND_TRIP = """
import sys, json, timm, torch, seresnet_hub
model = timm.create_model(sys.argv[1], pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)), sys.argv[2])
"""


@pytest.mark.slow
def test_the_whole_way_round(tmp_path: Path, write_split: WriteSplit) -> None:
    """Train the digits, push, `hf download`, timm's own loader, then validation on a private data set of the Hub."""
    from seresnet_hub.data.digits import digits_folder

    with HubServer(tmp_path / "hub") as hub:
        home, model = tmp_path / "home", tmp_path / "digits"
        shards = {path.name: path for path in digits_folder().rglob("*.parquet")}
        readme = {path.name: path for path in digits_folder().glob("README.md")}
        hub.create("dataset", "someone/digits", {**shards, **readme}, private=True)

        def run(*command: object) -> subprocess.CompletedProcess[str]:
            done = subprocess.run(
                list(map(str, command)), env=hub.environment(home), capture_output=True, text=True, timeout=300,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            return done

        settings = ("--recipe", "digits", "--data", "someone/digits", "--set", "epochs=2", "--set", "workers=0")
        trained = json.loads(run(sys.executable, SCRIPTS / "train.py", *settings, "--output", model).stdout)
        run(sys.executable, SCRIPTS / "push.py", model, "--repo-id", REPO)
        hf = Path(sys.executable).with_name("hf")
        run(hf, "download", REPO, "--local-dir", tmp_path / "downloaded")
        assert sha256_of(tmp_path / "downloaded" / "model.safetensors") == sha256_of(model / "model.safetensors")
        answers = []
        for k, name in enumerate((f"local-dir:{model}", f"local-dir:{tmp_path / 'downloaded'}", f"hf-hub:{REPO}")):
            run(sys.executable, "-W", "ignore", "-c", ROUND_TRIP, name, tmp_path / f"{k}.pt")
            answers.append(torch.load(tmp_path / f"{k}.pt"))
        assert torch.equal(answers[0], answers[1])
        assert torch.equal(answers[0], answers[2])
        measured = json.loads(
            run(sys.executable, SCRIPTS / "validate.py", f"hf-hub:{REPO}", "--data", "someone/digits").stdout
        )
        assert (measured["seen"], measured["top1"], measured["top5"]) == (360, trained["top1"], trained["top5"])


def test_the_public_names_are_the_rooms() -> None:
    assert (seresnet_hub.push, seresnet_hub.load, seresnet_hub.verify) == (room.push, room.load, room.verify)
