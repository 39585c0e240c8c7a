"""Count what Inductor's kernels for a GPU move and compute, without that GPU, and predict their times.

Inductor generates the code of a network, or of one of its blocks, for a GPU that is pretended; its own scheduler knows
the bytes that each kernel reads and writes, and the operations of products and convolutions. Nothing is run, and what a
prediction leaves out is said in `predicted`. The file is a program of its own, since pretending changes torch for the
whole process: its argument is a JSON object of `count`'s arguments, its last line of output the result.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import util
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from _benchmark_networks import PLAIN, SE, accesses_of, is_name, named_network, operation_of, operations_of
from _pretend_gpu import TARGETS, Target, pretend
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from seresnet_hub.models import fusion
from seresnet_hub.models.training_blocks import use_training_blocks

# cuDNN's backward convolutions often reach less than its forward ones, and small kernels end no sooner than this.
CAUTIOUS_FLOPS, CAUTIOUS_SECONDS = 250e12, 2e-6
TRAINING, INFERENCE = "training", "inference"


class _Done(Exception):
    """Raised once the code that was asked for is there, before anything runs."""


def count(
    *, what: str, network: str, kind: str, target: str, batch_size: int, size: int, settings: Mapping[str, Any],
    build: bool = False, parts: Sequence[str] = ("network", "block"),
) -> dict[str, Any]:  # fmt: skip
    """Return what Inductor makes of `what` ("training" or "inference") of a network in bf16 for a GPU.

    `network` and `block` (the second of its first stage) each have the bytes and operations of their `graphs`, the
    `predicted` times, and all `kernels`, in order. `kind` is "plain", "timm" or "own"; `settings` are Inductor's. With
    `build`, Triton compiles every kernel for the target; `built` is the number of programs. `parts` names which of the
    two are wanted.
    """
    training = what == TRAINING
    made = _made(network, kind, training=training)
    block = made.layer1[1]
    # In training the network is given float32, and autocast makes bf16 of what its blocks are given.
    images = _channels_last(batch_size, 3, size, torch.float32 if training else torch.bfloat16)
    maps = _channels_last(batch_size, block.conv1.in_channels, size // 4, torch.bfloat16)
    maps.requires_grad_(training)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=training):
        given = {"network": (made, images), "block": (block, maps)}
        traced = {name: _traced(*given[name]) for name in parts}
    pretend(TARGETS[target])
    result: dict[str, Any] = {}
    for name, (graph, inputs) in traced.items():
        generated = _generated(graph, inputs, settings, training=training, wide=2 * maps.numel())
        kernels = [{"graph": of, **kernel} for of, found, _ in generated for kernel in found]
        result[name] = {
            "graphs": {of: _summary(found) for of, found, _ in generated},
            "predicted": _predicted(kernels, TARGETS[target]),
            "built": sum(_build(code) for _, _, code in generated) if build else None,
            "kernels": kernels,
        }
    return result


def _channels_last(batch_size: int, channels: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    strides = (size * size * channels, 1, size * channels, channels)
    return torch.empty_strided((batch_size, channels, size, size), strides, dtype=dtype)


# --- networks ---------------------------------------------------------------------------------------------------------


def _made(network: str, kind: str, *, training: bool) -> Any:
    made: Any = named_network(network)
    if training:
        if kind not in (PLAIN, SE):
            use_training_blocks(made)
        return made.train().to(memory_format=torch.channels_last)
    made.eval().requires_grad_(False)
    made = _folded(made) if kind in (PLAIN, SE) else fusion.fuse(made)
    return made.to(torch.bfloat16).to(memory_format=torch.channels_last)


def _folded(network: nn.Module) -> nn.Module:
    """Return a network with its norms in its convolutions, where Inductor's freezing would put them."""
    for module in list(network.modules()):
        if type(module) is nn.Sequential:
            for first, second in pairwise(list(module._modules)):
                fusion.fold(module, first, second)
        elif isinstance(module, ResNet):
            fusion.fold(module, "conv1", "bn1")
        elif isinstance(module, (BasicBlock, Bottleneck)):
            for conv, norm in fusion.PAIRS:
                if hasattr(module, conv):
                    fusion.fold(module, conv, norm)
    return network


# --- code -------------------------------------------------------------------------------------------------------------


def _traced(module: nn.Module, x: torch.Tensor) -> tuple[Any, Sequence[Any]]:
    """Return dynamo's graph of a module and its inputs, traced on the CPU."""
    found: list[tuple[Any, Sequence[Any]]] = []

    def keep(graph: Any, inputs: Sequence[Any]) -> Any:
        found.append((graph, inputs))
        raise _Done

    torch._dynamo.reset()
    try:
        torch.compile(module, backend=keep, dynamic=False, fullgraph=True)(x)
    except Exception:  # dynamo wraps what a backend raises
        if not found:
            raise
    return found[0]


def _generated(
    graph: Any, inputs: Sequence[Any], settings: Mapping[str, Any], *, training: bool, wide: int
) -> list[tuple[str, list[dict[str, Any]], str]]:
    """Run Inductor as far as the source of its kernels: name, kernels and code of each graph.

    In training the two graphs are derived on the CPU, since torch runs the backward pass of tensors of a GPU in a
    thread that needs it, and are told afterwards that they are the GPU's.
    """
    from torch._functorch import config as functorch
    from torch._inductor import compile_fx
    from torch._inductor import config as inductor
    from torch._inductor.graph import GraphLowering
    from torch._subclasses import FakeTensorMode

    mode = FakeTensorMode()
    found: list[tuple[str, list[dict[str, Any]], str]] = []
    names = ("forward", "backward") if training else ("forward",)

    def stop(self: Any) -> None:
        code, _ = self.codegen()
        found.append((names[len(found)], _kernels(self.scheduler, wide), getattr(code, "value", code)))
        raise _Done

    def fake(tensor: Any, device: str) -> Any:
        if isinstance(tensor, (tuple, list)):
            return type(tensor)(fake(one, device) for one in tensor)
        if not isinstance(tensor, torch.Tensor):
            return tensor
        with mode:
            made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
        return made.requires_grad_(tensor.requires_grad) if device == "cpu" else made

    def compile_inner(module: Any, examples: Sequence[Any], **options: Any) -> Any:
        if training:
            for node in module.graph.nodes:
                if "val" in node.meta:
                    node.meta["val"] = fake(node.meta["val"], "cuda")
                node.meta.pop("eager_input_vals", None)
                moved = {key: torch.device("cuda", 0) if isinstance(value, torch.device) else value
                         for key, value in node.kwargs.items()}  # fmt: skip
                node.kwargs = moved
            examples = [fake(one, "cuda") for one in examples]
        before = len(found)
        try:
            compile_fx.compile_fx_inner(module, examples, **options)
        except Exception:
            if len(found) == before:
                raise
        if len(found) == len(names):
            raise _Done
        (outputs,) = next(node for node in module.graph.nodes if node.op == "output").args

        def run(_: Any) -> list[Any]:
            return [one.meta["val"] if isinstance(one, torch.fx.Node) else one for one in outputs]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    original = GraphLowering.compile_to_module
    GraphLowering.compile_to_module = stop  # type: ignore[method-assign, assignment]
    device = "cpu" if training else "cuda"
    try:
        with ExitStack() as stack:
            stack.enter_context(inductor.patch({"fx_graph_cache": False, "compile_threads": 1, **settings}))
            stack.enter_context(functorch.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False))
            stack.enter_context(torch.set_grad_enabled(training))
            stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=training))
            stack.enter_context(torch._guards.tracing(torch._guards.TracingContext(mode)))
            fakes = [fake(one, device) for one in inputs]
            compile_fx.compile_fx(graph, fakes, inner_compile=compile_inner)
    except Exception:
        if len(found) != len(names):
            raise
    finally:
        GraphLowering.compile_to_module = original  # type: ignore[method-assign]
    return found


def _build(code: str) -> int:
    """Compile every Triton kernel of a generated module for the target, and return how many programs came of them."""
    pattern = r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for name, source in re.findall(pattern, code, flags=re.DOTALL):
            path = Path(folder, f"{name}.py")  # Triton reads the source of a kernel from its file
            path.write_text(source)
            kernel = getattr(_imported(name, path), name)
            kernel._precompile_config(kernel.configs[0])
        return len({path.stem for path in Path(folder).rglob("*.cubin")})


def _imported(name: str, path: Path) -> ModuleType:
    spec = util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- counts -----------------------------------------------------------------------------------------------------------


def _kernels(scheduler: Any, wide: int) -> list[dict[str, Any]]:
    """Return each kernel's kind and operations, the bytes it reads and writes, and its floating-point operations.

    `wide_reads` and `wide_writes` count tensors of at least `wide` bytes.
    """
    found = []
    for node in scheduler.nodes:
        parts = node.get_nodes()
        if type(node).__name__ == "NopKernelSchedulerNode" or is_name(node):
            continue
        reads, writes = accesses_of(node)
        kind = "library" if node.is_extern() else "product" if node.is_template() else "elementwise"
        flops, read_again = 0, 0
        if kind != "elementwise":
            flops, read_again = _work(next(part.node for part in parts if kind == "library" or part.is_template()))
        reads += [read_again] if read_again else []
        found.append(
            {"kind": kind, "operations": operations_of(node), "read": sum(reads), "written": sum(writes),
             "wide_reads": sum(one >= wide for one in reads), "wide_writes": sum(one >= wide for one in writes),
             "flops": flops}
        )  # fmt: skip
    return found


def _work(node: Any) -> tuple[int, int]:
    """Return a product's or convolution's floating-point operations, and what it reads a second time, in bytes."""
    operands = [one for one in node.inputs if hasattr(one, "get_size") and not _has_many(one)]
    shapes = [[int(side) for side in one.get_size()] for one in operands]
    name = operation_of(node)
    if "convolution_backward" in name:  # two kernels, one for each gradient, and both read the output's
        outputs, _, weight = shapes
        gradients = sum(node.constant_args[-1][:2]) if isinstance(node.constant_args[-1], (list, tuple)) else 2
        again = math.prod(outputs) * operands[0].get_dtype().itemsize * (gradients - 1)
        return gradients * 2 * math.prod(outputs) * math.prod(weight[1:]), again
    if "convolution" in name and len(shapes[1]) == 4:
        return 2 * math.prod(map(int, node.get_size())) * math.prod(shapes[1][1:]), 0
    if len(shapes) >= 2 and len(shapes[-1]) == len(shapes[-2]) == 2:  # a matrix product, its bias before
        return 2 * math.prod(shapes[-2]) * shapes[-1][-1], 0
    return 0, 0


def _has_many(node: Any) -> bool:
    """Say whether a node stands for several tensors, and so has no size of its own."""
    return type(node.layout).__name__ == "MultiOutputLayout" if hasattr(node, "layout") else False


def _summary(kernels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of kernels of each kind, the bytes they move, and their floating-point operations."""
    totals = ("flops", "wide_reads", "wide_writes")
    summary: dict[str, Any] = {"kernels": len(kernels), **{key: sum(one[key] for one in kernels) for key in totals}}
    for kind in ("library", "product", "elementwise"):
        of_kind = [kernel for kernel in kernels if kernel["kind"] == kind]
        summary[kind] = {"kernels": len(of_kind), "bytes": sum(one["read"] + one["written"] for one in of_kind)}
    return summary


def _predicted(kernels: Sequence[Mapping[str, Any]], target: Target) -> dict[str, float]:
    """Return times in ms: each kernel takes as long as its bytes or its operations, whichever takes longer.

    `ms` takes the target's rates as they are; `cautious_ms` slower convolutions, and a least time for each kernel.
    Neither has the optimizer, the preparation of images, or what a launch costs the host.
    """
    ms = cautious = 0.0
    for kernel in kernels:
        moving = (kernel["read"] + kernel["written"]) / target.bandwidth
        ms += 1e3 * max(moving, kernel["flops"] / target.flops)
        cautious += 1e3 * max(moving, kernel["flops"] / CAUTIOUS_FLOPS, CAUTIOUS_SECONDS)
    return {"ms": round(ms, 3), "cautious_ms": round(cautious, 3)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of torch, about parts of its own
    print(json.dumps(count(**json.loads(sys.argv[1]))))
