"""Run OpenVINO's files on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from seresnet_hub.engines.exported_files import Record, checked_bytes
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError, message_of


class Engine:
    """An open OpenVINO file; `run` takes the images as the file does, and returns what it makes of them."""

    def __init__(self, compiled: Any, name: str) -> None:
        """Take a compiled model with one input and one output; `name` is the file's, for messages."""
        self._compiled, self._name = compiled, name

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the output for a batch. Errors: `InputError` where the runtime does not take it."""
        try:
            return self._compiled(np.ascontiguousarray(images))[0].copy()
        except Exception as error:  # the runtime's are RuntimeErrors of many lines
            raise InputError(f"{self._name} does not run: {message_of(error)}") from error


def open_engine(record: Record) -> Engine:
    """Return the export compiled by OpenVINO for this machine's CPU, from bytes that are those of the record.

    It takes as many threads as torch does, and computes in bfloat16 where the precision is bf16. Errors: `InputError`
    where the package is missing, a file is not the one that the record describes, or the runtime cannot open it.
    """
    openvino = require_package("openvino")
    content = checked_bytes(record)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if record.facts.precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        core = openvino.Core()
        structure, weights = content.values()
        compiled = core.compile_model(core.read_model(structure, weights), "CPU", settings)
        return Engine(compiled, record.name)
    except Exception as error:  # the runtime's are RuntimeErrors of many lines
        raise InputError(f"OpenVINO cannot open {record.name}: {message_of(error)}") from error
