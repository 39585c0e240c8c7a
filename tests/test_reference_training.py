"""From the same start and on the same batches, the loop must do what mmengine's and timm's do, step by step."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.mixup import Mixup
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from seresnet_hub.conversion.convert import convert
from seresnet_hub.data.batch_augmentation import finish
from seresnet_hub.data.loader import epoch_plan, loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.repeated_augmentation import dealt
from seresnet_hub.data.transforms import seed_from, seeded
from seresnet_hub.data.units import read_unit
from seresnet_hub.recipes.recipe import Recipe, get_recipe
from seresnet_hub.training import checkpoint
from seresnet_hub.training import train as training

IMAGES, BATCH = 200, 8


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Fifty steps amplify rounding; in float64 what is left of it is far below any difference of the loops."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def pictures(cifar10_copy: Path, tmp_path: Path) -> Path:
    """200 real images of ten classes in four shards, and ten to validate."""
    rows = datasets.load_dataset(str(cifar10_copy), split=f"train[:{IMAGES}]")
    for k in range(4):
        rows.shard(4, k).to_parquet(tmp_path / "pictures" / f"train-{k:05d}-of-00004.parquet")
    rows.select(range(10)).to_parquet(tmp_path / "pictures" / "validation-00000-of-00001.parquet")
    return tmp_path / "pictures"


def batches(recipe: Recipe, data: Path, epochs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what the loop under test sees: normalised images and labels."""
    split = open_split(str(data), "train")
    mean, std = recipe.mean, recipe.std
    assert mean is not None
    assert std is not None
    for epoch in range(epochs):
        for batch in loader(split, None, recipe, seed=recipe.seed, epoch=epoch):
            yield finish(batch, mean=mean, std=std, dtype=torch.get_default_dtype()), batch.labels


def state_of(run: Path) -> dict[str, Any]:
    return checkpoint.latest_checkpoint(run)[0]


def assert_same_losses(ours: torch.Tensor, theirs: list[float], steps: int, tolerance: float = 1e-4) -> None:
    assert len(ours) == len(theirs) == steps
    worst = ((ours - torch.tensor(theirs)).abs() / torch.tensor(theirs).abs()).max().item()
    print(f"losses {theirs[0]:.4f} to {theirs[-1]:.4f}; largest relative difference of {steps}: {worst:.2g}")
    assert len({round(loss, 6) for loss in theirs}) > steps / 2  # a loop that stands still proves nothing
    assert worst < tolerance


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_float64")
def test_fifty_steps_of_mmpretrains_recipe_are_mmengines(pictures: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mmpretrain", reason="mmpretrain is not installed beside this project")
        import mmpretrain.models  # noqa: F401  # registers the networks
        from mmengine.hooks import Hook
        from mmengine.model import BaseDataPreprocessor
        from mmengine.registry import init_default_scope
        from mmengine.runner import Runner
        from mmpretrain.registry import MODELS
        from mmpretrain.structures import DataSample

    recipe = replace(
        get_recipe("seresnet50_8xb32_in1k"), epochs=2, decay_epochs=(1,), batch_size=BATCH, input_size=64, workers=0,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), shuffle_window=50,
        weights=f"local-dir:{tmp_path / 'start'}",
    )  # fmt: skip
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    model = MODELS.build({
        "type": "ImageClassifier", "backbone": {"type": "SEResNet", "depth": 50, "out_indices": (3,)},
        "neck": {"type": "GlobalAveragePooling"},
        "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": 2048, "loss": {"type": "CrossEntropyLoss"}},
    })  # fmt: skip
    model.init_weights()
    start = {n: t.float() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    torch.save({"meta": {}, "state_dict": start}, tmp_path / "start.pth")
    convert(tmp_path / "start.pth", tmp_path / "start", verify=False)
    model.load_state_dict(start)
    model.data_preprocessor = BaseDataPreprocessor()

    fed = [(images.clone(), labels.clone()) for images, labels in batches(recipe, pictures, 2)]
    samples = [
        {"inputs": images, "data_samples": [DataSample().set_gt_label(int(label)) for label in labels]}
        for images, labels in fed
    ]

    class Losses(Hook):
        def __init__(self) -> None:
            self.values: list[float] = []

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            self.values.append(float(outputs["loss"]))

    class Epochs:
        """Each epoch's batches in turn, as a data loader of mmengine."""

        dataset: list[Any] = []  # noqa: RUF012
        sampler = None

        def __init__(self) -> None:
            self.epoch = 0

        def __len__(self) -> int:
            return IMAGES // BATCH

        def __iter__(self) -> Iterator[Any]:
            self.epoch += 1
            return iter(samples[(self.epoch - 1) * len(self) : self.epoch * len(self)])

    losses = Losses()
    runner = Runner(
        model=model, work_dir=str(tmp_path / "mmengine"), train_dataloader=Epochs(),
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}},
        param_scheduler={"type": "MultiStepLR", "by_epoch": True, "milestones": [1], "gamma": 0.1},
        custom_hooks=[losses], default_scope="mmpretrain", log_level="ERROR",
    )  # fmt: skip
    runner.train()

    training.train(recipe, data=str(pictures), output=tmp_path / "ours")
    assert_same_losses(state_of(tmp_path / "ours")["losses"], losses.values, 50)
    torch.save({"meta": {}, "state_dict": model.state_dict()}, tmp_path / "end.pth")
    convert(tmp_path / "end.pth", tmp_path / "end", verify=False)
    theirs = safetensors.torch.load_file(tmp_path / "end" / "model.safetensors")
    ours = safetensors.torch.load_file(tmp_path / "ours" / "model.safetensors")
    worst = max(float((ours[n] - t).abs().max() / t.abs().max().clamp(min=1e-3)) for n, t in theirs.items())
    print(f"largest relative difference of the weights: {worst:.2g}")
    assert worst < 1e-4


def timms_rows(recipe: Recipe, data: Path, epoch: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yield batches as timm's sampler and transform make them: which image, and its pixels.

    Given are the order of the images, without repetitions, and the state of the random streams before each copy.
    """
    split, repeats = open_split(str(data), "train"), recipe.repeated_augmentation
    once = replace(recipe, repeated_augmentation=1, batch_size=recipe.batch_size // repeats)
    order = [index for batch in loader(split, None, once, epoch=epoch) for index in batch.indices.tolist()]
    images = [row.image for unit in range(len(split.unit_rows)) for row in read_unit(split, unit)]
    transform = timm.data.create_transform(
        (3, 64, 64), is_training=True, auto_augment="rand-m7-mstd0.5-inc1", interpolation="bicubic", normalize=False,
        color_jitter=None, scale=(0.08, 1.0), hflip=0.5,
    )  # fmt: skip
    sampler = RepeatAugSampler(order, 1, 0, shuffle=False, num_repeats=repeats, selected_round=0, selected_ratio=0.1)
    rows: list[tuple[int, bytes]] = []
    for place in sampler:
        copy = sum(index == order[place] for index, _ in rows)
        with seeded(recipe.seed, epoch, order[place], *([copy] if copy else [])):
            picture = Image.open(io.BytesIO(images[order[place]]["bytes"])).convert("RGB")
            rows.append((order[place], transform(picture).numpy().tobytes()))
        if len(rows) == recipe.batch_size:
            yield rows
            rows = []


def dealt_batches(recipe: Recipe, data: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what the loop sees of 20 steps, whose rows must be timm's; their order in a batch is the loop's own."""
    split = open_split(str(data), "train")
    plan = epoch_plan(split, recipe, seed=recipe.seed, epoch=0)
    assert recipe.mean is not None
    assert recipe.std is not None
    for step in range(20):
        epoch, number = divmod(step, plan.steps)
        if number == 0:
            ours, theirs = loader(split, None, recipe, epoch=epoch), timms_rows(recipe, data, epoch)
            ours_left = iter(ours)
        batch = dealt(next(ours_left), plan, number, repeats=3, rank=0, world_size=1, seed=(recipe.seed, step, 0))
        pixels = [image.contiguous().numpy().tobytes() for image in batch.images]
        assert Counter(zip(batch.indices.tolist(), pixels, strict=True)) == Counter(next(theirs))
        yield finish(batch, mean=recipe.mean, std=recipe.std, dtype=torch.get_default_dtype()), batch.labels


@pytest.mark.slow
@pytest.mark.usefixtures("in_float64")
def test_twenty_steps_of_rsb_a2_are_timms(pictures: Path, tmp_path: Path) -> None:
    """The reference is made of timm's parts, put together as its train.py does.

    Repeated augmentation by its sampler, RandAugment, mixup, cutmix, BCE, LAMB, cosine, EMA.
    """
    recipe = replace(
        get_recipe("rsb_a2"), epochs=6, batch_size=12, input_size=64, workers=0, decoder="pil",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), shuffle_window=50, ema_decay=0.9, drop_path=0.1,
        mixed_precision="no",
    )  # fmt: skip
    assert recipe.repeated_augmentation == 3
    training.train(recipe, data=str(pictures), output=tmp_path / "ours", max_steps=20)

    torch.manual_seed(recipe.seed)
    model: nn.Module = timm.create_model("seresnet50", num_classes=10, drop_path_rate=0.1)
    model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "lamb", lr=5e-3, weight_decay=0.02, momentum=0.9, filter_bias_and_bn=True)
    steps = -(-IMAGES // 12)
    schedule = CosineLRScheduler(
        optimizer, t_initial=6 * steps, warmup_t=5 * steps, warmup_lr_init=5e-7, warmup_prefix=False, t_in_epochs=False
    )
    average = ModelEmaV3(model, decay=0.9)
    mixup = Mixup(mixup_alpha=0.1, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=10)
    criterion = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.2)
    losses: list[float] = []
    model.train()
    for step, (images, labels) in enumerate(dealt_batches(recipe, pictures)):
        torch.manual_seed(seed_from(recipe.seed, step, 0))  # the stochastic depth of the loop under test
        schedule.step_update(step)
        with seeded(recipe.seed, step, 0):
            images, targets = mixup(images, labels)
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model, step + 1)
        losses.append(loss.item())
    state = state_of(tmp_path / "ours")
    assert_same_losses(state["losses"], losses, 20, tolerance=1e-12)
    for ours, theirs in ((state["model"], model.state_dict()), (state["average"], average.module.state_dict())):
        worst = max(float((ours[n] - t).abs().max() / t.abs().max().clamp(min=1e-3)) for n, t in theirs.items())
        print(f"largest relative difference of the weights: {worst:.2g}")
        assert worst < 1e-9
