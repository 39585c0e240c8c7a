"""What a benchmark of engines measures: three networks, each run by torch, or exported and run by another engine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _benchmark_networks import OWN, PLAIN, SE, named_network
from _benchmark_options import ENGINE_FORMATS
from _benchmark_settings import DTYPES
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.transforms import model_transform, normalize
from seresnet_hub.engines.exported_model import load_exported
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError
from seresnet_hub.exporting.export import export
from seresnet_hub.exporting.export_proof import photograph_crops
from seresnet_hub.inference.run_batches import decoded_batches
from seresnet_hub.models.fusion import fuse

TORCH = "torch"
EXPORTED, USUAL = "export", "usual"  # by this package, and as the engine's own documentation says
PRECISIONS = {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8")}  # that are fast on a CPU
PICTURES = 32  # that int8 is calibrated on
BRANCH = 0.2  # scale of the last norm of a block
Run = Callable[[torch.Tensor], object]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One network in one engine: `how` is "eager" or "compiled" of torch, "export" or "usual" of other engines."""

    engine: str
    how: str
    precision: str
    network: str

    def __str__(self) -> str:
        return f"{self.engine} {self.how} {self.precision} {self.network}"


BASE = Contender(engine=TORCH, how="compiled", precision="fp32", network=SE)


def contenders(options: argparse.Namespace, networks: list[str]) -> list[Contender]:
    """Return what the options ask for, in the order of the table."""
    found = [
        Contender(engine=TORCH, how=how, precision=precision, network=network)
        for how in options.mode or ("eager", "compiled") for precision in options.dtype or ("fp32",)
        for network in networks
    ]  # fmt: skip
    for engine in dict.fromkeys(options.peer):
        for precision in dict.fromkeys(options.precision or PRECISIONS[engine]):
            for network in networks:
                hows = {PLAIN: (EXPORTED, USUAL), SE: (USUAL,), OWN: (EXPORTED,)}[network]
                found += [Contender(engine=engine, how=how, precision=precision, network=network) for how in hows]
    return found


class Workshop:
    """Makes what contenders are run by; `folder` keeps exported files, and later runs take them from there."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Make the networks, with random weights and statistics of the pictures that int8 is calibrated on."""
        self._folder, self._names = folder, {PLAIN: options.plain, SE: options.model, OWN: options.model}
        self.source = options.calibrate or str(_photographs(folder / "pictures"))
        self._size = options.size
        named = {name: named_network(name) for name in (options.plain, options.model)}
        self._pictures = list(_prepared(named[options.model], self.source, options.size))
        for network in named.values():
            _like_trained(network, torch.cat(self._pictures))
        self._networks = {network: named[name] for network, name in self._names.items()}

    def run_of(self, contender: Contender) -> Run:
        """Return what takes images `(batch, 3, size, size)`, normalised and in channels_last, through the network.

        Errors: `InputError` where the engine cannot do it in this precision.
        """
        network = self._networks[contender.network]
        if contender.engine == TORCH:
            return self._torch(fuse(network) if contender.network == OWN else network, contender)
        if contender.how == EXPORTED:
            return self._exported(network, contender)
        program = _program(network, self._size)
        run = USUAL_WAYS[contender.engine](program, contender.precision, [one.numpy() for one in self._pictures])
        return lambda images: run(images.contiguous().numpy())

    def _torch(self, network: nn.Module, contender: Contender) -> Run:
        dtype = DTYPES[contender.precision]
        placed = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        call = torch.compile(placed, dynamic=False, fullgraph=True) if contender.how == "compiled" else placed
        return lambda images: call(images.to(dtype))

    def _exported(self, network: nn.Module, contender: Contender) -> Run:
        """Return the model that `predict` runs for the exported file."""
        format, name = ENGINE_FORMATS[contender.engine], self._names[contender.network]
        folder = self._folder / f"{name}-{self._size}-{format}-{contender.precision}"
        try:
            return load_exported(f"{format}:{folder}")
        except InputError:  # it is not there, or was killed before it was whole
            calibrate = self.source if contender.precision == "int8" else None
            export(network, folder, format=format, precision=contender.precision, calibrate=calibrate,
                   input_size=self._size, force=True)  # fmt: skip
            return load_exported(f"{format}:{folder}")


def _photographs(folder: Path) -> Path:
    """Write parts of two photographs in two classes, and return their folder.

    They are like the pictures that an export is compared on: where those of calibration are of another kind, random
    weights give values far outside the ranges that int8 was calibrated on.
    """
    for number, picture in enumerate(photograph_crops(PICTURES)):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder


def _prepared(network: nn.Module, source: str, size: int) -> Iterator[torch.Tensor]:
    """Yield the first pictures of a source one by one, as the network takes them: `(1, 3, size, size)`."""
    _, config = model_transform(network)
    split = open_split(source, "train")
    for batch in decoded_batches(network, split, batch_size=1, stop=min(PICTURES, split.rows)):
        images = normalize(batch.images, mean=config["mean"], std=config["std"])
        yield nn.functional.interpolate(images, size=(size, size)).contiguous()


@torch.no_grad()
def _like_trained(network: nn.Module, images: torch.Tensor) -> None:
    """Make branches small beside the shortcuts and take the norms' statistics from images, as training does.

    Without that, random weights make outputs that int8 cannot hold.
    """
    for module in network.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.constant_(last.weight, BRANCH)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all calls
            module.reset_running_stats()
    network.train()
    network(images)
    network.eval().requires_grad_(False)


def _program(network: nn.Module, size: int) -> Any:
    images = torch.zeros(2, 3, size, size)
    return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _usual_onnxruntime(program: Any, precision: str, pictures: list[np.ndarray]) -> Callable[[np.ndarray], object]:
    """Return the network as torch's exporter and ONNX Runtime's quantiser make it, without anything of this package."""
    import tempfile

    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if precision not in ("fp32", "int8"):
        raise InputError(f"ONNX Runtime does not compute in {precision} on a CPU")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self._rest, None)
            return None if images is None else {"images": images}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        made = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False, input_names=["images"])
        assert made is not None  # without dynamo it is
        made.save(path)
        if precision == "int8":
            quant_pre_process(path, Path(folder, "ready.onnx"))
            path = Path(folder, "int8.onnx")
            quantization.quantize_static(Path(folder, "ready.onnx"), path, Reader(), per_channel=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def _usual_openvino(program: Any, precision: str, pictures: list[np.ndarray]) -> Callable[[np.ndarray], object]:
    """Return the network as OpenVINO's converter and NNCF make it, without anything of this package."""
    openvino, nncf = require_package("openvino"), require_package("nncf")
    model = openvino.convert_model(program)
    if precision == "int8":
        model = nncf.quantize(model, nncf.Dataset(pictures), subset_size=len(pictures))
    elif precision not in ("fp32", "bf16"):
        raise InputError(f"OpenVINO does not compute in {precision} on a CPU")
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda images: compiled(images)[0]


USUAL_WAYS = {"onnxruntime": _usual_onnxruntime, "openvino": _usual_openvino}
