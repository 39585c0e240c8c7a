"""Compile a model for inference: with Inductor's settings that suit it, and once for all batches of a data set."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from seresnet_hub.engines.exported_model import require_network
from seresnet_hub.errors import InputError

Settings = Literal["default", "epilogue"]

_FROZEN = {
    # Weights become constants, so Inductor folds norms into convolutions, casts weights once, and lays them out as the
    # kernels want them.
    "freezing": True,
}
_GRAPHED = {
    **_FROZEN,
    # A network is some hundred kernels: one by one, at small batch sizes, launching them takes longer than they run.
    "triton.cudagraphs": True,
}
# Inductor's settings by name and type of device. "epilogue": gate, sum and activation become the last steps of the
# matrix product that a block's last convolution is, so that its widest map is written once and never read again.
INFERENCE_SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "default": {"cpu": _FROZEN, "cuda": _GRAPHED},
    "epilogue": {
        # On a CPU oneDNN's convolutions take in sums and activations, with freezing alone.
        "cpu": _FROZEN,
        "cuda": {
            **_GRAPHED,
            # In channels_last, a 1 x 1 convolution is a matrix product. It is made one only where products are tuned,
            # and only Triton's products can take in what follows.
            "max_autotune_gemm": True,
            "max_autotune_gemm_backends": "TRITON",
            # Other convolutions stay cuDNN's, which Triton's seldom beat and which take no time to tune.
            "max_autotune_conv_backends": "ATEN",
            # Otherwise each candidate would be compiled and timed again with and without what follows.
            "benchmark_epilogue_fusion": False,
            # While this is on (the default), products and what follows them stay apart: their loops differ in order.
            "loop_ordering_after_fusion": False,
            # Candidates: of Triton's twenty, which take minutes to compile, the six of three stages, whose tiles are 64
            # or 128 wide; and the one that is 256 wide, where there is one. They are named by stages, as tiles shrink
            # with small products and stages do not: every product keeps some. What is no Triton product has none.
            "test_configs.autotune_choice_desc_regex": r"^(?!.*num_stages=[124-9])|BLOCK_N=256",
        },
    },
}


def inference_settings(name: str, device: torch.device) -> dict[str, Any]:
    """Return Inductor's settings of that name for a device. Errors: `InputError` where there is no such name."""
    if name not in INFERENCE_SETTINGS:
        raise InputError(f"settings {name!r}: there are {', '.join(INFERENCE_SETTINGS)}")
    return dict(INFERENCE_SETTINGS[name].get(device.type, _FROZEN))


def compile_for_inference(model: nn.Module, settings: Settings = "default") -> nn.Module:
    """Return a model that computes what `model` does in eval mode, compiled at the first batch it sees.

    `settings` names some of `INFERENCE_SETTINGS`. `model` is not changed; the result has its attributes, and weights of
    its own that are frozen. Calling the result is what is compiled; `forward_features` and other methods run as before.
    Batches that are smaller than an earlier one of the same image size are filled up to its size, and the outputs cut;
    for a larger one it compiles again. Images `(batch, channels, height, width)` of either layout are taken; there are
    no gradients. Errors: `InputError` where there is nothing to compile with, the model is compiled already, or, at the
    first batch, cannot be compiled.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"compile_for_inference takes a model, not {model!r}: create it first")
    require_network(model, "compile_for_inference")
    if hasattr(model, "_orig_mod"):
        raise InputError("the model is compiled already")
    require_compiler(model_device(model), settings)
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    return CompiledModel(frozen.to(memory_format=torch.channels_last), settings)


def require_compiler(device: torch.device, settings: str = "default") -> None:
    """Raise `InputError` where there are no such settings, or this machine cannot compile for the device."""
    inference_settings(settings, device)
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise InputError(
                "torch.compile needs Triton on a GPU, and it is not installed or does not support this one: "
                "pip install triton, or do not compile"
            )
    elif device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except (RuntimeError, OSError) as error:
            raise InputError(
                "torch.compile needs a C++ compiler, and there is none: install g++, name one in the environment "
                "variable CXX, or do not compile"
            ) from error


def model_device(model: nn.Module) -> torch.device:
    """Return the device of a model's weights, the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class CompiledModel(nn.Module):
    """A model that is compiled when it is called; see `compile_for_inference`."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        """Wrap a model that is in eval mode, has frozen weights, and that nobody else changes."""
        super().__init__()
        self._orig_mod = model  # the name that torch gives it, by which others know a compiled model
        self.settings = settings
        self._compiled: dict[Hashable, tuple[Callable[[torch.Tensor], torch.Tensor], int]] = {}
        self.eval()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_orig_mod"), name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}  # a copy compiles for itself

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._compiled.clear()  # weights elsewhere, or of another precision: the constants are those from before
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights, and compile again at the next batch."""
        self._compiled.clear()
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> CompiledModel:
        """Stay in eval mode. Errors: `InputError` where `mode` asks for training."""
        if mode:
            raise InputError("a model compiled for inference cannot be trained: train the one it was made of")
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the model returns for `(batch, channels, height, width)`; the result is the caller's."""
        if images.is_meta or torch.compiler.is_compiling():  # shapes alone are asked for, or somebody else compiles
            shapes: torch.Tensor = self._orig_mod(images)
            return shapes
        with torch.no_grad():
            key = _state(images)
            call, size = self._compiled.get(key, (None, 0))
            if call is not None and len(images) <= size:
                return self._called(call, images, size)
            # As options of torch.compile, "freezing" would come too late: dynamo asks for it before it reads them.
            with _patched(inference_settings(self.settings, images.device)), compiler_errors():
                call = torch.compile(_separate(self._orig_mod), dynamic=False, fullgraph=True)
                outputs = self._called(call, images, len(images))
            self._compiled[key] = call, len(images)
            return outputs

    def _called(self, call: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, size: int) -> torch.Tensor:
        number = len(images)
        graphed = images.device.type == "cuda"
        if graphed:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        cudnn: Any = torch.backends.cudnn
        before = cudnn.benchmark
        # The first call tries cuDNN's algorithms out, the second records the fastest ones in a CUDA graph.
        cudnn.benchmark = not cudnn.deterministic
        try:
            outputs = call(_as_compiled(images, size))
        finally:
            cudnn.benchmark = before
        # The next call overwrites what a CUDA graph returns; a part would keep the whole.
        return outputs[:number].clone() if graphed or number < size else outputs


def _state(images: torch.Tensor) -> Hashable:
    """Return all that a call's code is made for, but for the number of images."""
    kind = images.device.type
    return (
        *(images.shape[1:], images.dtype, images.device, images.is_inference(), torch.is_inference_mode_enabled()),
        *(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.backends.cuda.matmul.fp32_precision),
    )


def _as_compiled(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return `size` images, those that lack all zeros, in channels_last with the strides that are usual for it.

    In eval mode no image influences another. A single image may have any stride from image to image and still be in
    that layout, but code is compiled for one.
    """
    number, channels, height, width = images.shape
    if number < size:
        filled = images.new_zeros((size, channels, height, width)).contiguous(memory_format=torch.channels_last)
        filled[:number] = images
        return filled
    if images.stride() != (channels * height * width, 1, width * channels, channels):
        images = images.clone(memory_format=torch.channels_last)
    return images.detach()


def _separate(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the model's call as code of its own.

    torch keeps what it compiled with the code it came from, at most eight entries, and all models of a class would
    share them; and it is freed with the code.
    """

    def call(images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(images)
        return outputs

    return types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


@contextmanager
def _patched(settings: Mapping[str, Any]) -> Iterator[None]:
    from torch._inductor import config

    with config.patch(dict(settings)):
        yield


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turn what a compiler raises inside into an `InputError`, of one line."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        what = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
        raise InputError(f"the model cannot be compiled ({what}): run it without") from error
