"""On a GPU, batches must arrive whole, steps must wait for nothing, and results must be as exact as timm's.

GPU_TESTS_ON_CPU=1 runs these tests on a CPU, at smaller sizes, to see that the tests themselves work.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.models.resnet import Bottleneck, ResNet

from seresnet_hub import fuse, predict
from seresnet_hub.data.batch_augmentation import Mixer, finish, on_device
from seresnet_hub.data.loader import Batch
from seresnet_hub.evaluation.out_of_memory import with_smaller_batches
from seresnet_hub.inference.write_predictions import write_predictions
from seresnet_hub.models.training_blocks import SEBottleneck
from seresnet_hub.recipes.recipe import get_recipe, override
from seresnet_hub.training.optimizer_and_schedule import optimizer_of

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CUDA and os.environ.get("GPU_TESTS_ON_CPU") != "1", reason="no CUDA device"),
]
STATISTICS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """What is compared is float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def a_batch(memory: torch.Tensor, number: int) -> Batch:
    rows = len(memory)
    memory.fill_(number % 251)
    flags = torch.arange(rows) % 3 == 0
    images, counted = memory.permute(0, 3, 1, 2), torch.ones(rows, dtype=torch.bool)
    return Batch(images, torch.full((rows,), number), counted, rows, flags, torch.arange(rows), True, 0)


def test_batches_arrive_whole_though_their_memory_is_used_again_at_once() -> None:
    """Two places are used in turn, as a loader does; the device is kept busy, so that copies could be overtaken."""
    rows, side, width = (128, 224, 4096) if CUDA else (4, 16, 64)
    ring = [torch.empty(rows, side, side, 3, dtype=torch.uint8) for _ in range(2)]
    load = torch.randn(width, width, device=DEVICE)

    def batches() -> Iterator[Batch]:
        for number in range(40):
            yield a_batch(ring[number % 2], number)

    sums, wanted = [], []
    for number, batch in enumerate(on_device(batches(), DEVICE)):
        for _ in range(3):
            load = (load @ load).clamp(-1, 1)
        junk = torch.empty_like(batch.images).fill_(255)  # takes memory that was freed too early
        sums.append(torch.stack([batch.images.sum(dtype=torch.int64), batch.labels.sum(), batch.images.amax().long()]))
        wanted.append([number % 251 * batch.images.numel(), number * rows, number % 251])
        assert batch.images.device == load.device
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        del junk
    assert torch.stack(sums).tolist() == wanted


def test_what_is_done_to_a_batch_is_what_the_cpu_does() -> None:
    batch = a_batch(torch.empty(6, 20, 30, 3, dtype=torch.uint8), 7)
    batch = batch._replace(images=torch.randint(0, 256, (6, 20, 30, 3), dtype=torch.uint8).permute(0, 3, 1, 2))
    (there,) = list(on_device([batch], DEVICE))
    got = finish(there, **STATISTICS)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.cpu(), finish(batch, **STATISTICS))


def test_preparing_a_batch_waits_for_nothing() -> None:
    recipe = replace(get_recipe("digits"), mixup=0.2, cutmix=1.0, erasing=0.2, label_smoothing=0.1)
    mixer = Mixer(recipe, 10, DEVICE)
    batch = a_batch(torch.empty(8, 32, 32, 3, dtype=torch.uint8), 7)._replace(labels=torch.arange(8))
    (there,) = list(on_device([batch], DEVICE))
    finish(there, **STATISTICS)  # tensors of mean and std are made once
    wait()
    if CUDA:
        torch.cuda.set_sync_debug_mode("error")
    try:
        images, targets = mixer(finish(there, **STATISTICS), there.labels, True, 0, 1)
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert targets.shape == (8, 10)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    got, wanted = got.double().cpu(), wanted.double().cpu()
    return ((got - wanted).norm() / wanted.norm()).item()


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """In eval mode, with norms that do something."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("compiled", [False, True])
def test_fused_network_computes_the_same(compiled: bool) -> None:
    torch.manual_seed(0)
    model = with_statistics(timm.create_model("seresnet50" if CUDA else "seresnext26d_32x4d", zero_init_last=False))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, None)):
            there = images.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)
            timms = copy.deepcopy(model).to(DEVICE, dtype, memory_format=torch.channels_last)
            fused = fuse(model).to(DEVICE, dtype, memory_format=torch.channels_last)
            run = torch.compile(fused, dynamic=False, fullgraph=True) if compiled else fused
            error, of_timm = relative(run(there), exact), relative(timms(there), exact)
            print(json.dumps({"dtype": str(dtype), "compiled": compiled, "fused": error, "timm": of_timm}))
            assert error < (most or 1.5 * of_timm + 1e-3)


@pytest.mark.parametrize("settings", ["default", "epilogue"])
def test_compiled_fused_network_computes_the_same_and_its_outputs_stay(settings: str) -> None:
    """A CUDA graph writes each output to the same memory; the last batch is filled up to the size of the others."""
    torch.manual_seed(0)
    # A block of each width of seresnet50: every product is tuned.
    model = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=100, zero_init_last=False, block_args={"attn_layer": "se"})
    model = with_statistics(model)
    batches = [*torch.randn(3, 8, 3, 64, 64), torch.randn(3, 3, 64, 64)]
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        timms = copy.deepcopy(model).to(DEVICE, torch.bfloat16, memory_format=torch.channels_last)
        fast = fuse(model.to(DEVICE), compile=settings).to(torch.bfloat16)
        given = [images.to(DEVICE, torch.bfloat16) for images in batches]
        outputs, at_once = [], []
        for images in given:
            outputs.append(fast(images))
            at_once.append(outputs[-1].cpu())
        for number, images in enumerate(batches):
            exact = wide(images.double())
            error, of_timm = relative(outputs[number], exact), relative(timms(given[number]), exact)
            print(json.dumps({"settings": settings, "batch": number, "fused": error, "timm": of_timm}))
            assert len(outputs[number]) == len(images)
            assert torch.equal(outputs[number].cpu(), at_once[number])
            assert error < 1.5 * of_timm + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_block_computes_what_timms_does(dtype: torch.dtype) -> None:
    """Outputs, gradients and statistics, each against timm's block in float64; errors no larger than timm's own."""
    torch.manual_seed(0)
    side, rows = (28, 32) if CUDA else (8, 4)
    timms = Bottleneck(256, 64, attn_layer="se").train()
    ours = SEBottleneck(256, 64, attn_layer="se").train()
    ours.load_state_dict(timms.state_dict())
    images = torch.randn(rows, 256, side, side).contiguous(memory_format=torch.channels_last)

    def results(block, wide, compiled):
        block = copy.deepcopy(block).to(DEVICE, memory_format=torch.channels_last)
        block = block.double() if wide else block
        x = images.to(DEVICE, torch.float64 if wide else dtype).requires_grad_()
        call = torch.compile(block, dynamic=False, fullgraph=True) if compiled else block
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=not wide and dtype is torch.bfloat16):
            out = call(x)
        out.double().square().mean().backward()
        named = {"out": out, "x": x.grad, **{name: p.grad for name, p in block.named_parameters()}}
        return {**named, **{name: b for name, b in block.named_buffers() if "running" in name}}

    exact, of_timm, got = results(timms, True, False), results(timms, False, True), results(ours, False, True)
    errors = {name: (relative(got[name], exact[name]), relative(of_timm[name], exact[name])) for name in exact}
    worst = max(errors.items(), key=lambda item: item[1][0] / (item[1][1] + 1e-9))
    print(json.dumps({"dtype": str(dtype), "worst": worst}))
    for name, (error, timms_error) in errors.items():
        assert error < 2 * timms_error + (1e-5 if dtype is torch.float32 else 5e-3), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fused_optimizer_moves_weights_as_the_other_does(optimizer: str) -> None:
    recipe = override(get_recipe("digits"), [f"optimizer={optimizer}"])
    torch.manual_seed(0)
    weights = timm.create_model("seresnet20_cifar").to(DEVICE)
    models = {"cuda": copy.deepcopy(weights), "cpu": copy.deepcopy(weights)}
    optimizers = {kind: optimizer_of(model, recipe, device_type=kind) for kind, model in models.items()}
    assert [bool(one.defaults.get("fused")) for one in optimizers.values()] == [True, False]
    for _ in range(5):
        for parameters in zip(*(model.parameters() for model in models.values()), strict=True):
            gradient = torch.randn_like(parameters[0])
            for parameter in parameters:
                parameter.grad = gradient.clone()
        for one in optimizers.values():
            one.step()
    for before, fused, other in zip(
        weights.parameters(), *(model.parameters() for model in models.values()), strict=True
    ):
        assert relative(fused - before, other - before) < 1e-4


def test_predictions_are_the_cpus() -> None:
    model = timm.create_model("seresnet20_cifar.c10", pretrained=True)
    pictures = [Image.new("RGB", (40, 30), (40 * k, 255 - 40 * k, 128)) for k in range(5)]
    here = predict(model, pictures, topk=3)
    there = predict(model.to(DEVICE), pictures, topk=3)
    for a, b in zip(here, there, strict=True):
        assert a[0]["index"] == b[0]["index"]
        assert abs(a[0]["score"] - b[0]["score"]) < 1e-3


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_table_of_predictions_is_the_cpus_and_the_same_by_any_workers(precision: Any, tmp_path: Path) -> None:
    """Answers are copied to memory while the next batch is computed: none may be another batch's."""
    noise = torch.randint(0, 256, (200, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, pixels in enumerate(noise.numpy()):
        Image.fromarray(pixels).save(tmp_path / f"{number:03}.png")
    model = timm.create_model("seresnet20_cifar.c10", pretrained=True)
    tables, folder = {}, tmp_path / "tables"
    folder.mkdir()
    for name, device, workers in (("cpu", "cpu", 0), ("0", DEVICE, 0), ("3", DEVICE, 3)):
        options = {"batch_size": 8, "scores": True, "features": (None,), "workers": workers}
        output = folder / f"{name}.jsonl"
        write_predictions(model.to(device), str(tmp_path / "*.png"), output, precision=precision, **options)
        tables[name] = output.read_text()
    assert tables["0"] == tables["3"]
    rows, expected = ([json.loads(line) for line in tables[name].splitlines()] for name in ("0", "cpu"))
    assert len(rows) == len(noise)
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    difference = max(abs(a - b) for row, one in zip(rows, expected, strict=True)
                     for a, b in zip(row["scores"], one["scores"], strict=True))  # fmt: skip
    assert difference < (1e-4 if precision == "no" else 0.1)


@pytest.mark.skipif(not CUDA, reason="a CPU's memory has no limit of its own")
def test_batches_are_halved_where_the_devices_memory_is_short() -> None:
    model = timm.create_model("seresnet18", num_classes=2).to(DEVICE).eval()
    sizes: list[int] = []

    def work(size: int) -> float:
        sizes.append(size)
        with torch.inference_mode():
            return model(torch.zeros(size, 3, 224, 224, device=DEVICE)).sum().item()

    torch.cuda.empty_cache()
    share = 2**30 / torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        _, size = with_smaller_batches(work, 1024)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 < size < 1024
    assert sizes == [1024 >> k for k in range(len(sizes))]


# Trains 19 steps and prints, for each line of code, how often it waited for the device in 14 of them.
STEPS = """
import collections, json, sys, warnings
import torch
from seresnet_hub.training import loop
from seresnet_hub.training.train import train
from seresnet_hub.recipes.recipe import get_recipe, override

cuda = torch.cuda.is_available()
found = collections.Counter()
original = loop.on_device

def on_device(batches, device):
    for number, batch in enumerate(original(batches, device)):
        if number in (3, 17) and cuda:  # not the last step, which writes everything
            torch.cuda.set_sync_debug_mode("warn" if number == 3 else "default")
        yield batch

loop.on_device = on_device

def show(message, category, filename, lineno, file=None, line=None):
    if "synchroniz" in str(message):
        found[f"{filename.split('site-packages/')[-1]}:{lineno}"] += 1

warnings.showwarning = show
warnings.simplefilter("always")
recipe = override(get_recipe("digits"), sys.argv[2:])
result = train(recipe, output=sys.argv[1], max_steps=19)
print(json.dumps({"steps": result["steps"], "top1": result["top1"], "waits": dict(found.most_common(20))}))
"""


SCALER = ("torch/amp/grad_scaler.py:", "accelerate/optimizer.py:")


@pytest.mark.parametrize(
    "changes",
    [
        ["mixed_precision=bf16"],
        ["mixed_precision=fp16"],
        [
            "optimizer=lamb",
            "learning_rate=0.005",
            "ema_decay=0.9",
            "mixup=0.2",
            "cutmix=1.0",
            "erasing=0.2",
            "clip_grad=1.0",
        ],
    ],
    ids=lambda changes: changes[0],
)
def test_a_step_does_not_wait_for_the_device(changes: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(tmp_path / "run"), *changes], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    print("WAITS", changes[0], json.dumps(answer["waits"]))
    # 14 steps are watched; fp16's scaler has to look at each step's gradients, and nothing else may.
    allowed = SCALER if "mixed_precision=fp16" in changes else ()
    often = {place: count for place, count in answer["waits"].items() if count >= 7 and not place.startswith(allowed)}
    assert not often, often
