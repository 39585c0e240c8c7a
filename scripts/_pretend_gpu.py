"""Let Inductor generate code for an NVIDIA GPU on a machine without one.

Nothing is run on it: every tensor is a fake one, and what torch and Triton would ask the driver is answered from the
table below. These answers replace private parts of torch (as of 2.11 to 2.14), for the whole process; so only a process
that does nothing else may call `pretend`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Target:
    """A GPU that code is made for, and what times are predicted from.

    `capability` is its compute capability; `bandwidth` the bytes/s that a large copy within its memory moves, counting
    what is read and written; `flops` what convolutions in bf16 are taken to reach (operations/s).
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    l2_cache: int
    shared_memory: int
    bandwidth: float
    flops: float


TARGETS = {
    "sm_90": Target(
        name="NVIDIA H100 80GB HBM3", capability=(9, 0), multiprocessors=132, memory=81559 * 2**20,
        l2_cache=50 * 2**20, shared_memory=232448, bandwidth=3.0e12, flops=600e12,
    ),
}  # fmt: skip


def pretend(target: Target) -> None:
    """Make this process believe that it has the GPU `target`; there is no way back."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config as inductor
    from torch._subclasses import fake_tensor

    properties = _properties(target)
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": properties,
        "get_device_capability": target.capability, "get_device_name": target.name, "synchronize": None,
        "is_bf16_supported": True, "set_device": None, "_lazy_init": None, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "mem_get_info": (target.memory, target.memory),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "get_arch_list": ["sm_{}{}".format(*target.capability)],
    }  # fmt: skip
    for module in (torch.cuda, torch.cuda.random):
        _answer(module, {name: answer for name, answer in answers.items() if hasattr(module, name)})
    capability = 10 * target.capability[0] + target.capability[1]
    _answer(
        CudaInterface,
        {"is_available": True, "get_compute_capability": capability, "current_device": 0, "device_count": 1,
         "synchronize": None, "get_device_properties": properties, "get_raw_stream": 0, "is_bf16_supported": True,
         "is_triton_capable": True, "raise_if_triton_unavailable": None, "exchange_device": 0,
         "maybe_exchange_device": 0, "set_device": None},
        static=True,
    )  # fmt: skip
    _answer(CudaInterface.Worker, {"get_device_properties": properties, "current_device": 0}, static=True)
    _answer(torch._C, {"_cuda_getCurrentRawStream": 0})
    torch._C._conv_determine_backend_memory_format = _cudnn_layout  # type: ignore[assignment]
    torch.version.cuda = torch.version.cuda or "13.0"
    _answer(fake_tensor, {"init_gpu_context": None})
    inductor.triton.cudagraphs = False
    _skip_patterns_that_run()
    _drive_triton(target)


def _answer(owner: Any, answers: dict[str, Any], *, static: bool = False) -> None:
    """Replace functions by ones that always give the same answer."""
    for name, answer in answers.items():

        def function(*_: Any, answer: Any = answer, **__: Any) -> Any:
            return answer

        setattr(owner, name, staticmethod(function) if static else function)


def _properties(target: Target) -> SimpleNamespace:
    major, minor = target.capability
    return SimpleNamespace(
        name=target.name, major=major, minor=minor, total_memory=target.memory,
        multi_processor_count=target.multiprocessors, L2_cache_size=target.l2_cache, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
        shared_memory_per_block=49152, shared_memory_per_block_optin=target.shared_memory,
        shared_memory_per_multiprocessor=target.shared_memory + 1024, gcnArchName="", is_integrated=False,
        uuid="0", pci_bus_id=0, clock_rate=1980000, memory_clock_rate=2619000, memory_bus_width=5120,
    )  # fmt: skip


def _cudnn_layout(images: torch.Tensor, weight: torch.Tensor, _: object) -> torch.memory_format:
    """Return the layout that cuDNN would give a convolution's output: channels_last where an operand has it."""
    last = torch.channels_last
    if images.dim() == 4 and (images.is_contiguous(memory_format=last) or weight.is_contiguous(memory_format=last)):
        return last
    return torch.contiguous_format


def _skip_patterns_that_run() -> None:
    """Leave out those of Inductor's patterns that are made by running them; no ResNet has them."""
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm

    _answer(fuse_attention, {"_sfdp_init": None})
    _answer(pad_mm, {"_pad_mm_init": None})
    _answer(misc_patterns, {"_misc_patterns_init": None})


def _drive_triton(target: Target) -> None:
    """Give Triton a driver that knows its target and nothing else."""
    import triton
    from torch.utils import _triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        utils = SimpleNamespace()
        launcher_cls = None

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 10 * target.capability[0] + target.capability[1], 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

        def get_device_interface(self) -> Any:
            return torch.cuda

    for name, answer in (("get_current_device", 0), ("set_current_device", None), ("get_current_stream", 0),
                         ("get_benchmarker", None)):  # fmt: skip
        _answer(Driver, {name: answer})
    facts = {"max_shared_mem": target.shared_memory, "max_num_regs": 65536, "warpSize": 32,
             "multiprocessor_count": target.multiprocessors}  # fmt: skip
    _answer(Driver.utils, {"get_device_properties": facts})
    triton.runtime.driver.set_active(Driver())
    from torch._inductor.runtime import triton_helpers

    _answer(triton_helpers, {"set_driver_to_gpu": None})  # a generated kernel's source asks for the real one
    _answer(_triton, {"has_triton": True})
    for name, module in list(sys.modules.items()):  # those that took the function's name before
        if name.startswith("torch") and callable(getattr(module, "has_triton", None)):
            module.has_triton = _triton.has_triton  # type: ignore[attr-defined]
