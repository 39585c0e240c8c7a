"""What the benchmarks of networks share: networks in turn, ratios within a round, kernels, a picture.

The three are a plain ResNet, timm's SE-ResNet of the same depth, and this package's form of the latter.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from _benchmark_counts import count_networks
from _benchmark_options import MODES, NETWORKS
from _benchmark_settings import DTYPES, precision, require_precision
from _benchmark_timing import Call, Log, calls_in, memory, peak_memory, seconds_a_call, wait
from torch import nn
from torch._functorch import config as functorch
from torch._inductor import config as inductor

from seresnet_hub.errors import InputError
from seresnet_hub.models.compiling import compiler_errors, require_compiler
from seresnet_hub.models.names import architecture_of
from seresnet_hub.recipes.inductor import options_of

PLAIN, SE, OWN = NETWORKS
BATCH_SIZES = {"cpu": (16,), "cuda": (1, 32, 256)}
PRECISIONS = {"cpu": ("fp32",), "cuda": ("bf16", "tf32")}
SECONDS = {"cpu": 0.0, "cuda": 0.25}
Networks = dict[str, nn.Module]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured. `own` names this package's network in the result.

    `networks` makes the three from the names of the SE network and the plain one; `step` makes what is timed from a
    network, compiled or not, its parameters, and the precision; `placed` moves a network to a device and precision.
    Images come in that precision with `narrow_images`, else in fp32. `compile_options` are Inductor's settings by type
    of device. `passes` is how often training or inference moves what a forward pass moves at least.
    """

    name: str
    own: str
    networks: Callable[[str, str], Networks]
    step: Callable[[Call, Sequence[nn.Parameter], torch.dtype], Call]
    placed: Callable[[nn.Module, torch.device, torch.dtype], nn.Module]
    compile_options: Mapping[str, Mapping[str, Any]]
    passes: int
    narrow_images: bool


def measure_networks(benchmark: Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    """Time the networks on the same images in one process, in turn in each round, in channels_last layout.

    A ratio is the median over rounds of (time of the other / time of the network) within a round, so that a busy
    machine weighs on both; it is `None` where the other is not measured. `least_bytes` is what has to be moved where
    every convolution reads its input, its weights and, last in a block, the shortcut once, writes its output once, and
    everything else happens inside it; training moves it three times: forward, for the gradients of inputs, and for
    those of weights.
    """
    if options.rounds < 1 or options.size < 32 or min(options.batch_size or [1]) < 1:
        raise InputError("--rounds and --batch-size must be at least 1, --size at least 32")
    if options.target:
        return count_networks(benchmark.name, options)
    if options.seconds is not None and options.seconds < 0:
        raise InputError(f"--seconds {options.seconds}: must not be negative")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes, modes = options.dtype or PRECISIONS[device.type], options.mode or MODES
    for dtype in dtypes:
        require_precision(dtype, device)
    settings = {**benchmark.compile_options[device.type], **options_of(options.inductor, "--inductor ")}
    if "compiled" in modes or options.kernels:
        require_compiler(device)
    wanted = [benchmark.own if name == OWN else name for name in NETWORKS if name in (options.network or NETWORKS)]
    seconds = SECONDS[device.type] if options.seconds is None else options.seconds
    log = Log(options.log, benchmark=benchmark.name, model=options.model, inductor=settings)
    result: dict[str, Any] = {
        "benchmark": benchmark.name, "device": _name(device), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "timm": timm.__version__, "model": options.model, "plain": options.plain,
        "own": benchmark.own, "size": options.size, "rounds": options.rounds, "seconds": seconds,
        "inductor": settings, "measurements": [],
    }  # fmt: skip
    for dtype, batch_size in product(dtypes, options.batch_size or BATCH_SIZES[device.type]):
        made = benchmark.networks(options.model, options.plain)
        made = {name: made[name] for name in wanted}
        images = torch.randn(batch_size, 3, options.size, options.size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        for mode in modes:
            with precision(dtype):
                measured = _measure(
                    benchmark, made, images, dtype, mode, rounds=options.rounds, seconds=seconds, log=log,
                    settings=settings if mode == "compiled" else {},
                )  # fmt: skip
            result["measurements"].append(
                {"mode": mode, "dtype": dtype, "batch_size": batch_size, "networks": measured}
            )
            for name, one in measured.items():
                log("measured", network=name, mode=mode, dtype=dtype, batch_size=batch_size, **one)
                others = ((SE, "timm's SE"), (PLAIN, "plain"))
                ratios = [f", {one[f'times_{other}']:.3f} x {what}" for other, what in others if other in measured]
                speed = f"{one['images_per_second']:.1f} images/s{''.join(ratios)}"
                print(f"{mode} {dtype} batch {batch_size}: {name}: {speed}", file=sys.stderr)
    if options.kernels:
        result["kernels"] = {name: [] for name in wanted}
        for dtype in dtypes:
            made = benchmark.networks(options.model, options.plain)
            with precision(dtype):
                found = list_kernels(
                    benchmark, {name: made[name] for name in wanted}, options.size, device, dtype=dtype,
                    settings=settings,
                )  # fmt: skip
            for name, kernels in found.items():
                result["kernels"][name] += kernels
    if options.picture:
        _draw(result, options.picture)
    return result


def named_network(name: str, **kwargs: Any) -> nn.Module:
    """Return one of timm's ResNets with weights that are drawn, none of them zero."""
    name = architecture_of(name)
    torch.manual_seed(0)
    try:
        network: nn.Module = timm.create_model(name, zero_init_last=False, **kwargs)
    except TypeError as error:
        raise InputError(f"{name} is no ResNet of timm's: {error}") from error
    return network


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"


def _measure(
    benchmark: Benchmark, networks: Networks, images: torch.Tensor, named: str, mode: str, *, rounds: int,
    seconds: float, settings: Mapping[str, Any], log: Log,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return for each network its speed, spread, ratios within rounds, peak memory and least bytes."""
    torch._dynamo.reset()
    for network in networks.values():
        network.to("cpu")
    steps: dict[str, Call] = {}
    calls: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in networks}
    peaks: dict[str, int | None] = {}
    turns = random.Random(0)
    dtype, device = DTYPES[named], images.device
    given = images.to(dtype) if benchmark.narrow_images else images
    with inductor.patch(dict(settings)), compiler_errors():
        for name, network in reversed(networks.items()):  # this package's first: the time may run out
            before = memory(device)
            placed = benchmark.placed(network, device, dtype)
            call = torch.compile(placed, dynamic=False, fullgraph=True) if mode == "compiled" else placed
            steps[name] = benchmark.step(call, list(placed.parameters()), dtype)
            start = time.perf_counter()
            steps[name](given)  # compiles, and tunes in memory of its own
            wait(device)
            first = time.perf_counter() - start
            peaks[name] = peak_memory(steps[name], given, before)
            one = seconds_a_call(steps[name], given)
            calls[name] = calls_in(seconds, one)
            log(
                "ready", network=name, mode=mode, dtype=named, batch_size=len(images),
                compile_seconds=round(first, 2) if mode == "compiled" else None, peak_bytes=peaks[name],
                call_ms=round(1e3 * one, 4),
            )  # fmt: skip
            print(f"{mode} {named} batch {len(images)}: {name}: first call {first:.1f} s", file=sys.stderr)
        for _ in range(rounds):
            for name in turns.sample(list(steps), len(steps)):  # so that none always comes after the same other
                times[name].append(seconds_a_call(steps[name], given, calls[name]))
    measured: dict[str, dict[str, Any]] = {}
    for name, own in times.items():
        speeds = [len(images) / one for one in own]
        size = torch.empty((), dtype=dtype).element_size()
        measured[name] = {
            "images_per_second": round(statistics.median(speeds), 2),
            "images_per_second_rounds": [round(speed, 2) for speed in speeds],
            **{f"times_{other}": _ratio(times[other], own) if other in times else None for other in (SE, PLAIN)},
            "peak_bytes": peaks[name],
            "least_bytes": benchmark.passes * size * least_values(networks[name], given, dtype),
        }
    return measured


def _ratio(others: list[float], own: list[float]) -> float:
    return round(statistics.median(other / one for other, one in zip(others, own, strict=True)), 4)


def least_values(network: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> int:
    """Return the values a forward pass has to move, if convolutions take in whatever stands between them."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        weights = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        total += inputs[0].numel() + output.numel() + weights

    def count_shortcut(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d):
            hooks.append(module.register_forward_hook(count))
        elif hasattr(module, "conv2"):
            hooks.append(module.register_forward_hook(count_shortcut))
    # In eval mode, so that counting one image moves no statistics.
    modes = [(module, module.training) for module in network.modules()]
    with torch.no_grad(), torch.autocast(images.device.type, dtype, enabled=dtype is torch.bfloat16):
        network.eval()
        network(images[:1])
        for_one, total = total, 0
        network(images[:1].expand(2, -1, -1, -1))
    for module, training in modes:
        module.training = training
    for hook in hooks:
        hook.remove()
    return for_one + (total - for_one) * (len(images) - 1)


# --- the kernels of one block -----------------------------------------------------------------------------------------


def list_kernels(
    benchmark: Benchmark,
    networks: Networks,
    size: int,
    device: torch.device,
    *,
    dtype: str = "fp32",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Compile the second block of each network and return its kernels, in order: what each does, reads and writes.

    `wide_reads` and `wide_writes` count maps of the block's output size, `bytes` everything the kernel touches; they
    are what Inductor's scheduler knows after it has fused all it could. `graph` is "forward", or "backward"; `dtype`
    is the precision, in training that of autocast. `settings` are Inductor's, the benchmark's own unless given.
    """
    kernels = {}
    torch_dtype = DTYPES[dtype]
    settings = benchmark.compile_options[device.type] if settings is None else settings
    for name, network in networks.items():
        block: Any = network.layer1[1]  # type: ignore[index]
        block = benchmark.placed(block, device, torch_dtype)
        # Under autocast too, blocks pass narrow maps on.
        x = torch.randn(16, block.conv1.in_channels, size // 4, size // 4, device=device, dtype=torch_dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_(benchmark.passes > 1)
        cast = torch.autocast(device.type, torch_dtype, enabled=dtype == "bf16" and not benchmark.narrow_images)
        with cast, compiler_errors():
            kernels[name] = [{**kernel, "dtype": dtype} for kernel in block_kernels(block, x, settings)]
        for graph in dict.fromkeys(kernel["graph"] for kernel in kernels[name]):
            listed = [kernel for kernel in kernels[name] if kernel["graph"] == graph]
            reads, writes = (sum(kernel[key] for kernel in listed) for key in ("wide_reads", "wide_writes"))
            counted = f"{len(listed)} kernels, wide maps read {reads}, written {writes}"
            print(f"{graph} of one block, {dtype}, {name}: {counted}", file=sys.stderr)
            for kernel in listed:
                print(
                    f"  wide maps read {kernel['wide_reads']}, written {kernel['wide_writes']}: {kernel['kernel']}",
                    file=sys.stderr,
                )
    return kernels


def block_kernels(block: nn.Module, x: torch.Tensor, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the kernels Inductor makes of a block with outputs of the shape of `x`, and of its gradients if wanted."""
    found: list[dict[str, Any]] = []
    graphs = iter(("forward", "backward"))

    def look(nodes: list[Any]) -> list[Any]:
        graph = next(graphs)
        for node in nodes:
            reads, writes = accesses_of(node)
            wide = x.numel() * x.element_size()
            if is_name(node):
                continue
            found.append(
                {
                    "graph": graph,
                    "kernel": operations_of(node),
                    "wide_reads": sum(size >= wide for size in reads),
                    "wide_writes": sum(size >= wide for size in writes),
                    "bytes": sum(reads) + sum(writes),
                }
            )
        return nodes

    # A graph that comes out of a cache is not scheduled again.
    settings = {**settings, "_post_fusion_custom_pass": look, "fx_graph_cache": False}
    torch._dynamo.reset()
    with (
        inductor.patch(settings), functorch.patch(enable_autograd_cache=False), torch.set_grad_enabled(x.requires_grad)
    ):  # fmt: skip
        output = torch.compile(block, dynamic=False, fullgraph=True)(x)
        if x.requires_grad:
            output.backward(torch.randn_like(output))
    return found


def is_name(node: Any) -> bool:
    """Say whether a node of Inductor's scheduler runs nothing, but names what a library's kernel returned."""
    return all(type(one.node).__name__ == "MultiOutput" for one in node.get_nodes())


def accesses_of(node: Any) -> tuple[list[int], list[int]]:
    """Return the bytes that a node of Inductor's scheduler reads and writes, tensor by tensor."""
    reads, writes = (
        list(node.get_read_write_buffer_accesses(include_reads=of_reads, include_writes=not of_reads).values())
        for of_reads in (True, False)
    )
    return reads, writes


def operations_of(node: Any) -> str:
    """Return what a node of Inductor's scheduler does."""
    return " + ".join(dict.fromkeys(operation_of(one.node) for one in node.get_nodes()))


def operation_of(node: Any) -> str:
    """Return the library's call behind a kernel, or the operations that one of Inductor's own was made of."""
    call = getattr(node, "op_overload", None) or getattr(node, "python_kernel_name", None)
    return str(call or " + ".join(sorted(str(origin) for origin in node.get_origins())))


def _draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measurements = result["measurements"]
    figure, axes = pyplot.subplots(
        1, len(measurements), figsize=(3.4 * len(measurements) + 1.2, 2.6), sharey=True, squeeze=False
    )
    own = result["own"]
    labels = {PLAIN: result["plain"], SE: f"{result['model']}, timm", own: f"{result['model']}, {own}"}
    colours = {PLAIN: "tab:gray", SE: "tab:orange", own: "tab:blue"}
    for axis, measurement in zip(axes[0], measurements, strict=True):
        networks = measurement["networks"]
        names = list(networks)
        shown = [labels[name] for name in names]
        speeds = [networks[name]["images_per_second"] for name in names]
        bars = axis.barh(shown, speeds, color=[colours[name] for name in names])
        if SE in networks:
            ratios = [f"{networks[name]['times_timm']:.2f} ×" for name in names]
            axis.bar_label(bars, ratios, label_type="center", color="white")
        for number, name in enumerate(names):
            rounds = networks[name]["images_per_second_rounds"]
            axis.plot(rounds, [number] * len(rounds), "k.", markersize=3)
        axis.set_title(f"{measurement['mode']}, {measurement['dtype']}, batch {measurement['batch_size']}", fontsize=10)
        axis.set_xlabel("images/s")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    figure.suptitle(
        f"{result['benchmark']}, {result['device']}; medians of {result['rounds']} interleaved rounds (dots); × timm's",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
