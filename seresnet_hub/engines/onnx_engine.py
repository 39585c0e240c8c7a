"""Run ONNX files with ONNX Runtime on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from seresnet_hub.engines.exported_files import Record, checked_bytes
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError, message_of


class Engine:
    """An open ONNX file; `run` takes the images as the file does, and returns what it makes of them."""

    def __init__(self, session: Any, name: str) -> None:
        """Take a session with one input and one output; `name` is the file's, for messages."""
        self._session, self._name = session, name
        (self._input,), (self._output,) = session.get_inputs(), session.get_outputs()

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the output for a batch. Errors: `InputError` where the runtime does not take it."""
        try:
            (result,) = self._session.run([self._output.name], {self._input.name: np.ascontiguousarray(images)})
        except Exception as error:  # the runtime has classes of its own
            raise InputError(f"{self._name} does not run: {message_of(error)}") from error
        return result


def open_engine(record: Record) -> Engine:
    """Return the export opened by ONNX Runtime, from bytes that are those of the record.

    It takes as many threads as torch does. Errors: `InputError` where the package is missing, a file is not the one
    that the record describes, or the runtime cannot open it.
    """
    runtime = require_package("onnxruntime")
    content = checked_bytes(record)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(next(iter(content.values())), options, providers=["CPUExecutionProvider"])
        return Engine(session, record.name)
    except Exception as error:  # the runtime has classes of its own
        raise InputError(f"ONNX Runtime cannot open {record.name}: {message_of(error)}") from error
