"""Read what lies beside a checkpoint, and what a person gives for it: `config.json` and the classes' names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import CONFIG_NAME
from seresnet_hub.models.config_checks import checked_config, require_network_arguments

# What timm and this project call the weights beside a `config.json`, old and new.
FOLDER_SUFFIXES = (".safetensors", ".bin")
MOST_LABEL_BYTES = 2**24


def config_beside(path: Path) -> dict[str, Any] | None:
    """Return the `config.json` beside a checkpoint, if it is one that timm and this project write.

    Errors: `InputError` where it cannot be read, or a value is not what it must be.
    """
    beside = path.with_name(CONFIG_NAME)
    if path.suffix not in FOLDER_SUFFIXES or not os.path.isfile(beside):
        return None
    config = checked_config(beside)
    if not config.get("architecture"):
        return None
    require_network_arguments(beside, config.get("model_args", {}))
    return config


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names in a text file, one a line. Errors: `InputError` where it is no such file."""
    try:
        if not path.is_file():  # a device never ends
            raise OSError("it is no file")
        with path.open("rb") as file:
            text = file.read(MOST_LABEL_BYTES + 1)
        if len(text) > MOST_LABEL_BYTES:
            raise ValueError(f"it has more than {MOST_LABEL_BYTES:,} bytes")
        lines = text.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the labels {path}: {error}") from error
    names = tuple(line.strip() for line in lines)
    if not names or not all(names):
        raise InputError(f"the labels {path} have an empty line; one class name a line is needed")
    return names
