"""Processes that push, load and validate must print one line, survive being killed, and need little memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import WriteSplit
from hub_faults import FlipByte, Pause
from hub_fixtures import CARD, REPO, commits
from hub_server import HubServer
from warm_python import run_python

from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.files.model_folder import timm_config, write_model

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(hub: HubServer, home: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return run_python(command, env=hub.environment(home), timeout=300)


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
from seresnet_hub import push, verify
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
        work = f"push({str(tmp_path / 'big')!r}, {REPO!r})" if way == "push" else f"verify({REPO!r})"
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
