"""The double of the Hub must serve the real clients, and break as hub-protocol's table of faults says it does."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_faults import Delay, Drop, FlipByte, LoseAnswer, Pause, Status, Truncate
from hub_server import EXPIRED_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer
from warm_python import run_python

PRELUDE = """
import json, logging, sys, time
from pathlib import Path
time.sleep = lambda seconds: None  # the clients' back-off
import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
api = HfApi()
seen = {}
home = Path(sys.argv[1])

def outcome(work, *args, **kwargs):
    try:
        return work(*args, **kwargs)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", "")
        return f"{type(error).__name__} {status}".strip()
"""
WEIGHTS = bytes(range(256)) * 1200


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", page_size=2, part_size=1 << 20) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def run(hub: HubServer, home: Path, program: str, token: str | None = WRITE_TOKEN) -> dict[str, Any]:
    """Run a program in a process of its own and return what it put into `seen`."""
    home.mkdir(parents=True, exist_ok=True)
    code = PRELUDE + program + "\nprint(json.dumps(seen))"
    done = run_python([sys.executable, "-c", code, str(home)], env=hub.environment(home, token))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def titles(hub: HubServer, repo: str, revision: str = "main") -> list[str]:
    return [commit.title for commit in hub.history(repo, revision)]


def test_a_folder_is_pushed_and_pulled_whole(hub: HubServer, home: Path) -> None:
    seen = run(
        hub,
        home,
        """
seen["name"] = api.whoami()["name"]
api.create_repo("tester/m")
seen["again"] = str(api.create_repo("tester/m", exist_ok=True))
folder = home / "folder"
(folder / "sub").mkdir(parents=True)
contents = {"config.json": b"{}", "model.safetensors": bytes(300000), "large.bin": bytes(range(256)) * 10000,
            "sub/a b.txt": b"x", "README.md": b"---\\nlicense: mit\\n---\\nText"}
for name, content in contents.items():
    (folder / name).write_bytes(content)
first = api.upload_folder(repo_id="tester/m", folder_path=folder)
seen["same"] = api.upload_folder(repo_id="tester/m", folder_path=folder).oid == first.oid
seen["files"] = sorted(api.list_repo_files("tester/m"))
seen["top"] = [entry.path for entry in api.list_repo_tree("tester/m")]
found = api.get_paths_info("tester/m", ["sub", "model.safetensors", "missing"])
seen["info"] = [[entry.path, bool(getattr(entry, "lfs", None))] for entry in found]
pulled = Path(snapshot_download("tester/m"))
seen["whole"] = all((pulled / name).read_bytes() == content for name, content in contents.items())
checked = api.verify_repo_checksums("tester/m")
seen["checked"] = [checked.checked_count, checked.mismatches]
api.create_branch("tester/m", branch="dev/x")
api.create_tag("tester/m", tag="v1")
seen["exists"] = [outcome(api.create_branch, "tester/m", branch="dev/x"), outcome(api.create_tag, "tester/m", tag="v1")]
api.upload_file(path_or_fileobj=b"q", path_in_repo="sub/q.txt", repo_id="tester/m", revision="dev/x")
seen["branch"] = Path(hf_hub_download("tester/m", "sub/q.txt", revision="dev/x")).read_text()
api.delete_file("sub/q.txt", "tester/m", revision="dev/x")
seen["pull"] = api.upload_file(path_or_fileobj=b'{"a": 1}', path_in_repo="config.json", repo_id="tester/m",
                               create_pr=True, commit_message="Change").pr_revision
seen["opened"] = api.create_pull_request("tester/m", "Another").git_reference
api.merge_pull_request("tester/m", 1)
seen["merged"] = [discussion.status for discussion in api.get_repo_discussions("tester/m")]
seen["commits"] = [commit.title for commit in api.list_repo_commits("tester/m")]
info = api.model_info("tester/m", files_metadata=True)
seen["info_sha"] = info.sha
seen["digest"] = [sibling.lfs.sha256 for sibling in info.siblings if sibling.rfilename == "model.safetensors"]
api.auth_check("tester/m")
refs = api.list_repo_refs("tester/m", include_pull_requests=True)
seen["refs"] = sorted(r.ref for r in refs.branches + refs.tags + refs.pull_requests)
api.delete_branch("tester/m", branch="dev/x")
api.delete_tag("tester/m", tag="v1")
seen["missing"] = [
    outcome(hf_hub_download, "tester/m", "no.txt"), outcome(hf_hub_download, "tester/m", "config.json", revision="no"),
    outcome(hf_hub_download, "tester/no", "config.json"), outcome(api.upload_file, path_or_fileobj=b"x",
    path_in_repo="x", repo_id="tester/m", revision="no"), outcome(api.delete_file, "no.txt", "tester/m"),
]
api.create_repo("tester/gone", repo_type="dataset")
api.delete_repo("tester/gone", repo_type="dataset")
seen["gone"] = outcome(api.dataset_info, "tester/gone")
""",
    )
    assert seen["name"] == "tester"
    assert seen["again"] == f"{hub.url}/tester/m"
    assert seen["same"]
    assert seen["files"] == [
        ".gitattributes", "README.md", "config.json", "large.bin", "model.safetensors", "sub/a b.txt"
    ]  # fmt: skip
    assert seen["top"] == [*seen["files"][:-1], "sub"]
    assert seen["info"] == [["sub", False], ["model.safetensors", True]]
    assert seen["whole"]
    assert seen["checked"] == [6, []]
    assert seen["exists"] == ["HfHubHTTPError 409"] * 2
    assert seen["branch"] == "q"
    assert (seen["pull"], seen["opened"]) == ("refs/pr/1", "refs/pr/2")
    assert seen["merged"] == ["merged", "draft"]
    assert seen["commits"] == titles(hub, "tester/m")
    assert titles(hub, "tester/m") == ["Change (#1)", "Upload folder using huggingface_hub", "initial commit"]
    assert seen["info_sha"] == hub.history("tester/m")[0].oid
    assert seen["digest"] == [hub.files("tester/m")["model.safetensors"].sha256]
    assert seen["refs"] == ["refs/heads/dev/x", "refs/heads/main", "refs/pr/1", "refs/pr/2", "refs/tags/v1"]
    assert set(hub.refs("tester/m")) == {"refs/heads/main", "refs/pr/1", "refs/pr/2"}
    assert seen["missing"] == [
        "RemoteEntryNotFoundError 404", "RevisionNotFoundError 404", "RepositoryNotFoundError 404",
        "RevisionNotFoundError 404", "RemoteEntryNotFoundError 404",
    ]  # fmt: skip
    assert seen["gone"] == "RepositoryNotFoundError 404"
    assert hub.files("tester/m")["config.json"].read() == b'{"a": 1}'
    # Large files travel to and from the other origin, in parts where they are long, and take no token along.
    stored = hub.asked("PUT", "/cdn/")
    assert len(stored) == 1 + 3
    assert sum(request.received for request in stored) == 300000 + 256 * 10000
    served = hub.asked("GET", "/cdn/")
    assert {request.path.rsplit("/", 1)[-1]: request.sent for request in served} == {
        "model.safetensors": 300000, "large.bin": 256 * 10000
    }  # fmt: skip
    assert {request.origin for request in stored + served} == {"cdn"}
    assert not any(request.authorized for request in stored + served)


def test_the_command_line(hub: HubServer, home: Path) -> None:
    folder = home / "folder"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text("{}")

    def hf(*arguments: str | Path) -> str:
        done = subprocess.run(
            [Path(sys.executable).parent / "hf", *arguments], env=hub.environment(home),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    hf("repos", "create", "tester/m", "--private")
    hf("upload", "tester/m", folder, ".", "--commit-message", "From a shell")
    hf("repos", "tag", "create", "tester/m", "v1")
    hf("repos", "branch", "create", "tester/m", "dev")
    hf("download", "tester/m", "--revision", "v1", "--local-dir", home / "pulled")
    assert (home / "pulled" / "model.safetensors").read_bytes() == WEIGHTS
    assert titles(hub, "tester/m", "dev") == ["From a shell", "initial commit"]
    assert hub.repositories["model", "tester/m"].private
    hub.create("model", "tester/flipped", {"model.safetensors": WEIGHTS})
    hub.fault("GET", "/cdn/model/tester/flipped/", FlipByte(-5))
    hf("download", "tester/flipped")
    with pytest.raises(AssertionError, match="Verification failed for 'tester/flipped'"):
        hf("cache", "verify", "tester/flipped")


def test_who_may_read_and_write(hub: HubServer, home: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    hub.create("model", "tester/open", files)
    hub.create("model", "tester/private", files, private=True)
    hub.create("model", "tester/gated", files, gated=True)
    program = """
for name in "open", "private", "gated":
    pulled = outcome(hf_hub_download, f"tester/{name}", "model.safetensors")
    pushed = outcome(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id=f"tester/{name}")
    seen[name] = [pulled if "/" not in pulled else "pulled", pushed if "/" not in pushed else "pushed"]
"""
    assert all(done == ["pulled", "pushed"] for done in run(hub, home / "writer", program).values())
    assert run(hub, home / "reader", program, READ_TOKEN) == {
        "open": ["pulled", "HfHubHTTPError 403"],
        "private": ["pulled", "HfHubHTTPError 403"],
        "gated": ["GatedRepoError 403", "HfHubHTTPError 403"],
    }
    nobody = run(hub, home / "nobody", program, None)
    assert {name: pulled for name, (pulled, _) in nobody.items()} == {
        "open": "pulled", "private": "RepositoryNotFoundError 401", "gated": "GatedRepoError 401"
    }  # fmt: skip
    assert all("pushed" not in pushed for _, pushed in nobody.values())
    # An expired token opens nothing, but what lies in the cache is returned.
    assert run(hub, home / "writer", program, EXPIRED_TOKEN)["open"] == ["pulled", "HfHubHTTPError 401"]
    assert run(hub, home / "expired", program, EXPIRED_TOKEN)["open"] == ["HfHubHTTPError 401"] * 2


def test_faults_of_a_push(hub: HubServer, home: Path) -> None:
    for name in "put", "busy", "limited", "lost", "stale", "crowd", "card":
        hub.create("model", f"tester/{name}")
    hub.fault("PUT", "/cdn/model/tester/put/", Status(500), times=None)
    hub.fault("POST", "/tester/busy/commit/", Status(503))
    hub.fault("POST", "/tester/limited/commit/", Status(429, {"Retry-After": "1"}))
    hub.fault("POST", "/tester/lost/commit/", LoseAnswer())
    hub.fault("POST", "/tester/crowd/commit/", Delay(0.2), times=4)
    conflict = {"error": "Cannot create repo: another conflicting operation is in progress"}
    hub.fault("POST", "/api/repos/create", Status(409, body=conflict), times=30)
    seen = run(
        hub,
        home,
        """
from concurrent.futures import ThreadPoolExecutor

def push(name, path="model.safetensors", content=bytes(1000), **kwargs):
    operation = CommitOperationAdd(path, content)
    return outcome(lambda: api.create_commit(f"tester/{name}", [operation], commit_message=path, **kwargs).oid)

for name in "put", "busy", "limited", "lost":
    seen[name] = push(name)
parent = api.model_info("tester/stale").sha
push("stale", parent_commit=parent)
seen["stale"] = push("stale", "config.json", b"{}", parent_commit=parent)
with ThreadPoolExecutor(4) as pool:
    seen["crowd"] = list(pool.map(lambda n: push("crowd", "config.json", b"%d" % n), range(4)))
api.create_repo("tester/new")
""",
    )
    assert seen["put"] == "RuntimeError"
    assert len(hub.asked("PUT", "/cdn/model/tester/put/")) == 6
    assert seen["busy"] == "HfHubHTTPError 503"
    assert seen["limited"] == "HfHubHTTPError 429"
    assert seen["lost"] == "RemoteProtocolError"
    assert seen["stale"] == "HfHubHTTPError 412"
    for name in "put", "busy", "limited":
        assert titles(hub, f"tester/{name}") == ["initial commit"]
        assert len(hub.asked("POST", f"/tester/{name}/commit/")) == (name != "put")
    assert titles(hub, "tester/lost") == ["model.safetensors", "initial commit"], "the commit is there"
    assert titles(hub, "tester/stale") == ["model.safetensors", "initial commit"]
    assert {commit.oid for commit in hub.history("tester/crowd")[:4]} == set(seen["crowd"]), "one over another"
    assert len(hub.asked("POST", "/api/repos/create")) == 31


def test_faults_of_a_pull(hub: HubServer, home: Path) -> None:
    for name in "flipped", "cut", "dropped", "small":
        hub.create("model", f"tester/{name}", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    hub.fault("GET", "/cdn/model/tester/flipped/", FlipByte(70_000))
    hub.fault("GET", "/cdn/model/tester/cut/", Truncate(100_000))
    hub.fault("GET", "/cdn/model/tester/dropped/", Drop())
    seen = run(
        hub,
        home,
        """
weights = bytes(range(256)) * 1200
for name in "flipped", "cut", "dropped":
    pulled = Path(hf_hub_download(f"tester/{name}", "model.safetensors")).read_bytes()
    seen[name] = [k for k in range(len(weights)) if weights[k] != pulled[k]]
    checked = api.verify_repo_checksums(f"tester/{name}")
    seen[name + " checked"] = [mismatch["path"] for mismatch in checked.mismatches]
""",
    )
    assert seen["flipped"] == [70_000]
    assert seen["flipped checked"] == ["model.safetensors"]
    for name in "cut", "dropped":
        assert seen[name] == seen[name + " checked"] == []
    first, second = hub.asked("GET", "/cdn/model/tester/cut/")
    assert (first.sent, second.sent) == (100_000, len(WEIGHTS)), "below the client's chunk of 10 MiB it starts again"


def test_ranges_of_a_large_file(hub: HubServer) -> None:
    hub.create("model", "tester/m", {"model.safetensors": WEIGHTS})
    url = f"{hub.url}/tester/m/resolve/main/model.safetensors"

    def get(wanted: str) -> tuple[int, str, bytes]:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": wanted})) as answer:
            return answer.status, answer.headers["Content-Range"], answer.read()

    size = len(WEIGHTS)
    assert get("bytes=10-19") == (206, f"bytes 10-19/{size}", WEIGHTS[10:20])
    assert get(f"bytes={size - 5}-{size + 5}") == (206, f"bytes {size - 5}-{size - 1}/{size}", WEIGHTS[-5:])
    assert get("bytes=-8") == (206, f"bytes {size - 8}-{size - 1}/{size}", WEIGHTS[-8:])
    with pytest.raises(urllib.error.HTTPError, match="416") as refused:
        get(f"bytes={size}-")
    assert refused.value.headers["Content-Range"] == f"bytes */{size}"
    refused.value.close()


@pytest.mark.parametrize(
    ("method", "path", "stage", "resent"),
    [("PUT", "/cdn/", "body", True), ("POST", "/commit/", "before", False), ("POST", "/commit/", "done", None)],
)
def test_a_client_killed_while_it_waits(
    method: str, path: str, stage: str, resent: bool | None, hub: HubServer, home: Path
) -> None:
    hub.create("model", "tester/m")
    pause = Pause(stage)
    hub.fault(method, path, pause)
    program = PRELUDE + "api.upload_file(path_or_fileobj=bytes(300000), path_in_repo='w.bin', repo_id='tester/m')"
    command, environment = [sys.executable, "-c", program, str(home)], hub.environment(home)
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as client:
        assert pause.reached.wait(60)
        os.kill(client.pid, signal.SIGKILL)
    pause.abandon()
    committed = stage == "done"
    assert len(titles(hub, "tester/m")) == 1 + committed
    again = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert again.returncode == 0
    assert len(titles(hub, "tester/m")) == 2
    assert hub.files("tester/m")["w.bin"].size == 300000
    assert len(hub.asked("PUT", "/cdn/")) == (2 if resent else 1)


def test_timm_takes_weights_as_they_come(hub: HubServer, home: Path) -> None:
    fetch = r"/tester/%s/resolve/main/model\.safetensors"
    hub.fault("GET", r"/cdn/model/tester/flipped/.*/model\.safetensors", FlipByte(-100))
    hub.fault("HEAD", fetch % "busy", Status(503), times=None)
    hub.fault("HEAD", fetch % "single", Status(503), times=None)
    seen = run(
        hub,
        home,
        """
import timm, torch
torch.manual_seed(0)
model = timm.create_model("test_resnet", num_classes=3)
state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
folder = home / "folder"
timm.models.save_for_hf(model, folder, safe_serialization="both")
with torch.no_grad():
    model.fc.bias += 1
torch.save(model.state_dict(), folder / "pytorch_model.bin")

def agree(name):
    loaded = timm.create_model(f"hf-hub:tester/{name}", pretrained=True).state_dict()
    return [key for key, tensor in state.items() if not torch.equal(tensor, loaded[key])]

for name in "whole", "flipped", "busy", "single":
    api.create_repo(f"tester/{name}", private=True)
    ignored = "pytorch_model.bin" if name == "single" else None
    api.upload_folder(repo_id=f"tester/{name}", folder_path=folder, ignore_patterns=ignored)
    seen[name] = outcome(agree, name)
""",
    )
    assert seen["whole"] == []
    assert len(seen["flipped"]) == 1, "corrupt weights are loaded without an error"
    assert seen["busy"] == ["fc.bias"], "the pickle's weights"
    assert seen["single"] == "RemoteEntryNotFoundError 404", "of the pickle, though the weights are there"


def test_a_data_set_is_streamed(hub: HubServer, home: Path) -> None:
    buffer = io.BytesIO()
    table = pyarrow.table({"value": pyarrow.array(range(40_000), pyarrow.int64())})
    pyarrow.parquet.write_table(table, buffer, compression="none", use_dictionary=False, column_encoding="PLAIN")
    faults = {
        "whole": (None, 0), "busy": (Status(503), 1), "limited": (Status(429), 1), "dropped": (Drop(), 1),
        "cut": (Truncate(50_000), 1), "down": (Status(503), 8), "forbidden": (Status(403), None),
        "missing": (Status(404), None), "flipped": (FlipByte(160_000), None),
    }  # fmt: skip
    for name, (action, times) in faults.items():
        hub.create("dataset", f"tester/{name}", {"data/train-00000-of-00001.parquet": buffer.getvalue()}, private=True)
        if action:
            hub.fault("GET", f"/datasets/tester/{name}/resolve/", action, times=times)
            hub.fault("GET", f"/cdn/dataset/tester/{name}/", action, times=times)
    program = """
import datasets
def rows(name):
    values = [row["value"] for row in datasets.load_dataset(f"tester/{name}", split="train", streaming=True)]
    return [len(values), sum(value != k for k, value in enumerate(values))]
for name in sys.argv[2:] or %r:
    seen[name] = outcome(rows, name)
"""
    seen = run(hub, home, program % list(faults))
    for name in "whole", "busy", "limited", "dropped", "cut":
        assert seen[name] == [40_000, 0], name
    assert seen["flipped"] == [40_000, 1], "other rows, silently"
    for name in "down", "forbidden", "missing":
        assert isinstance(seen[name], str), (name, seen[name])
    assert all(request.range for request in hub.asked("GET", "/cdn/dataset/"))
    assert "Error" in run(hub, home / "nobody", program % ["whole"], None)["whole"]
