"""`seresnet-hub` and the scripts must answer --help at once and Ctrl-C in one line, and run under launchers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from warm_python import run_python

from seresnet_hub.commands.main import COMMANDS
from seresnet_hub.environment import version

SCRIPTS = Path(__file__).parents[1] / "scripts"
# Run a file or a module as the interpreter does, then look at what it loaded.
LOADED = """
import atexit, sys
@atexit.register
def look():
    print("loaded:", *sorted({"torch", "timm", "numpy", "datasets"} & set(sys.modules)), file=sys.stderr)
"""
CLONE = sorted(str(path) for path in [*SCRIPTS.glob("[!_]*.py"), SCRIPTS / "gpu" / "collect.py"])
COMMAND = "import sys; from seresnet_hub_command import main; sys.exit(main())"  # what pip makes of [project.scripts]
MODULE = ["-m", "seresnet_hub"]


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which each process says at its end which heavy packages it loaded."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "usercustomize.py").write_text(LOADED)
    (folder / "sitecustomize.py").write_text(LOADED)
    path = os.pathsep.join([str(folder), str(SCRIPTS.parent)])
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "80"}


def ended(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        *([path] for path in CLONE),
        *([*start, name] for start in (["-c", COMMAND], MODULE) for name in COMMANDS),
    ],
    ids=lambda words: " ".join(words[-2:])[-30:],
)
def test_help_loads_nothing_heavy(looking: dict[str, str], words: list[str]) -> None:
    done = ended(looking, *words, "--help")
    assert (done.returncode, done.stderr) == (0, "loaded:\n")
    assert "--json" in done.stdout
    if words[0] not in CLONE:
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 40
        assert lines[-2] == "example:"
        assert lines[-1].startswith(f"  seresnet-hub {words[-1]} ")


@pytest.mark.parametrize("words", [["-c", COMMAND], MODULE], ids=["command", "module"])
def test_the_commands_are_listed_and_a_wrong_name_is_one_line(looking: dict[str, str], words: list[str]) -> None:
    done = ended(looking, *words, "--help")
    assert (done.returncode, done.stderr) == (0, "loaded:\n")
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == [*COMMANDS]
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    done = ended(looking, *words, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"seresnet-hub {version()}\n", "loaded:\n")
    done = ended(looking, *words, "trian", "--recipe", "digits")
    assert (done.returncode, done.stdout) == (2, "")
    first, loaded = done.stderr.splitlines()
    assert first.startswith("seresnet-hub: error: there is no command 'trian'; did you mean 'train'?")
    assert loaded == "loaded:"
    assert "name a command" in ended(looking, *words).stderr


@pytest.mark.parametrize("words", [[str(SCRIPTS / "train.py")], ["-c", COMMAND, "train"], [*MODULE, "train"]])
def test_a_wrong_option_is_told_before_anything_is_loaded(looking: dict[str, str], words: list[str]) -> None:
    done = ended(looking, *words, "--recipes")
    assert done.returncode == 2
    assert "unrecognized arguments: --recipes" in done.stderr
    assert done.stderr.endswith("loaded:\n")


def test_a_command_registers_the_models_and_an_import_of_the_package_does_too(looking: dict[str, str]) -> None:
    """Protects users from a package that waits: only a command's own start puts the registration off."""
    code = "import timm, seresnet_hub; assert timm.is_model('seresnet20_cifar')"
    assert run_python([sys.executable, "-c", code], env=looking).returncode == 0
    done = run_python([sys.executable, *MODULE, "verify", "seresnet20_cifar"], env=looking)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'seresnet20_cifar' has no files to verify" in done.stderr


# Ctrl-C arrives when the module is looked for that the environment names.
INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == os.environ["INTERRUPTED_AT"]:
            os.kill(0, signal.SIGINT)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(
    ("words", "module"),
    [
        ([str(SCRIPTS / "train.py"), "--output", "run"], "seresnet_hub"),
        (["-c", COMMAND, "validate", "resnet18", "--data", "digits"], "torch._C"),
        ([*MODULE, "predict", "resnet18", "x.png"], "torch"),
        ([*MODULE, "predict", "resnet18", "x.png"], "timm.models"),
    ],
    ids=["script", "command", "module", "module, later"],
)
def test_ctrl_c_during_the_imports_is_one_line(words: list[str], module: str, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    for name in ("usercustomize", "sitecustomize"):
        (tmp_path / "site" / f"{name}.py").write_text(INTERRUPTED)
    path = os.pathsep.join([str(tmp_path / "site"), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "work").mkdir()
    with subprocess.Popen(
        [sys.executable, *words], cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": path, "INTERRUPTED_AT": module},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"interrupted\n")
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers_start_the_module_in_two_processes(launcher: list[str], tmp_path: Path) -> None:
    path = os.pathsep.join([str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
    words = ["train", "--max-steps", "3", "--set", "input_size=8", "workers=0", "--output", "run"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *MODULE, *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes on" in done.stderr
    (line,) = done.stdout.splitlines()
    assert (json.loads(line)["steps"], json.loads(line)["seen"]) == (3, 192)
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [("predict", None, "passive"), ("validate", "active", "active"), ("train", None, None)],
)
def test_threads_that_wait_leave_the_cpu_to_loader_workers(
    command: str, given: str | None, expected: str | None
) -> None:
    code = (
        "import os, seresnet_hub_command\n"
        f"try: seresnet_hub_command.main([{command!r}, '--help'])\n"
        "except SystemExit: print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = run_python([sys.executable, "-c", code], env=env | ({"OMP_WAIT_POLICY": given} if given else {}))
    assert done.stdout.splitlines()[-1] == str(expected), done.stderr
