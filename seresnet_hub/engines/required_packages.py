"""Import the packages of the extras, or say in one line what to install."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from seresnet_hub.engines.no_telemetry import leave_out_telemetry
from seresnet_hub.errors import InputError

# The extra of each package; `pyproject.toml` says which versions it takes.
EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino", "nncf": "openvino"}


def require_package(name: str, extra: str | None = None) -> Any:
    """Return the module of this name. Errors: `InputError` says which extra of this package to install.

    `extra` is the one to name where several have the package.
    """
    leave_out_telemetry()
    try:
        return import_module(name)
    except ImportError as error:
        install = f"pip install 'seresnet-hub[{extra or EXTRAS[name]}]'"
        raise InputError(f"this needs the package {name}: {install}") from error
