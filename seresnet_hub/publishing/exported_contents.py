"""Read what an exported file says of itself, without its runtime and without its weights in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from seresnet_hub.engines.export_facts import SECTION
from seresnet_hub.engines.onnx_contents import onnx_metadata
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import errors_named


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file, or of the `.xml` of an OpenVINO model, by name.

    Errors: `InputError` where the file is something else, or an ONNX file that has tensors in other files.
    """
    read: Callable[[BinaryIO], dict[str, str]] = _of_openvino if path.suffix == ".xml" else onnx_metadata
    try:
        with errors_named(path, "read"), path.open("rb") as file:
            return read(file)
    except (ValueError, ElementTree.ParseError, RecursionError) as error:
        kind = "OpenVINO model" if path.suffix == ".xml" else "ONNX file"
        raise InputError(f"{path} is no whole {kind}: {error or type(error).__name__}") from error


def _of_openvino(file: BinaryIO) -> dict[str, str]:
    """Return the values that lie in the section of `rt_info`, as OpenVINO writes them."""
    root = ElementTree.parse(file).getroot()
    if root.tag != "net" or root.find("layers") is None:
        raise ValueError("it has no layers")
    return {entry.tag: entry.get("value", "") for entry in root.findall(f"rt_info/{SECTION}/*")}
