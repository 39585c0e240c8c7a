"""Run batches of any size in OpenVINO by networks compiled for few images each, as a CPU runs them fastest.

A network compiled for a batch of unknown size runs the SE units slower than one compiled for its size. And in a large
batch the wide map that a gate scales is pushed out of the cache before it is scaled; so a large batch is cut into
parts, and every core works on a part of its own, while few images are run one by one, by all cores together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

PART = 2  # images that a core works on at a time


class Batches:
    """A network in OpenVINO that takes batches of any size, or of the one size that it was exported for.

    What one image alone and the parts of large batches are run by is compiled separately, the latter when it is needed
    first; each holds the weights in its own layout.
    """

    def __init__(self, core: Any, model: Any, settings: Mapping[str, Any], *, cut: bool = True) -> None:
        """Take an `openvino.Core`, a model, and its settings: precision, and INFERENCE_NUM_THREADS.

        Without `cut`, each batch is run whole. Errors: the runtime's.
        """
        self._core, self._model, self._settings = core, model, {**settings, "PERFORMANCE_HINT": "LATENCY"}
        self._threads: int = settings["INFERENCE_NUM_THREADS"]
        batch, *size = model.inputs[0].get_partial_shape()
        self._cuts = cut and batch.is_dynamic and all(side.is_static for side in size)
        self._whole = self._compiled(1 if self._cuts else None).create_infer_request()
        self._streams: list[Any] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the output for a batch of at least one image. Errors: the runtime's."""
        images = np.ascontiguousarray(images)
        if not self._cuts:
            return self._infer(images)
        count = len(images) // PART if len(images) >= PART * self._threads else 0
        outputs = self._in_streams([images[PART * part :][:PART] for part in range(count)])
        outputs += [self._infer(images[row : row + 1]) for row in range(PART * count, len(images))]
        return np.concatenate(outputs)

    def _infer(self, images: np.ndarray) -> np.ndarray:
        return self._whole.infer([images], share_inputs=True)[0].copy()

    def _in_streams(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        if parts and not self._streams:
            settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": self._threads}
            compiled = self._compiled(PART, **settings)
            self._streams = [compiled.create_infer_request() for _ in range(self._threads)]
        outputs = []
        for start in range(0, len(parts), len(self._streams) or 1):
            running = list(zip(self._streams, parts[start:], strict=False))
            for request, part in running:
                request.start_async([part], share_inputs=True)
            for request, _ in running:
                request.wait()
            outputs += [request.get_output_tensor().data.copy() for request, _ in running]
        return outputs

    def _compiled(self, batch: int | None, **settings: Any) -> Any:
        model = self._model
        if batch is not None:
            model = model.clone()
            _, *size = model.inputs[0].get_partial_shape()
            model.reshape([batch, *(side.get_length() for side in size)])
        return self._core.compile_model(model, "CPU", {**self._settings, **settings})
