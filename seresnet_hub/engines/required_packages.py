"""Import the packages of the extras, or say in one line what to install."""

from __future__ import annotations

import re
from importlib import import_module, metadata
from typing import Any

from seresnet_hub.engines.no_telemetry import leave_out_telemetry
from seresnet_hub.errors import InputError, message_of

# The extra of each package, and the oldest version that is taken, as `pyproject.toml` has them.
EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino", "nncf": "openvino"}
OLDEST = {"onnx": "1.17", "onnxscript": "0.5", "onnxruntime": "1.22", "openvino": "2025.2", "nncf": "2.18"}


def require_package(name: str, extra: str | None = None) -> Any:
    """Return the module of this name. Errors: `InputError` says which extra of this package to install.

    That is where it is missing, cannot be imported, or is too old. `extra` is the one to name where several have the
    package.
    """
    leave_out_telemetry()
    install = f"pip install --upgrade 'seresnet-hub[{extra or EXTRAS[name]}]'"
    version = _installed(name)
    # Before the import, which may fail in an old version.
    _require_recent(name, version, install)
    try:
        module = import_module(name)
    except ImportError as error:
        if version is None:
            raise InputError(f"this needs the package {name}: {install.replace('--upgrade ', '')}") from error
        raise InputError(f"{name} {version} cannot be imported: {message_of(error)}; {install}") from error
    if version is None:  # another distribution has the module, such as onnxruntime-gpu
        _require_recent(name, getattr(module, "__version__", None), install)
    return module


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _require_recent(name: str, version: str | None, install: str) -> None:
    if version is not None and _numbers(version) < _numbers(OLDEST[name]):
        raise InputError(f"this needs {name} {OLDEST[name]} or later, and {version} is installed: {install}")


def _numbers(version: str) -> list[int]:
    """Return the numbers that a version begins with: `[2025, 2]` of "2025.2.0-19140-c01cd93e24d"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in found[0].split(".")] if found else []
