"""Measure a model on a labelled split: every image once, counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from seresnet_hub.data import Loader, Split, evaluation_loader
from seresnet_hub.device import finish, on_device
from seresnet_hub.errors import InputError
from seresnet_hub.images import model_transform
from seresnet_hub.models import eval_mode


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracies in percent over exactly `seen` images, and how fast they were seen."""

    seen: int
    top1: float
    top5: float
    images_per_second: float


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 128,
    workers: int = 2,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Accuracy:
    """Return top-1 and top-5 accuracy of `model` on every image of `split`, each counted once.

    Ranks share the batches; `total` sums a tensor over them. Errors: `InputError` where a label lies outside the
    model's classes or a row cannot be read; `RuntimeError` if not every image was counted.
    """
    if batch_size < world_size:
        raise InputError(f"batch size {batch_size}: must be at least {world_size}, one image for each process")
    if split.rows == 0:
        raise InputError(f"split {split.name!r} of {split.source} is empty")
    num_classes: int = model.num_classes  # type: ignore[assignment]
    if not num_classes:
        raise InputError("the model has no classifier: create it with num_classes > 0")
    if split.class_names and len(split.class_names) != num_classes:
        raise InputError(f"{split.source} has {len(split.class_names)} classes, the model {num_classes}")
    transform, config = model_transform(model)
    batches: Loader = evaluation_loader(
        split, None, transform, input_size=config["input_size"][-2:], batch_size=batch_size, num_classes=num_classes,
        rank=rank, world_size=world_size, workers=workers,
    )  # fmt: skip
    parameter = next(model.parameters())
    device = parameter.device
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    finite = torch.tensor(True, device=device)
    start = time.perf_counter()
    with eval_mode(model):
        progress = tqdm(batches, desc=f"evaluating {split.name}", disable=rank != 0, leave=False)
        with torch.inference_mode(), progress:
            for batch in on_device(progress, device):
                images = finish(batch, mean=config["mean"], std=config["std"], dtype=parameter.dtype)
                labels, mask = batch.labels, batch.mask
                logits = model(images)
                finite &= logits.isfinite().all()
                best = logits.topk(min(5, num_classes), dim=1).indices
                hits = (best == labels[:, None]) & mask[:, None]
                counts += torch.stack([hits[:, 0].sum(), hits.sum(), mask.sum()])
    if not finite:
        raise InputError("the model's outputs are not finite numbers: its weights are damaged or were never trained")
    counts = total(counts) if total else counts
    top1, top5, seen = counts.tolist()
    if seen != split.rows:
        raise RuntimeError(f"{seen} of the {split.rows} images of split {split.name!r} of {split.source} were counted")
    return Accuracy(
        seen=seen,
        top1=100 * top1 / seen,
        top5=100 * top5 / seen,
        images_per_second=seen / (time.perf_counter() - start),
    )
