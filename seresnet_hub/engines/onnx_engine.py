"""Run ONNX files with ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch

from seresnet_hub.engines.exported_files import Record, checked_bytes, require_facts
from seresnet_hub.engines.onnx_contents import onnx_metadata
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError, message_of

ERRORS = 3  # the runtime's number of the messages that are written


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


def session_of(model: bytes) -> Any:
    """Return ONNX Runtime's session for a serialised network. Errors: the runtime's."""
    runtime = require_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = ERRORS
    # Threads that wait for work would otherwise take the time of those that decode pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_engine(record: Record, content: Mapping[str, bytes] | None = None) -> Engine:
    """Return the export opened by ONNX Runtime, from bytes that are those of the record; it reads no other file.

    `content` are the bytes by name, where they were read and compared already. It takes as many threads as torch does.
    Errors: `InputError` where the package is missing, a file is not the one that the record describes, or the runtime
    cannot open it.
    """
    require_package("onnxruntime")
    (model,) = (checked_bytes(record) if content is None else content).values()
    try:
        onnx_metadata(BytesIO(model))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{record.name} is no whole ONNX file: {error or type(error).__name__}") from error
    try:
        session = session_of(model)
        engine = Engine(session, record.name)
    except Exception as error:  # the runtime has classes of its own
        raise InputError(f"ONNX Runtime cannot open {record.name}: {message_of(error)}") from error
    require_facts(record, session.get_modelmeta().custom_metadata_map)
    return engine
