"""The GPU kit must call the scripts rightly, run whole where the GPU machine's versions are, and end in time."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WriteSplit, encode
from PIL import Image

from seresnet_hub.commands.main import COMMANDS
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.inductor import options_of
from seresnet_hub.recipes.recipe import get_recipe, override
from seresnet_hub.training.profiling import require_profile

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "gpu"
sys.path.insert(0, str(FOLDER))

import _kit  # noqa: E402
import collect  # noqa: E402
import parts  # noqa: E402


class Finished:
    """A command that was not run, and went well."""

    seconds, result, returncode = 0.1, {"top1": 1.0}, 0

    def __init__(self) -> None:
        self.process = self

    def poll(self) -> int:
        return 0

    def wait(self, seconds: float = 0, grace: float = 0) -> int:
        return 0

    def kill(self) -> None:
        pass


class Recorder(_kit.Kit):
    """A kit that keeps commands instead of running them; a run's folder is there afterwards."""

    def begin(self, command: list[str]) -> Any:
        self.commands = [*getattr(self, "commands", []), command]
        if "--output" in command:
            output = Path(command[command.index("--output") + 1])
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.json").write_text("{}")
        return Finished()


def a_kit(kind: Any, folder: Path, *, limit: float = 530, small: bool = False) -> Any:
    for name in ("out", "work", "data/imagenet"):
        (folder / name).mkdir(parents=True)
    (folder / "data/imagenet/one.parquet").write_bytes(b"")
    return kind(folder / "out", folder / "work", folder / "data", start=time.time(), limit=limit, small=small)


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def running(mark: str) -> list[int]:
    """The processes that have something in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
def test_every_command_is_one_that_its_script_takes(
    small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    kit = a_kit(Recorder, tmp_path, small=small)
    parts.run_parts(kit, parts.NAMES)
    assert not [line for line in results(kit.out) if line.get("failed") or line.get("skipped")]
    called = set()
    for command in kit.commands:
        words = command[command.index(sys.executable) + 1 :]
        if words[:2] == ["-m", "pytest"]:
            files = [word for word in words if word.endswith(".py")]
            assert "tests/test_gpu.py" in files
            continue
        script = Path(words[0])
        assert (ROOT / script).is_file()
        if script.name == "ceilings.py":
            continue
        module = f"seresnet_hub.commands.{script.stem}" if script.stem in COMMANDS else script.stem
        options = import_module(module).parser().parse_args(words[1:])
        called.add(getattr(options, "benchmark", script.stem))
        if script.stem == "train":
            recipe = override(get_recipe(options.recipe), [word for group in options.set for word in group])
            assert recipe.compile
            if options.profile:
                require_profile(Path(options.profile), options.max_steps)
        if script.stem == "benchmark":
            options_of(options.inductor)
    assert called == {"training", "inference", "train", "validate", "predict"}


def test_scripts_are_whole() -> None:
    for script in FOLDER.glob("*.sh"):
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0, script
    for script in FOLDER.glob("*.py"):
        ast.parse(script.read_text(encoding="utf-8"))
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in parts.NAMES)


def test_nothing_of_a_command_outlives_its_time(tmp_path: Path) -> None:
    """Neither what ignores a signal nor what has left its process group."""
    kit = a_kit(_kit.Kit, tmp_path)
    kit.run(
        "late", 1, ["bash", "-c", "setsid sleep 300 & trap '' TERM; echo '{\"known\": 1}'; while :; do sleep 0.1; done"]
    )
    (line,) = results(kit.out)
    assert (line["rc"], line["result"]) == (124, {"known": 1})
    assert 1 < line["seconds"] < 30
    kit.run("leaves something", 30, ["bash", "-c", "setsid sleep 300 & exit 3"])
    assert results(kit.out)[1]["rc"] == 3
    assert not running(f"{_kit.MARK}={kit.work}")


def test_a_failing_part_does_not_touch_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kit: Any) -> None:
        raise RuntimeError("no such kernel")

    def sound(kit: Any) -> None:
        kit.run("sound", 30, [sys.executable, "-c", "print(1); print('{\"a\": 2}')"])
        kit.run("talks", 30, ["printf", "%s\n", '{"a": 2}', "= 1 passed ="])

    monkeypatch.setattr(parts, "GROUPS", ((broken,), (sound,)))
    kit = a_kit(_kit.Kit, tmp_path)
    parts.run_parts(kit, ["broken", "sound"])
    first, second, third = results(kit.out)
    assert first["failed"] == "RuntimeError: no such kernel"
    assert (second["rc"], second["result"]) == (0, {"a": 2})
    assert third["result"] == ['{"a": 2}', "= 1 passed ="]


HANGS = """
import sys, time
sys.path.insert(0, {folder!r})
import parts

def measured(kit):
    kit.record("measured", value=1)

def hangs(kit):
    kit.begin(["bash", "-c", "setsid sleep 300 & sleep 300"])
    time.sleep(300)

parts.GROUPS, parts.NAMES, parts.LEAST = ((measured,), (hangs,)), ("measured", "hangs"), 0
parts.main()
"""


@pytest.mark.parametrize("signalled", [False, True], ids=["at its limit", "by a signal"])
def test_the_whole_ends_with_its_results_kept(signalled: bool, tmp_path: Path) -> None:
    options = ["--limit", "60" if signalled else "4", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    started = time.time()
    code = HANGS.format(folder=str(FOLDER))
    kit = subprocess.Popen([sys.executable, "-c", code, *options], start_new_session=True)
    mark = f"{_kit.MARK}={tmp_path / 'work'}"
    if signalled:
        while len(running(mark)) < 2:
            time.sleep(0.05)
        kit.send_signal(signal.SIGTERM)
    assert kit.wait(30) == 0
    assert time.time() - started < 20
    assert not running(mark)
    assert [line["part"] for line in results(tmp_path)] == ["kit", "measured", "stopped"]


def test_nothing_is_measured_where_packages_are_missing(tmp_path: Path) -> None:
    """At once, so that the machine's time is left for another try."""
    for name in ("scripts", ".device", "site"):
        (tmp_path / name).mkdir()
    shutil.copytree(FOLDER, tmp_path / "scripts" / "gpu")
    with tarfile.open(tmp_path / ".device" / "site.tar.xz", "w:xz") as archive:
        (tmp_path / "site" / "datasets.py").write_text("raise ImportError('damaged')")
        archive.add(tmp_path / "site" / "datasets.py", "datasets.py")
    there = {**os.environ, "OUT": str(tmp_path / "out"), "KIT_WORK": str(tmp_path / "work")}
    there["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "scripts/gpu/on_device.sh", "60"]
    for says in ("cannot import datasets", "cannot unpack"):
        done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert says in done.stdout
        (tmp_path / ".device" / "site.tar.xz").unlink(missing_ok=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log.txt"]


def test_tuning_beside_other_work_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ab").mkdir()
    for name in ("kernel.py", "kernel.best_config"):
        (tmp_path / "ab" / name).write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    parts.forget_tuning()
    assert [path.name for path in (tmp_path / "ab").iterdir()] == ["kernel.py"]


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "parts.py"), "--work", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "KIT_PARTS": "env,evn"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "KIT_PARTS names evn" in done.stderr


# --- the dry run ------------------------------------------------------------------------------------------------------


def pictures(count: int, size: int, format: str) -> list[bytes]:
    random = np.random.default_rng(0)
    return [encode(Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)), format) for _ in range(count)]


@pytest.fixture
def travelled(write_split: WriteSplit, tmp_path: Path) -> Path:
    """The tracked files in a folder of their own, prepared as for another machine, with tiny data sets."""
    (tmp_path / "data").mkdir()
    write_split([[40], [40]], folder="data/cifar10", images=pictures(80, 32, "PNG"))
    write_split([[30]], folder="data/cifar10", split="test", images=pictures(30, 32, "PNG"))
    write_split([[40]], folder="data/imagenet-sample", images=pictures(40, 80, "JPEG"), classes=1000)
    target = tmp_path / "travelled"
    target.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone: there is no list of tracked files")
    for name in filter(None, listed.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    for name in ("site.tar.xz", "packages"):  # packed before: nothing has to be fetched
        if (ROOT / ".device" / name).exists():
            (target / ".device").mkdir(exist_ok=True)
            shutil.copy(ROOT / ".device" / name, target / ".device" / name)
    subprocess.run("git init -q && git add -A", shell=True, cwd=target, check=True)
    prepared = subprocess.run(
        ["bash", "scripts/gpu/prepare.sh", str(tmp_path / "data")], cwd=target, capture_output=True, text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}, check=False,
    )  # fmt: skip
    if "No matching distribution" in prepared.stderr or "connection" in prepared.stderr.lower():
        pytest.skip("the packages can be neither found packed in .device nor fetched")
    assert prepared.returncode == 0, prepared.stderr
    assert "travels: " in prepared.stdout
    return target


@pytest.fixture
def there(travelled: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that has nothing of this one but an interpreter with the GPU machine's versions."""
    python = os.environ.get("GPU_MACHINE_PYTHON")
    if not python:
        pytest.skip("GPU_MACHINE_PYTHON does not name an interpreter with the versions of the GPU machine")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home"), "KIT_SMALL": "1",
        "OMP_NUM_THREADS": "1", "KIT_WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out"),
    }  # fmt: skip


def run_there(travelled: Path, there: dict[str, str], *, seconds: int) -> None:
    command = ["bash", "scripts/gpu/on_device.sh", str(seconds)]
    done = subprocess.run(command, cwd=travelled, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_every_part_runs_where_the_machines_versions_are(
    travelled: Path, there: dict[str, str], tmp_path: Path
) -> None:
    run_there(travelled, there, seconds=6000)
    lines = [line for line in results(tmp_path / "out") if "part" in line]
    failed = [line for line in lines if line.get("rc", 0) or line.get("failed") or line.get("skipped")]
    assert not failed, json.dumps(failed, indent=1)[:5000]
    known = {line["part"].removeprefix("cifar_").split("_")[0] for line in lines} - {"kit"}
    assert known == {*(name.split("_")[0] for name in parts.NAMES), "seresnet20", "resnet20"} - {"cifar"}
    assert {line["same_bits"] for line in lines if line["part"] == "smoke_deterministic"} == {True}
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as archive:
        assert "seresnet20_cifar/model.safetensors" in archive.getnames()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.jsonl", "log.txt", "profile.json", "runs.tar.gz"
    }  # fmt: skip
    assert not running(str(tmp_path / "work"))
    with pytest.raises(InputError, match="tiny sizes"):
        collect.main([str(tmp_path / "out"), "--output", str(tmp_path)])


@pytest.mark.slow
def test_the_whole_ends_at_its_limit(travelled: Path, there: dict[str, str], tmp_path: Path) -> None:
    there["KIT_PARTS"] = "env,smoke,training"
    begun = time.time()
    run_there(travelled, there, seconds=60)
    assert time.time() - begun < 66
    lines = results(tmp_path / "out")
    assert next(line for line in lines if line.get("part") == "env")["rc"] == 0
    assert any(line.get("rc") == 124 or line.get("skipped") or line.get("part") == "stopped" for line in lines)
    assert not running(str(tmp_path / "work"))
