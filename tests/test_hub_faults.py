"""Whatever fails at whatever request, a push is never half or double, and a model that is loaded is the whole one.

Each ends in success or one clear line, and what was pushed in vain is pushed by the same command again.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_faults import Action, Delay, Drop, Endless, Garble, LoseAnswer, Pause, Status, Truncate
from hub_fixtures import REPO, commits, outputs, write_folder
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import constants

from seresnet_hub.errors import InputError
from seresnet_hub.models.load import load
from seresnet_hub.publishing.push import push

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SCRIPTS = Path(__file__).parents[1] / "scripts"
WHOLE = {".gitattributes", "model.safetensors", "config.json", "README.md"}
PUSH_REQUESTS = [
    ("GET", "/api/models/{repo}(/revision/[^/]*)?$"),
    ("POST", "/repos/create"),
    ("POST", "/api/models/{repo}/branch/"),
    ("GET", "/api/models/{repo}/tree/"),
    ("GET", "/api/models/{repo}/refs"),
    ("POST", "/validate-yaml"),
    ("POST", "/api/models/{repo}/preupload/"),
    ("POST", "/{repo}.git/info/lfs/objects/batch"),
    ("PUT", "/cdn/model/{repo}/"),
    ("POST", "/{repo}.git/info/lfs/verify"),
    ("POST", "/api/models/{repo}/commit/"),
    ("POST", "/api/models/{repo}/tag/"),
]
LOAD_REQUESTS = [
    ("GET", "/api/models/{repo}(/revision/[^/]*)?$"),
    ("GET", "/api/models/{repo}/tree/"),
    ("HEAD", "/{repo}/resolve/.*/config.json"),
    ("GET", "/{repo}/resolve/.*/config.json"),
    ("HEAD", "/{repo}/resolve/.*/model.safetensors"),
    ("GET", "/cdn/model/{repo}/"),
]
REFUSALS = [Status(400), Status(413)]
PASSING = [*(Status(status) for status in (408, 429, 500, 502, 503, 504)), Drop(), LoseAnswer(), Garble(), Truncate(3)]


def call(work: Any) -> tuple[str, Any]:
    """Return how a call ends: "done" and its result, or "refused" and one line without the token."""
    try:
        return "done", work()
    except InputError as error:
        line = str(error)
    assert "\n" not in line
    assert WRITE_TOKEN not in line
    assert len(line) < 1500
    return "refused", line


def whole(hub: HubServer, repo: str, revision: str = "trial") -> int:
    """Return the number of commits that pushes have made, after showing that none of them is half of one."""
    if ("model", repo) not in hub.repositories or f"refs/heads/{revision}" not in hub.refs(repo):
        return 0
    for commit in hub.history(repo, revision)[:-1]:
        assert set(commit.files) == WHOLE
    return commits(hub, repo, revision)


def spoiled_pushes(hub: HubServer, folder: Path, actions: Iterable[Action]) -> Counter[str]:
    """Push once for each request and action, then again without the fault; count how the first pushes ended."""
    ends: Counter[str] = Counter()
    for number, (request, action, times) in enumerate(itertools.product(PUSH_REQUESTS, actions, (1, None))):
        method, path = request
        repo = f"someone/model-{number}"
        fault = hub.fault(method, path.format(repo=repo), action, times=times)
        end, result = call(lambda repo=repo: push(folder, repo, branch="trial", tag="v1"))
        case = f"{method} {path} {action} {times}: {end} {result}"
        assert fault.seen > 0, f"{case}: never asked"
        assert whole(hub, repo) <= 1, case
        if end == "done":
            assert whole(hub, repo) == 1, case
            assert result["commit"] == hub.history(repo, "trial")[0].oid == hub.refs(repo)["refs/tags/v1"], case
        if times == 1 and action in PASSING:
            assert end == "done", case
        hub.faults.clear()
        again = push(folder, repo, branch="trial", tag="v1")
        assert whole(hub, repo) == 1, case
        assert again["commit"] == hub.history(repo, "trial")[0].oid, case
        ends[end] += 1
    return ends


def test_no_fault_makes_half_a_commit_or_two(hub: HubServer, folder: Path) -> None:
    ends = spoiled_pushes(hub, folder, [LoseAnswer()])
    assert ends["done"] >= len(PUSH_REQUESTS)


@pytest.mark.slow
def test_no_fault_of_any_kind_makes_half_a_commit_or_two(hub: HubServer, folder: Path) -> None:
    print(spoiled_pushes(hub, folder, [*REFUSALS, *PASSING]))


def spoiled_loads(
    hub: HubServer, folder: Path, expected: torch.Tensor, actions: Iterable[Action], cache: Path, patch: Any
) -> Counter[str]:
    """Load once for each request and action, with an empty and with a full cache; count how loading ended."""
    ends: Counter[str] = Counter()
    files: dict[str, bytes | Path] = {name: folder / name for name in WHOLE - {".gitattributes"}}
    for number, (request, action, times) in enumerate(itertools.product(LOAD_REQUESTS, actions, (1, None))):
        method, path = request
        repo = f"someone/model-{number}"
        hub.create("model", repo, {**files, "pytorch_model.bin": b"a pickle"})
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / str(number)))
        for state in ("empty", "full"):
            fault = hub.fault(method, path.format(repo=repo), action, times=times)
            end, result = call(lambda repo=repo: load(repo))
            case = f"{method} {path} {action} {times} {state}: {end} {result}"
            if end == "done":
                assert torch.equal(outputs(result), expected), case
            if action in PASSING and (state == "full" or (times == 1 and method != "HEAD")):
                assert end == "done", case
            assert state == "full" or fault.seen > 0 or method == "HEAD", case
            hub.faults.clear()
            assert torch.equal(outputs(load(repo)), expected), case
            ends[f"{state} {end}"] += 1
    assert not any("pytorch_model.bin" in request.path for request in hub.requests)
    return ends


def test_no_fault_gives_another_model(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs(published)
    ends = spoiled_loads(hub, tmp_path / "source", expected, [Status(503)], tmp_path / "caches", monkeypatch)
    assert ends["full done"] == len(LOAD_REQUESTS) * 2


@pytest.mark.slow
def test_no_fault_of_any_kind_gives_another_model(
    hub: HubServer, published: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = [*REFUSALS, *PASSING]
    print(spoiled_loads(hub, tmp_path / "source", outputs(published), actions, tmp_path / "caches", monkeypatch))


def test_equal_pushes_at_the_same_time_all_succeed_with_one_commit(hub: HubServer, folder: Path) -> None:
    hub.create("model", REPO)
    pauses = [Pause("before") for _ in range(4)]
    for k, pause in enumerate(pauses):
        hub.fault("POST", "/commit/", pause, after=k)
    with ThreadPoolExecutor(4) as pool:
        pushed = [pool.submit(push, folder, REPO) for _ in range(4)]
        for pause in pauses:  # all four have looked at the same head before the first commits
            assert pause.reached.wait(60)
        for pause in pauses:
            pause.resume()
        results = [future.result(60) for future in pushed]
    assert {result["commit"] for result in results} == {hub.history(REPO)[0].oid}
    assert commits(hub) == 1


def test_a_commit_whose_answer_cannot_be_read_is_looked_up(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault("POST", "/commit/", Garble(), times=None)
    assert push(folder, REPO)["commit"] == hub.history(REPO)[0].oid
    assert commits(hub) == 1
    assert "it had happened, only the answer was lost" in capsys.readouterr().err


@pytest.mark.parametrize(
    "action", [Endless(), Garble(b"{}"), Garble(b'{"commitOid": "../x", "commitUrl": "a"}')], ids=str
)
def test_a_commit_whose_answer_is_refused_is_looked_up(hub: HubServer, folder: Path, action: Action) -> None:
    hub.fault("POST", "/commit/", action, times=None)
    assert push(folder, REPO)["commit"] == hub.history(REPO)[0].oid
    assert commits(hub) == 1


def test_a_commit_that_is_done_at_the_very_last_try_is_found(hub: HubServer, folder: Path) -> None:
    hub.fault("POST", "/commit/", Status(503), times=7)
    hub.fault("POST", "/commit/", LoseAnswer(), after=7, times=None)
    assert push(folder, REPO)["commit"] == hub.history(REPO)[0].oid
    assert commits(hub) == 1


def test_where_nobody_can_tell_whether_a_commit_happened_the_message_says_so(hub: HubServer, folder: Path) -> None:
    """Saying "nothing was changed" would be wrong."""
    hub.create("model", REPO)
    hub.fault("POST", "/commit/", LoseAnswer())
    hub.fault("GET", f"/api/models/{REPO}(/revision/[^/]*)?$", Status(503), after=1, times=None)
    with pytest.raises(InputError, match="whether it was done cannot be found out .*run the same again") as error:
        push(folder, REPO)
    assert not str(error.value).startswith("asking")
    hub.faults.clear()
    assert push(folder, REPO)["changed"] == []
    assert commits(hub) == 1


def test_a_commit_that_somebody_else_has_built_on_is_found(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its answer was lost, and before it could be looked up, there was another on top of it."""
    hub.create("model", REPO)
    pause = Pause("done")
    hub.fault("POST", "/commit/", pause)
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(push, folder, REPO)
        assert pause.reached.wait(60)
        ours = hub.history(REPO)[0].oid
        theirs = hub.commit(REPO, {"README.md": b"theirs"})
        pause.abandon()
        assert pushed.result(60)["commit"] == ours
    assert [commit.oid for commit in hub.history(REPO)[:2]] == [theirs, ours]
    assert f"is now at {theirs[:12]}: somebody else pushed on top of {ours[:12]}" in capsys.readouterr().err


@pytest.mark.parametrize("action", [Status(503), Drop(), Garble()], ids=str)
@pytest.mark.parametrize("times", [1, None])
def test_looking_for_a_pull_request_whose_answer_was_lost_is_bounded_too(
    hub: HubServer, folder: Path, action: Action, times: int | None
) -> None:
    """The list of pull requests is asked for a second time then, and may fail as any request."""
    hub.create("model", REPO)
    hub.fault("POST", "/commit/", LoseAnswer())
    hub.fault("GET", "/discussions", action, times=times, after=1)
    end, result = call(lambda: push(folder, REPO, pr=True))
    if times:
        assert end == "done", result
    else:
        assert "whether it was done cannot be found out" in result
    hub.faults.clear()
    assert push(folder, REPO, pr=True)["url"].endswith("/discussions/1")


@pytest.mark.slow
@pytest.mark.parametrize("action", [None, *PASSING], ids=str)
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "different"])
def test_four_racing_processes_make_one_commit(tmp_path: Path, action: Action | None, equal: bool) -> None:
    for seed in range(4):
        write_folder(tmp_path / f"m{seed}", seed=0 if equal else seed)
    with HubServer(tmp_path / "hub") as hub:
        hub.create("model", REPO)
        if action:
            hub.fault("POST", "/commit/", action, times=2)
        hub.fault("POST", "/commit/", Delay(0.5), times=None)
        processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPTS / "push.py"), str(tmp_path / f"m{k}"), "--repo-id", REPO],
                env=hub.environment(tmp_path / f"home{k}"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for k in range(4)
        ]  # fmt: skip
        ended = [(*process.communicate(timeout=300), process.returncode) for process in processes]
        assert commits(hub) == 1 or not equal
        for commit in hub.history(REPO)[:-1]:
            assert set(commit.files) == WHOLE
        codes = [code for *_, code in ended]
        assert set(codes) <= {0, 2}
        assert 0 in codes
        if equal:
            assert codes == [0, 0, 0, 0]
            assert {json.loads(out)["commit"] for out, *_ in ended} == {hub.history(REPO)[0].oid}
        else:  # a process that looks late puts its commit on top of another, and each commit is somebody's
            assert commits(hub) == codes.count(0), ended
            refused = [error for _, error, code in ended if code]
            assert all("somebody else pushed" in error.splitlines()[-1] for error in refused)
