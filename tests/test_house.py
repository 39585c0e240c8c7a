"""The package must stay layered and light: imports run downwards only, and importing it loads no training stack."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest

import seresnet_hub

FLOORS = [
    {
        "blocks", "card_texts", "durability", "environment", "errors", "history", "interruption", "joining",
        "pictures", "plan", "references", "registry", "running_statistics", "sizes", "snippets", "sweeping",
        "timing", "variants", "watcher", "weights",
    },
    {
        "architectures", "backends", "classes", "compiling", "headers", "hub_limits", "limits", "locks", "markdown",
        "opening", "photographs", "reading_budget", "recipe_fields", "retrying", "revision_names", "running",
        "sources", "state_checks", "terminal", "workers",
    },
    {
        "command_line", "folder", "fusion", "hub_transport", "images", "inductor", "pickle_values", "recipes",
        "row_files", "zip_directory",
    },
    {
        "cards", "configs", "conversion_facts", "decoding", "digits", "gpu_tables", "hub_waiting", "kernel_tables",
        "lost_processes", "names", "pickle_machine", "profiling", "pushed_files", "shards", "states", "tables",
        "updates",
    },
    {
        "beside", "contents", "hub_client", "picture_files", "starting", "strict", "torch_files",
    },
    {
        "safetensors_file", "snapshots", "units",
    },
    {
        "checkpoints", "splits",
    },
    {
        "chance", "data", "held_out", "pretrained",
    },
    {
        "device", "models", "repeats",
    },
    {
        "conversion", "evaluation", "loading",
    },
    {
        "finetuning", "hub", "inference", "training_card",
    },
    {
        "mmpretrain", "training",
    },
]  # fmt: skip
# What scripts need before they import anything heavy, and what other programs may read for its figures alone.
FACTS = {
    "errors", "variants", "weights", "recipe_fields", "terminal", "watcher", "recipes", "reading_budget", "card_texts",
    "durability", "sweeping", "locks",
}  # fmt: skip
PACKAGE = Path(seresnet_hub.__file__).parent


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.stem)
def test_imports_run_downwards(path: Path) -> None:
    if path.stem == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("seresnet_hub."):
            room = node.module.removeprefix("seresnet_hub.")
            assert floor_of(room) < floor_of(path.stem), f"{path.stem} (floor {floor_of(path.stem)}) imports {room}"


def test_the_facts_need_only_the_standard_library() -> None:
    for room in FACTS:
        path = PACKAGE / f"{room}.py"
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = (name or "").split(".")[0]
                assert top in sys.stdlib_module_names or top == "seresnet_hub", f"{room} imports {name}"


def test_importing_the_package_loads_no_training_stack() -> None:
    code = (
        "import sys, seresnet_hub; loaded = {'datasets', 'accelerate', 'sklearn', 'pyarrow'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert set(seresnet_hub.__all__) <= set(dir(seresnet_hub))\n"
        "assert callable(seresnet_hub.train) and callable(seresnet_hub.loader)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_editors_see_every_public_name() -> None:
    """A name that is loaded late is declared for type checkers, and `py.typed` tells them to look."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    declared = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seresnet_hub.")
        for alias in node.names
    }
    assert set(seresnet_hub.__all__) - {"__version__"} <= declared
    late = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in (inner for block in late for inner in block.body if isinstance(inner, ast.ImportFrom)):
        for alias in node.names:
            assert seresnet_hub._LATE[alias.name] == node.module
            assert getattr(seresnet_hub, alias.name) is getattr(import_module(node.module or ""), alias.name)
    assert (PACKAGE / "py.typed").is_file()


def test_the_version_is_the_one_that_is_installed() -> None:
    declared = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]["version"]
    try:
        metadata.distribution("seresnet-hub")
    except metadata.PackageNotFoundError:
        declared = "0+unknown"
    assert seresnet_hub.__version__ == declared
