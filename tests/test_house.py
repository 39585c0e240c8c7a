"""The package must stay layered and light: imports run downwards, and importing it loads no training stack."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest

import seresnet_hub

# The wings, from the lowest to the highest: each imports modules of its own and of those below it. The modules that lie
# beside the wings are "", below all of them; `mmpretrain_api` alone is above.
WINGS = [
    "", "files", "recipes", "checkpoints", "hub", "data", "engines", "models", "cards", "conversion", "inference",
    "evaluation", "exporting", "publishing", "training", "commands",
]  # fmt: skip
ABOVE = {"mmpretrain_api"}
# What scripts need before they import anything heavy, and what other programs may read for its figures alone.
FACTS = {
    "errors", "models.variants", "models.published_weights", "models.name_forms", "recipes.field_types",
    "recipes.recipe", "recipes.toml_files",
    "commands.main", "commands.parser", "commands.result_or_error", "commands.terminal",
    "training.process_watcher", "checkpoints.reading_budget", "cards.texts", "files.durability",
    "files.leftovers", "files.locks",
}  # fmt: skip
PACKAGE = Path(seresnet_hub.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def wing_of(module: str) -> int:
    wing, dot, _ = module.partition(".")
    return len(WINGS) if module in ABOVE else WINGS.index(wing if dot else "")


def imported(path: Path) -> list[str]:
    """The package's own modules that a file imports, at its top or later."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import"
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [
                one if (PACKAGE.parent / (one.replace(".", "/") + ".py")).exists() else node.module or ""
                for one in inner
            ]
    return sorted({name.removeprefix("seresnet_hub.") for name in found if name.startswith("seresnet_hub.")})


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    for module in imported(path):
        assert wing_of(module) <= wing_of(module_of(path)), f"{module_of(path)} imports {module}, of a higher wing"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module_of(path): imported(path) for path in MODULES if path.name != "__init__.py"}
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


# What stands before a dot in docstrings without being a module of the package: libraries, objects, tensors, file names.
NO_MODULES = {
    "architecture", "images", "layer1", "layer3", "layer4", "onnx", "openvino", "os", "pickle", "recipe", "se",
    "seresnet101", "timm", "torch", "torchvision",
}  # fmt: skip
FILE_ENDINGS = {"csv", "html", "json", "png", "py", "safetensors"}


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_docstrings_name_functions_that_exist(path: Path) -> None:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    texts = "\n".join(ast.get_docstring(node) or "" for node in nodes)
    for named, name in re.findall(r"`([a-z_][\w.]*)\.(\w+)(?:\(\))?`", texts):
        if named.split(".")[0] not in NO_MODULES and name not in FILE_ENDINGS:
            modules = [f"seresnet_hub.{module_of(one)}".removesuffix(".__init__") for one in MODULES]
            meant = [import_module(module) for module in modules if f".{module}".endswith(f".{named}")]
            assert any(hasattr(module, name) for module in meant), f"there is no {named}.{name}"


@pytest.mark.parametrize("wing", WINGS[1:])
def test_a_wing_holds_modules_and_importing_it_loads_none(wing: str) -> None:
    (docstring,) = ast.parse((PACKAGE / wing / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert [path for path in MODULES if path.parent == PACKAGE / wing and path.name != "__init__.py"]


def test_every_folder_is_a_wing() -> None:
    assert {path.parent.relative_to(PACKAGE).as_posix() for path in MODULES} == {*WINGS[1:], "."}


def test_the_facts_need_only_the_standard_library() -> None:
    for module in FACTS:
        path = PACKAGE / (module.replace(".", "/") + ".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = (name or "").split(".")[0]
                assert top in sys.stdlib_module_names or top == "seresnet_hub", f"{module} imports {name}"


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
            assert seresnet_hub._MODULES.get(alias.name, node.module) == node.module
            assert getattr(seresnet_hub, alias.name) is getattr(import_module(node.module or ""), alias.name)
    assert (PACKAGE / "py.typed").is_file()


def test_the_version_is_the_one_that_is_installed() -> None:
    declared = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]["version"]
    try:
        metadata.distribution("seresnet-hub")
    except metadata.PackageNotFoundError:
        declared = "0+unknown"
    assert seresnet_hub.__version__ == declared
