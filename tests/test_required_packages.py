"""A package of an extra that is missing, broken or too old must be named in one line, with what installs it."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from seresnet_hub.engines import required_packages
from seresnet_hub.engines.required_packages import EXTRAS, OLDEST, require_package
from seresnet_hub.errors import InputError


def test_the_oldest_versions_are_those_that_are_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for extra in ("onnx", "openvino"):
        wanted = dict(one.split(">=") for one in project["optional-dependencies"][extra])
        assert wanted == {name: OLDEST[name] for name in wanted}
        assert {name for name, of in EXTRAS.items() if of == extra} <= set(wanted)
    assert set(EXTRAS) == set(OLDEST)


def answering(monkeypatch: pytest.MonkeyPatch, installed: str | None, imported: ModuleType | Exception) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    def import_module(name: str) -> ModuleType:
        if isinstance(imported, Exception):
            raise imported
        return imported

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(required_packages, "import_module", import_module)


def module(version: str) -> ModuleType:
    made = ModuleType("made")
    made.__dict__["__version__"] = version
    return made


UNUSABLE = [
    ("onnxruntime", "1.9.3", ImportError(), "this needs onnxruntime 1.22 or later, and 1.9.3 is installed: "
     "pip install --upgrade 'seresnet-hub[onnx]'"),
    ("openvino", "2025.1.0", module("2025.1"), "this needs openvino 2025.2 or later, and 2025.1.0 is installed: "
     "pip install --upgrade 'seresnet-hub[openvino]'"),
    ("onnxruntime", None, module("1.21.1"), "this needs onnxruntime 1.22 or later, and 1.21.1 is installed: "
     "pip install --upgrade 'seresnet-hub[onnx]'"),
    ("nncf", None, ImportError(), "this needs the package nncf: pip install 'seresnet-hub[openvino]'"),
    ("onnx", "1.19", ImportError("no\nlibx"), "onnx 1.19 cannot be imported: no libx; "
     "pip install --upgrade 'seresnet-hub[onnx]'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "installed", "imported", "message"), UNUSABLE)
def test_what_cannot_be_used_is_said_in_one_line(
    name: str, installed: str | None, imported: ModuleType | Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, installed, imported)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        require_package(name)


@pytest.mark.parametrize(
    ("name", "version"),
    [("onnxruntime", "1.22.0"), ("openvino", "2025.2.0-19140-c01cd93e24d"), ("onnx", "1.100rc1"), ("nncf", "3")],
)
def test_recent_versions_are_taken(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (version, None):
        answering(monkeypatch, installed, module(version))
        assert require_package(name).__version__ == version
