"""Trace a network with torch.export: the graph that every format is made of, and which layer each of its nodes is."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn

from seresnet_hub.errors import InputError, message_of
from seresnet_hub.exporting.preprocessing import Preparation

IMAGES, LOGITS = "pixel_values", "logits"  # so the Hub's libraries call them, and the arguments below
PICTURES, PROBABILITIES = "pictures", "probabilities"  # with the preprocessing inside
NETWORK = "network"  # where the network sits in what is traced
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What torch's exporters tell of their own work, at the levels of warnings and errors.
LOGGERS = ("torch.export", "torch._export", "torch._dynamo", "torch.onnx", "torch.fx", "onnxscript", "onnx_ir")


class MeanPool(nn.Module):
    """The mean of a map; timm's own pooling flattens, which takes an exporter the shapes of batches to write."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the mean of `(batch, channels, height, width)`: `(batch, channels)`."""
        return features.mean((2, 3))


class NetworkOfImages(nn.Module):
    """What is traced: float32 images to float32 logits, computed in the precision of the network's weights."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits `(batch, classes)` for normalised images `(batch, channels, height, width)`."""
        return _in_type(self.network, pixel_values, self.dtype)


class NetworkOfPictures(nn.Module):
    """What is traced with the preprocessing inside: uint8 RGB pictures to probabilities."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, preparation: Preparation) -> None:
        super().__init__()
        self.network, self.dtype, self.preparation = network, dtype, preparation

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return probabilities `(batch, classes)` for uint8 pictures `(batch, height, width, 3)` of any size."""
        return _in_type(self.network, self.preparation(pictures), self.dtype).softmax(1)


def _in_type(network: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    logits: torch.Tensor = network(images if dtype == torch.float32 else images.to(dtype))
    return logits if dtype == torch.float32 else logits.float()


def traced(
    model: nn.Module,
    *,
    batch: int | None,
    size: tuple[int, int],
    dynamic_size: bool = False,
    preprocessing: Preparation | None = None,
    precision: str = "fp32",
) -> torch.export.ExportedProgram:
    """Return the graph of a network in eval mode; `model` is not changed.

    It takes `pixel_values` `(batch, channels, height, width)`, normalised float32, and gives `logits`; with
    `preprocessing` it takes `pictures` `(batch, height, width, 3)`, uint8 RGB of any size, and gives `probabilities`.
    `batch` is None where any number will do. `size` is (height, width); with `dynamic_size` others will do as well. In
    `precision` fp16 and bf16 the weights are stored and computed with in that type. Errors:
    `InputError` where torch.export cannot trace the network, or a dimension that should be free is not.
    """
    if hasattr(model, "_orig_mod"):
        raise InputError("the model is compiled: export the one it was made of")
    dtype = DTYPES[precision]
    network: Any = _with_mean_pools(copy.deepcopy(model).cpu().to(dtype).requires_grad_(False).eval())
    if hasattr(network, "grad_checkpointing"):
        network.grad_checkpointing = False
    count = batch or 2  # torch.export takes an example of one for a batch that is always one
    shape: dict[int, Any] = {} if batch else {0: torch.export.Dim("batch")}
    if preprocessing is None:
        first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
        example = torch.zeros(count, first.in_channels if first is not None else 3, *size)
        whole: nn.Module = NetworkOfImages(network, dtype)
        if dynamic_size:
            shape |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    else:
        # Of two sides that differ from each other and from the network's, so that none is taken for another.
        example = torch.zeros(count, size[0] * 2 + 3, size[1] * 3 + 1, 3, dtype=torch.uint8)
        whole = NetworkOfPictures(network, dtype, preprocessing)
        shape |= {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(whole.eval(), (example,), dynamic_shapes=(shape,), strict=False)
    except Exception as error:  # whatever the network's own code, and torch's, make of it
        raise InputError(f"torch.export cannot trace {type(model).__name__}: {message_of(error)}") from error


def layer_names(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Return the module of the network that each node of the graph was made by: {"conv2d_5": "layer1.0.conv3"}."""
    names = {}
    for node in program.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if node.op == "call_function" and stack:
            path = str(stack[-1][0])
            if path == NETWORK or path.startswith(f"{NETWORK}."):
                names[node.name] = path.removeprefix(NETWORK).removeprefix(".")
    return names


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves for a while what torch's exporters tell their developers."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _with_mean_pools(network: nn.Module) -> nn.Module:
    """Return the network with means in place of timm's pools that flatten."""
    for name, pool in list(network.named_modules()):
        flat = isinstance(pool, SelectAdaptivePool2d) and isinstance(pool.flatten, nn.Flatten)
        if flat and isinstance(pool.pool, nn.AdaptiveAvgPool2d) and pool.pool.output_size in (1, (1, 1)):
            network.set_submodule(name, MeanPool())
    return network
