"""What the benchmarks of networks share: three networks in turn, ratios within a round, kernels, a picture.

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
from _benchmark_options import MODES
from torch import nn
from torch._functorch import config as functorch
from torch._inductor import config as inductor

from seresnet_hub.errors import InputError

PLAIN, SE = "plain", "timm"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH_SIZES = {"cpu": (16,), "cuda": (1, 32, 256)}
Networks = dict[str, nn.Module]
Call = Callable[[torch.Tensor], object]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured. `own` names this package's network in the result.

    `networks` makes the three from the names of the SE network and the plain one; `step` makes what is timed from a
    network, compiled or not, its parameters, and the precision; `placed` moves a network to a device and precision.
    `compile_options` are Inductor's settings by type of device. `passes` is how often training or inference moves what
    a forward pass moves at least.
    """

    name: str
    own: str
    networks: Callable[[str, str], Networks]
    step: Callable[[Call, Sequence[nn.Parameter], torch.dtype], Call]
    placed: Callable[[nn.Module, torch.device, torch.dtype], nn.Module]
    compile_options: Mapping[str, Mapping[str, Any]]
    passes: int


def measure_networks(benchmark: Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    """Time the three networks on the same images in one process, in turn in each round, in channels_last layout.

    A ratio is the median over rounds of (time of the other / time of the network) within a round, so that a busy
    machine weighs on both. `least_bytes` is what has to be moved where every convolution reads its input, its weights
    and, last in a block, the shortcut once, writes its output once, and everything else happens inside it; training
    moves it three times: forward, for the gradients of inputs, and for those of weights.
    """
    if options.rounds < 1 or options.size < 32 or min(options.batch_size or [1]) < 1:
        raise InputError("--rounds and --batch-size must be at least 1, --size at least 32")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = options.dtype or (["fp32", "bf16"] if device.type == "cuda" else ["fp32"])
    result: dict[str, Any] = {
        "benchmark": benchmark.name, "device": _name(device), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "timm": timm.__version__, "model": options.model, "plain": options.plain,
        "own": benchmark.own, "size": options.size, "rounds": options.rounds, "measurements": [],
    }  # fmt: skip
    for dtype, batch_size in product(dtypes, options.batch_size or BATCH_SIZES[device.type]):
        made = benchmark.networks(options.model, options.plain)
        images = torch.randn(batch_size, 3, options.size, options.size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        for mode in options.mode or MODES:
            measured = _measure(benchmark, made, images, DTYPES[dtype], mode, options.rounds)
            result["measurements"].append(
                {"mode": mode, "dtype": dtype, "batch_size": batch_size, "networks": measured}
            )
            for name, one in measured.items():
                print(
                    f"{mode} {dtype} batch {batch_size}: {name}: {one['images_per_second']:.1f} images/s, "
                    f"{one['times_timm']:.3f} x timm's SE, {one['times_plain']:.3f} x plain", file=sys.stderr,
                )  # fmt: skip
    if options.kernels:
        networks = benchmark.networks(options.model, options.plain)
        result["kernels"] = list_kernels(benchmark, networks, options.size, device)
    if options.picture:
        _draw(result, options.picture)
    return result


def named_network(name: str, **kwargs: Any) -> nn.Module:
    """Return one of timm's ResNets with weights that are drawn, none of them zero."""
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}")
    torch.manual_seed(0)
    try:
        network: nn.Module = timm.create_model(name, zero_init_last=False, **kwargs)
    except TypeError as error:
        raise InputError(f"{name} is no ResNet of timm's: {error}") from error
    return network


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"


def _measure(
    benchmark: Benchmark, networks: Networks, images: torch.Tensor, dtype: torch.dtype, mode: str, rounds: int
) -> dict[str, dict[str, Any]]:
    """Return for each network its speed, spread, ratios within rounds, peak memory and least bytes."""
    torch._dynamo.reset()
    for network in networks.values():
        network.to("cpu")
    steps: dict[str, Call] = {}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    peaks: dict[str, int | None] = {}
    turns = random.Random(0)
    with inductor.patch(dict(benchmark.compile_options[images.device.type])):
        for name, network in networks.items():
            before = _memory(images.device)
            placed = benchmark.placed(network, images.device, dtype)
            call = torch.compile(placed, dynamic=False, fullgraph=True) if mode == "compiled" else placed
            steps[name] = benchmark.step(call, list(placed.parameters()), dtype)
            steps[name](images)  # compiles, and tunes in memory of its own
            peaks[name] = _peak_memory(steps[name], images, before)
        for _ in range(rounds):
            for name in turns.sample(list(steps), len(steps)):  # nobody always comes after the same one
                seconds[name].append(_seconds(steps[name], images))
    measured: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        speeds = [len(images) / one for one in times]
        size = torch.empty((), dtype=dtype).element_size()
        measured[name] = {
            "images_per_second": round(statistics.median(speeds), 2),
            "images_per_second_rounds": [round(speed, 2) for speed in speeds],
            **{f"times_{other}": _ratio(seconds[other], times) for other in (SE, PLAIN)},
            "peak_bytes": peaks[name],
            "least_bytes": benchmark.passes * size * least_values(networks[name], images, dtype),
        }
    return measured


def _ratio(others: list[float], own: list[float]) -> float:
    return round(statistics.median(other / one for other, one in zip(others, own, strict=True)), 4)


def _seconds(call: Call, images: torch.Tensor) -> float:
    _wait(images.device)
    start = time.perf_counter()
    call(images)
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak_memory(call: Call, images: torch.Tensor, before: int) -> int | None:
    """Return the most that a GPU's allocator held during two calls, above what it held `before`; `None` on a CPU.

    Two, as the first may only record what later ones replay.
    """
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(images.device)
    for _ in range(2):
        call(images)
    _wait(images.device)
    return torch.cuda.max_memory_allocated(images.device) - before if images.device.type == "cuda" else None


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
    benchmark: Benchmark, networks: Networks, size: int, device: torch.device
) -> dict[str, list[dict[str, Any]]]:
    """Compile the second block of each network and return its kernels, in order: what each does, reads and writes.

    `wide_reads` and `wide_writes` count maps of the block's output size, `bytes` everything the kernel touches; they
    are what Inductor's scheduler knows after it has fused all it could. `graph` is "forward", or "backward".
    """
    kernels = {}
    for name, network in networks.items():
        block: Any = network.layer1[1]  # type: ignore[index]
        block = benchmark.placed(block, device, torch.float32)
        x = torch.randn(16, block.conv1.in_channels, size // 4, size // 4, device=device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_(benchmark.passes > 1)
        kernels[name] = block_kernels(block, x, dict(benchmark.compile_options[device.type]))
        for graph in dict.fromkeys(kernel["graph"] for kernel in kernels[name]):
            listed = [kernel for kernel in kernels[name] if kernel["graph"] == graph]
            reads, writes = (sum(kernel[key] for kernel in listed) for key in ("wide_reads", "wide_writes"))
            print(
                f"{graph} of one block, {name}: {len(listed)} kernels, wide maps read {reads}, written {writes}",
                file=sys.stderr,
            )
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
            reads = node.get_read_write_buffer_accesses(include_reads=True, include_writes=False)
            writes = node.get_read_write_buffer_accesses(include_reads=False, include_writes=True)
            wide = x.numel() * x.element_size()
            if all(type(one.node).__name__ == "MultiOutput" for one in node.get_nodes()):
                continue  # a name for what an extern kernel returned
            found.append(
                {
                    "graph": graph,
                    "kernel": " + ".join(dict.fromkeys(_operation(one.node) for one in node.get_nodes())),
                    "wide_reads": sum(size >= wide for size in reads.values()),
                    "wide_writes": sum(size >= wide for size in writes.values()),
                    "bytes": sum(reads.values()) + sum(writes.values()),
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


def _operation(node: Any) -> str:
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
        bars = axis.barh(shown, [networks[name]["images_per_second"] for name in names], color=list(colours.values()))
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
