"""What is pushed must arrive whole and once, or be an error, whatever the Hub does.

The real client talks to a loopback double of the Hub (`hub_server.py`, which says what it does not prove).
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hub_faults import Drop, LoseAnswer, Pause, Status
from hub_fixtures import CARD, REPO, commits, nan_weights, other_weights, write_folder
from hub_server import EXPIRED_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.models.load import load
from seresnet_hub.publishing.push import push
from seresnet_hub.publishing.verify import verify
from seresnet_hub.training.progress import Row
from seresnet_hub.training.run_folder import write_summary

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_a_push_is_one_commit_of_the_models_files(hub: HubServer, folder: Path) -> None:
    history: list[Row] = [
        {"step": 1, "epoch": 1.0, "train_loss": 2.5},
        {"step": 2, "epoch": 2.0, "top1": 50.0},
    ]
    write_summary(history, folder / "summary.csv")
    Image.new("RGB", (4, 4)).save(folder / "curves.png")
    (folder / "training").mkdir()
    (folder / "training" / "step-00000001.safetensors").write_bytes(b"a state")
    result = push(folder, REPO)
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
    first = push(folder, REPO)
    sent = len(hub.asked("PUT", "/cdn/"))
    again = push(folder, REPO)
    assert again == {**first, "changed": []}
    assert (commits(hub), len(hub.asked("PUT", "/cdn/")), len(hub.asked("POST", "/commit/"))) == (1, sent, 1)
    assert "has these bytes already" in capsys.readouterr().err


def test_only_what_changed_is_pushed(hub: HubServer, folder: Path) -> None:
    push(folder, REPO)
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    assert push(folder, REPO)["changed"] == ["README.md"]
    assert commits(hub) == 2


def test_branch_tag_and_privacy(hub: HubServer, folder: Path) -> None:
    result = push(folder, REPO, private=True, branch="trial", tag="v1", message="The first")
    assert hub.repositories["model", REPO].private
    assert (commits(hub), commits(hub, revision="trial")) == (0, 1)
    assert hub.history(REPO, "trial")[0].title == "The first"
    assert hub.refs(REPO)["refs/tags/v1"] == result["commit"]
    assert push(folder, REPO, branch="trial", tag="v1")["changed"] == []
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    with pytest.raises(InputError, match="has a tag 'v1' already"):
        push(folder, REPO, branch="trial", tag="v1")
    assert commits(hub, revision="trial") == 1


def test_a_pull_request_is_opened_once(hub: HubServer, folder: Path) -> None:
    hub.create("model", REPO)
    opened = push(folder, REPO, pr=True)
    assert opened["url"] == f"{hub.url}/{REPO}/discussions/1"
    assert (commits(hub), commits(hub, revision="refs/pr/1")) == (0, 1)
    assert push(folder, REPO, pr=True) == {**opened, "changed": []}
    hub.fault("POST", "/commit/", LoseAnswer())
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    assert push(folder, REPO, pr=True, message="Another")["url"].endswith("/discussions/2")
    assert len(hub.repositories["model", REPO].discussions) == 2


def test_a_dry_run_changes_nothing(hub: HubServer, folder: Path) -> None:
    assert push(folder, REPO, dry_run=True)["changed"] == ["model.safetensors", "config.json", "README.md"]
    assert hub.repositories == {}
    push(folder, REPO)
    assert push(folder, REPO, dry_run=True)["changed"] == []
    assert {request.method for request in hub.requests if "/commit/" in request.path} == {"POST"}
    assert commits(hub) == 1


def test_a_dry_run_needs_no_login(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is local is checked, and what was left out is said."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    result = push(folder, REPO, dry_run=True)
    assert (result["files"], result["changed"]) == (["model.safetensors", "config.json", "README.md"], None)
    said = capsys.readouterr().err
    assert "the model loads and runs, and its card is valid" in said
    assert "not logged in to the Hub, so nothing there was looked at" in said
    nan_weights(folder)
    with pytest.raises(InputError, match="NaN or infinite"):
        push(folder, REPO, dry_run=True)
    assert hub.requests == []


def test_a_file_that_a_thousand_requests_could_not_carry_goes_in_parts(
    tmp_path: Path, folder: Path, hub: HubServer
) -> None:
    hub.part_size = 300_000
    push(folder, REPO)
    assert hub.files(REPO)["model.safetensors"].sha256 == sha256_of(folder / "model.safetensors")


def break_file(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])


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
        push(folder, REPO)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["model", "a/b/c", "a/b c", "a/--b", ""])
def test_a_bad_repository_name_is_refused(hub: HubServer, folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name of a repository"):
        push(folder, name)
    assert hub.requests == []


# --- push, when the Hub fails -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_commit_that_is_turned_away_is_repeated(hub: HubServer, folder: Path, status: int) -> None:
    hub.fault("POST", "/commit/", Status(status), times=2)
    result = push(folder, REPO)
    assert (commits(hub), hub.history(REPO)[0].oid) == (1, result["commit"])


def test_retry_after_is_honoured(hub: HubServer, folder: Path, pauses: list[float]) -> None:
    hub.fault("POST", "/commit/", Status(429, {"Retry-After": "7"}))
    push(folder, REPO)
    assert pauses == [7]


@pytest.mark.parametrize("action", [Status(503), Drop()], ids=["503", "dropped"])
def test_a_commit_that_never_succeeds_says_so(hub: HubServer, folder: Path, action: Any, pauses: list[float]) -> None:
    hub.fault("POST", "/commit/", action, times=None)
    with pytest.raises(InputError, match=r"committing to someone/model: .*(503.*nothing was changed|network)"):
        push(folder, REPO)
    assert commits(hub) == 0
    assert pauses == [1, 2, 4, 8, 16, 32, 60]


def test_an_answer_that_was_lost_makes_no_second_commit(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault("POST", "/commit/", LoseAnswer(), times=None)
    result = push(folder, REPO)
    assert (commits(hub), hub.history(REPO)[0].oid) == (1, result["commit"])
    assert "only the answer was lost" in capsys.readouterr().err


def test_a_server_error_after_the_commit_makes_no_second_one(hub: HubServer, folder: Path) -> None:
    """Protects from a proxy that answers 504 while the work behind it is done."""
    hub.create("model", REPO)
    push(folder, REPO)
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    readme = (CARD + "\nMore.\n").replace("local-dir:.", f"hf-hub:{REPO}").encode()

    def commit_behind_the_proxy() -> None:
        hub.commit(REPO, {"README.md": readme})

    pause = Pause("before")
    hub.fault("POST", "/commit/", pause)
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(push, folder, REPO)
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
        pushed = pool.submit(push, folder, REPO)
        assert pause.reached.wait(60)
        theirs = hub.commit(REPO, {"README.md": b"theirs"})
        pause.resume()
        with pytest.raises(InputError, match=rf"somebody else pushed .* it is at {theirs[:12]}.*then push again"):
            pushed.result(60)
    assert hub.history(REPO)[0].oid == theirs
    assert push(folder, REPO)["changed"] == ["model.safetensors", "config.json", "README.md"]


def test_of_concurrent_pushes_none_overwrites_another_silently(hub: HubServer, tmp_path: Path) -> None:
    hub.create("model", REPO)
    for seed in range(4):
        write_folder(tmp_path / f"m{seed}", seed=seed)
    pauses = [Pause("before") for _ in range(4)]
    for k, pause in enumerate(pauses):
        hub.fault("POST", "/commit/", pause, after=0 if k == 0 else k)
    with ThreadPoolExecutor(4) as pool:
        pushed: list[Future[dict[str, Any]]] = [pool.submit(push, tmp_path / f"m{k}", REPO) for k in range(4)]
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
        push(folder, REPO)
    assert commits(hub) == 0


def test_an_upload_that_fails_once_is_repeated(hub: HubServer, folder: Path) -> None:
    hub.fault("PUT", "/cdn/", Drop())
    push(folder, REPO)
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
        push(folder, REPO)
    assert not token or token not in str(error.value)
    assert commits(hub) == 0


def test_a_busy_hub_is_asked_again_for_a_repository_but_not_for_ever(
    hub: HubServer, folder: Path, pauses: list[float]
) -> None:
    busy = Status(409, body={"error": "Cannot create repo: another conflicting operation is in progress"})
    hub.fault("POST", "/repos/create", busy, times=2)
    push(folder, REPO)
    assert (commits(hub), pauses) == (1, [1, 2])
    hub.fault("POST", "/repos/create", busy, times=None)
    with pytest.raises(InputError, match="creating someone/other: .*busy"):
        push(folder, "someone/other")


def test_a_card_that_the_hub_refuses_is_reported(hub: HubServer, folder: Path) -> None:
    hub.fault("POST", "/validate-yaml", Status(400, body={"errors": [{"message": "license is not allowed"}]}))
    with pytest.raises(InputError, match="committing to someone/model"):
        push(folder, REPO)
    assert commits(hub) == 0


def test_the_token_is_never_shown(hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fault("POST", "/commit/", Status(503), times=2)
    print(push(folder, REPO))
    hub.fault("POST", "/commit/", Status(503), times=None)
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    with pytest.raises(InputError) as error:
        push(folder, REPO)
    shown = capsys.readouterr()
    assert WRITE_TOKEN not in shown.out + shown.err + str(error.value)


def test_the_public_names_are_these_functions() -> None:
    assert (seresnet_hub.push, seresnet_hub.load, seresnet_hub.verify) == (push, load, verify)
