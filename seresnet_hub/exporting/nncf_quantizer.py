"""Quantise a network to int8 by NNCF, whichever of its formats it is in: quietly, and twice to the same bytes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tqdm import tqdm

from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError, message_of


class _Batches:
    """Batches for NNCF, which show their progress where they are read through."""

    def __init__(self, name: str, inputs: Sequence[np.ndarray]) -> None:
        self._name, self._inputs = name, inputs

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for batch in tqdm(self._inputs, desc="calibrating", leave=False, delay=1.0):
            yield {self._name: batch}


def quantized_by_nncf(model: Any, name: str, inputs: Sequence[np.ndarray], ignored: Collection[str]) -> Any:
    """Return NNCF's int8 network, with weights symmetric per channel, activations per tensor, and corrected biases.

    `name` is that of the model's input, `inputs` are batches for it, of one picture each. `ignored` names nodes that
    stay in float. Errors: `InputError` where NNCF is not installed, or cannot do it.
    """
    nncf = require_package("nncf", "openvino" if type(model).__module__.startswith("openvino") else "onnx")
    with quiet(nncf):
        try:
            # What lies between the least and the greatest value seen, without a cut: NNCF's own choice cuts a small
            # share, which made the error of a trained network's logits three times as large.
            whole = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
            advanced = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=whole)
            return nncf.quantize(
                model, nncf.Dataset(_Batches(name, inputs)), preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(inputs), ignored_scope=nncf.IgnoredScope(names=sorted(ignored), validate=False),
                advanced_parameters=advanced,
            )  # fmt: skip
        except Exception as error:  # whatever NNCF and the runtime under it make of the network
            raise InputError(f"NNCF cannot quantise this network to int8: {message_of(error)}") from error


@contextmanager
def quiet(nncf: Any) -> Iterator[None]:
    """Keep NNCF's log and its progress bars off standard output, where a command's result belongs."""
    import rich

    console, log = rich.get_console(), logging.getLogger("nncf")
    before = console.quiet, log.level
    console.quiet = True
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        console.quiet = before[0]
        log.setLevel(before[1])
