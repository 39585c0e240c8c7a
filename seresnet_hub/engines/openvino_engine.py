"""Run OpenVINO's files on a CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch

from seresnet_hub.engines.export_facts import SECTION, ExportFacts
from seresnet_hub.engines.exported_files import Record, checked_bytes, require_facts
from seresnet_hub.engines.openvino_batches import Batches
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError, message_of

STARTS = (b"<?xml", b"<net")


class Engine:
    """An open OpenVINO file; `run` takes the images as the file does, and returns what it makes of them."""

    def __init__(self, batches: Batches, name: str) -> None:
        """Take a network that runs; `name` is the file's, for messages."""
        self._batches, self._name = batches, name

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the output for a batch. Errors: `InputError` where the runtime does not take it."""
        try:
            return self._batches.run(images)
        except Exception as error:  # the runtime's are RuntimeErrors of many lines
            raise InputError(f"{self._name} does not run: {message_of(error)}") from error


def engine_settings(precision: str) -> dict[str, Any]:
    """Return OpenVINO's settings for a network in a precision; what is not rounded is computed exactly."""
    hint = "bf16" if precision == "bf16" else "f32"
    return {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}


def core() -> Any:
    """Return the `openvino.Core` of this process, which stays. Errors: `InputError` where the package is missing.

    Each one gives its thread a stack for signals, and takes it back to that of the one before when it goes. Where they
    do not go in the opposite order of their making, that is one which is gone, and the next signal ends the process.
    """
    return _core_of(os.getpid())


@cache
def _core_of(process: int) -> Any:  # none outlives a fork
    return require_package("openvino").Core()


def open_engine(record: Record, content: Mapping[str, bytes] | None = None, *, cut: bool = True) -> Engine:
    """Return the export compiled by OpenVINO for this machine's CPU, from bytes that are those of the record.

    `content` are the bytes by name, where they were read and compared already. It takes as many threads as torch does,
    and computes in bfloat16 where the precision is bf16. Batches are cut into parts as suits a CPU; without `cut` each
    is run whole, as other programs run the file. Errors: `InputError` where the package is missing, a file is
    not the one that the record describes, or the runtime cannot open it.
    """
    openvino_core = core()
    structure, weights = (checked_bytes(record) if content is None else content).values()
    if not structure.startswith(STARTS):  # OpenVINO would take it for another format, whose weights may be in any file
        raise InputError(f"{record.name} is no OpenVINO model: it does not begin as one")
    settings = engine_settings(record.facts.precision)
    try:
        model = openvino_core.read_model(structure, weights)
        (_,), (_,) = model.inputs, model.outputs
        engine = Engine(Batches(openvino_core, model, settings, cut=cut), record.name)
        section = [name for name in ExportFacts.names() if model.has_rt_info([SECTION, name])]
        texts = {name: model.get_rt_info([SECTION, name]).astype(str) for name in section}
    except Exception as error:  # the runtime's are RuntimeErrors of many lines
        raise InputError(f"OpenVINO cannot open {record.name}: {message_of(error)}") from error
    require_facts(record, texts)
    return engine
