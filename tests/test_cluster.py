"""The files for schedulers parse, and start train.py with a command that it takes and that goes on after a restart."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from seresnet_hub.commands import train as train_command

SCRIPTS = Path(__file__).parents[1] / "scripts"
CLUSTER = SCRIPTS / "cluster"
ASKED = ["--recipe", "digits", "--output", "runs/a b"]  # with a blank, which shells divide where it is not quoted


def trained_with(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what train.py makes of a command line: the recipe's name and the arguments of `train`."""
    calls: list[dict[str, Any]] = []

    def train(recipe: Any, **options: Any) -> dict[str, Any]:
        calls.append({"recipe": recipe.name, **options})
        return {"stopped": "SIGTERM"}

    monkeypatch.setattr("seresnet_hub.training.train.train", train)
    result = train_command.main(arguments)
    code = train_command.exit_code(train_command.parser().parse_args(arguments), result)
    return {**calls[0], "stopped_exit_code": code}


def after_script(words: list[str]) -> list[str]:
    return words[words.index("scripts/train.py") + 1 :]


def calls_of(
    command: list[str], folder: Path, stand_ins: dict[str, str], **environment: str
) -> tuple[list[list[str]], int]:
    """Run a command where stand-ins note how other programs were called; return the calls and the exit code."""
    for name, code in stand_ins.items():
        note = f'#!/bin/bash\npython3 -c "import json, sys; print(json.dumps(sys.argv[1:]))" {name} "$@" >> calls\n'
        (folder / name).write_text(note + code)
        (folder / name).chmod(0o755)
    (folder / "calls").unlink(missing_ok=True)
    given = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()], done.returncode


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_files_parse(path: Path) -> None:
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert os.access(path, os.X_OK)
    else:
        assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text()))
    text = path.read_text()
    assert "--resume" in text
    assert path.name in (SCRIPTS / "README.md").read_text()


JOB = {"SLURM_JOB_ID": "10007", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}


@pytest.mark.parametrize(
    ("srun", "restarts", "queued_again", "code"),
    [
        ("exit 0", "0", False, 0),
        ("exit 1", "0", False, 1),  # a wrong command would fail again
        ("exit 137", "0", True, 137),
        ("exit 137", "20", False, 137),
        # Five minutes before the time limit: the launchers pass the signal on, and end with an error of their own.
        ("kill -USR1 $PPID; sleep 0.5; exit 1", "30", True, 1),
        ("kill -USR1 $PPID; sleep 0.5; exit 0", "0", True, 0),
    ],
)
def test_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, srun: str, restarts: str, queued_again: bool, code: int
) -> None:
    stand_ins = {"srun": srun, "scancel": "", "scontrol": '[ "$1" != show ] || printf "n1\\nn2\\n"'}
    command = ["bash", str(CLUSTER / "slurm.sh"), *ASKED]
    calls, ended = calls_of(command, tmp_path, stand_ins, **JOB, SLURM_RESTART_COUNT=restarts)
    (started,) = [call for call in calls if call[0] == "srun"]
    assert {"--ntasks-per-node=1", "torchrun", "--nnodes=2", "--nproc-per-node=8"} <= {*started}
    assert {"--rdzv-endpoint=n1:20007", f"--rdzv-id=10007.{restarts}"} <= {*started}
    run = trained_with(after_script(started), monkeypatch)
    assert (run["recipe"], run["output"], run["resume"]) == ("digits", "runs/a b", True)
    assert (["scancel", "--signal=USR1", "10007"] in calls) == ("USR1" in srun)
    assert (["scontrol", "requeue", "10007"] in calls) == queued_again
    assert ended == code


def test_slurms_options_are_what_the_script_relies_on() -> None:
    text = (CLUSTER / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", text, re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    assert "requeue" in options
    assert options["open-mode"] == "append"  # else a second start overwrites what the first one said
    assert re.fullmatch(r"B:USR1@\d+", options["signal"])


def test_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert {document["apiVersion"] for document in (runtime, job)} == {"trainer.kubeflow.org/v1alpha1"}
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    jobs = runtime["spec"]["template"]["spec"]
    assert jobs["failurePolicy"]["maxRestarts"] > 0
    (node,) = jobs["replicatedJobs"]
    assert node["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (node["name"], container["name"], pod["restartPolicy"]) == ("node", "node", "Never")
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == ["torchrun", "scripts/train.py"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    waits = {variable["name"]: int(variable["value"]) for variable in trainer["env"]}
    assert waits["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] < pod["terminationGracePeriodSeconds"]
    run = trained_with(trainer["args"], monkeypatch)
    assert run["resume"]
    assert run["stopped_exit_code"] not in (0, 1, 2)
    assert run["output"].startswith(mounted["runs"] + "/")


def test_skypilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    assert task["resources"]["use_spot"]
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] > 0
    machine = {"NUM_NODES": "2", "NUM_GPUS_PER_NODE": "8", "NODE_RANK": "1", "NODE_IPS": "10.0.0.1\n10.0.0.2"}
    environment = {f"SKYPILOT_{name}": value for name, value in machine.items()}
    (started,), _ = calls_of(["bash", "-c", task["run"]], tmp_path, {"torchrun": ""}, **environment)
    assert {"--nnodes=2", "--nproc-per-node=8", "--node-rank=1", "--master-addr=10.0.0.1"} <= {*started}
    run = trained_with(after_script(started), monkeypatch)
    assert run["resume"]
    (mounted,) = task["file_mounts"]
    assert run["output"].startswith(mounted + "/")


def test_hf_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command within the command is run too, with stand-ins for what it needs."""
    command = ["bash", str(CLUSTER / "hf_jobs.sh"), *ASKED]
    (call,), _ = calls_of(command, tmp_path, {"hf": ""}, BUCKET="me/runs", ATTEMPTS="3")
    assert call[:3] == ["hf", "jobs", "run"]
    assert call[call.index("--attempts") + 1] == "3"
    assert "hf://buckets/me/runs:/runs" in call
    inner = call[call.index("bash") :]
    inner[2] = inner[2].replace("cp -r /source /project && cd /project", "true")
    (install, started), _ = calls_of(inner, tmp_path, {"pip": "", "torchrun": ""})
    assert install == ["pip", "install", "--quiet", "."]
    run = trained_with(after_script(started), monkeypatch)
    assert (run["recipe"], run["output"], run["resume"]) == ("digits", "runs/a b", True)


def test_the_hf_command_line_takes_the_job(tmp_path: Path) -> None:
    """Its own parser, on a machine without a network: a dry run prints the job."""
    if shutil.which("hf") is None:
        pytest.skip("the hf command is not on PATH")
    command = [str(CLUSTER / "hf_jobs.sh"), *ASKED]
    environment = {**os.environ, "BUCKET": "me/runs", "DRY_RUN": "1", "HF_TOKEN": "hf_none", "NO_COLOR": "1"}
    help_text = subprocess.run(["hf", "jobs", "run", "--help"], capture_output=True, text=True, check=False).stdout
    if "--attempts" not in help_text or "--dry-run" not in help_text:
        pytest.skip("this version of hf has no attempts or no dry run")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "hf://buckets/me/runs:/runs" in done.stdout
