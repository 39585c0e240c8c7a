"""Measure a model on a labelled split: every image once, counted."""

from __future__ import annotations

import copy
import csv
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from seresnet_hub.data.batch_augmentation import finish, on_device
from seresnet_hub.data.class_names import IMAGENET_FILE, class_order, imagenet_real_labels
from seresnet_hub.data.damaged_images import require_few_damaged
from seresnet_hub.data.loader import Loader, Split, evaluation_loader
from seresnet_hub.data.splits import RightClasses, in_class_order
from seresnet_hub.data.transforms import model_transform
from seresnet_hub.environment import loader_workers
from seresnet_hub.errors import InputError, printable
from seresnet_hub.files.locks import only_writer
from seresnet_hub.files.model_folder import CONFUSION_NAME, PER_CLASS_NAME, PICTURE_NAME
from seresnet_hub.files.writing import fill_folder, replacing
from seresnet_hub.models.create import eval_mode
from seresnet_hub.plots import draw_confusion
from seresnet_hub.recipes.fields import LEAST_CROP_PCT, LONGEST_SIDE
from seresnet_hub.torch_settings import float32_arithmetic

Precision = Literal["no", "bf16", "fp16"]
# The types in which autocast computes, by the precision that is asked for.
AUTOCAST: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Batches that say nothing of the speed: workers start, and a compiled model compiles and records its CUDA graph.
FIRST_BATCHES = 2
# A confusion matrix of so many classes has half a gigabyte.
MOST_CONFUSED_CLASSES = 8192


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracies in percent over `counted` images, and how fast they were seen.

    `seen` is all images of the split that could be decoded; those that have no label are seen but not counted. `loss`
    is the mean cross entropy in nats, where each image has one label; `class_counts` are then each class's images, and
    how many of them were right: int64 `(classes, 2)`. `confusion`, on request, counts images by class and prediction:
    int64 `(classes, classes)`. `input_size` is height and width, `crop_pct` the crop's share of the resized
    image. `precision` is what the model computed in: "no" is the type of its weights.
    """

    seen: int
    counted: int
    top1: float
    top5: float
    loss: float | None
    images_per_second: float
    input_size: tuple[int, int]
    crop_pct: float
    precision: Precision = "no"
    class_counts: np.ndarray | None = field(default=None, repr=False, compare=False)
    confusion: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """One class: its images, how many of them were right, and the wrong class that most of the others were taken for.

    `top1` is in percent, `None` where there are no images; `mistaken_for` is `None` where none was wrong.
    """

    number: int
    images: int
    correct: int
    top1: float | None
    mistaken_for: int | None
    mistaken: int


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 128,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
    input_size: int | None = None,
    crop_pct: float | None = None,
    confusion: bool = False,
    corrupt_share: float = 0.0,
    precision: Precision = "no",
) -> Accuracy:
    """Return loss, top-1 and top-5 accuracy of `model` on every image of `split`, each counted once.

    Ranks share the batches; `total` sums a tensor over them. `input_size` and `crop_pct` replace those of the model's
    config, `confusion` asks for the confusion matrix. Where images have several right classes (`Split.right_classes`), one of
    them is enough, and an image that has none is not counted. Up to `corrupt_share` of the images may be undecodable
    (see `data.most_damaged`): they are left out, and not `seen`. `precision` is the type of autocast that the model
    computes in; "no" is the type of its weights, and float32 is exact then, on a GPU too. `workers` are the loader's,
    as many as suit the machine unless given. The result's `images_per_second` is that after the first two batches, in
    which workers start and a compiled model compiles; where there are no more, it is that of all. Errors: `InputError`
    where a label lies outside the model's classes, more rows cannot be read, the model does not take the size or there
    is no such precision; `RuntimeError` if not every image was counted.
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
    if confusion and split.right_classes is not None:
        raise InputError(f"images of {split.source} have several right classes, so there is no confusion matrix of it")
    if confusion and num_classes > MOST_CONFUSED_CLASSES:
        raise InputError(
            f"a confusion matrix of {num_classes:,} classes is too large: {MOST_CONFUSED_CLASSES:,} at most"
        )
    if crop_pct is not None and not LEAST_CROP_PCT <= crop_pct <= 1:
        raise InputError(f"crop_pct={crop_pct}: must be between {LEAST_CROP_PCT} and 1")
    if workers is not None and workers < 0:
        raise InputError(f"workers={workers}: must be at least 0")
    if precision != "no" and precision not in AUTOCAST:
        raise InputError(f"precision={precision}: must be no, {' or '.join(AUTOCAST)}")
    overrides = {"input_size": (3, input_size, input_size) if input_size is not None else None, "crop_pct": crop_pct}
    if input_size is not None:
        _require_size(model, input_size)
    transform, config = model_transform(model, **overrides)
    size: tuple[int, int] = tuple(config["input_size"][-2:])
    parameter = next(model.parameters())
    device = parameter.device
    answers = _answer_table(split, num_classes, device) if split.right_classes is not None else None
    batches: Loader = evaluation_loader(
        split, None, transform, input_size=size, batch_size=batch_size,
        num_classes=num_classes if answers is None else len(answers), rank=rank, world_size=world_size,
        workers=loader_workers() if workers is None else workers, corrupt_share=corrupt_share,
    )  # fmt: skip
    damaged = 0
    counts = torch.zeros(5, dtype=torch.int64, device=device)
    losses = torch.zeros(1, dtype=torch.float64, device=device)
    by_class = torch.zeros(2 * num_classes if answers is None else 0, dtype=torch.int64, device=device)
    matrix = torch.zeros(num_classes**2 if confusion else 0, dtype=torch.int64, device=device)
    finite = torch.tensor(True, device=device)
    start, before_start, rows = time.perf_counter(), 0, 0
    with eval_mode(model):
        progress = tqdm(batches, desc=f"evaluating {printable(split.name)}", disable=rank != 0, leave=False)
        # Around all batches: autocast then converts each weight once.
        cast = torch.autocast(device.type, AUTOCAST[precision]) if precision != "no" else nullcontext()
        exact = float32_arithmetic(device.type, "exact")
        with torch.inference_mode(), exact, cast, progress:
            for number, batch in enumerate(on_device(progress, device)):
                if number == FIRST_BATCHES:
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    start, before_start = time.perf_counter(), rows
                rows += batch.total
                images = finish(batch, mean=config["mean"], std=config["std"], dtype=parameter.dtype)
                labels, mask = batch.labels, batch.mask
                damaged += batch.missing
                logits = model(images)
                finite &= logits.isfinite().all()
                best = logits.topk(min(5, num_classes), dim=1).indices
                if answers is None:
                    right, counted = best == labels[:, None], mask
                    losses += (F.cross_entropy(logits.float(), labels, reduction="none") * mask).sum(dtype=losses.dtype)
                else:
                    wanted = answers[labels]
                    right, counted = (best[:, :, None] == wanted[:, None]).any(2), mask & (wanted[:, 0] >= 0)
                hits = right & counted[:, None]
                if answers is None:
                    by_class.view(-1, 2).index_add_(0, labels, torch.stack([counted, hits[:, 0]], dim=1).long())
                counts[:4] += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), counted.sum(), mask.sum()])
                if confusion:
                    matrix.scatter_add_(0, labels * num_classes + best[:, 0], mask.long())
    if not finite:
        raise InputError("the model's outputs are not finite numbers: its weights are damaged or were never trained")
    counts[4] = damaged
    if total is not None:
        counts, losses = total(counts), total(losses)
        by_class = total(by_class) if answers is None else by_class
        matrix = total(matrix) if confusion else matrix
    top1, top5, number, seen, damaged = counts.tolist()
    require_few_damaged(damaged, split, corrupt_share)
    if seen + damaged != split.rows:
        raise RuntimeError(f"{seen} of the {split.rows} images of split {split.name!r} of {split.source} were counted")
    if number == 0:
        lacks = "can be decoded" if seen == 0 else "has a label"
        raise InputError(f"no image of split {split.name!r} of {split.source} {lacks}")
    return Accuracy(
        seen=seen,
        counted=number,
        top1=100 * top1 / number,
        top5=100 * top5 / number,
        loss=losses.item() / number if answers is None else None,
        images_per_second=(rows - before_start) / max(time.perf_counter() - start, 1e-9),  # a clock may stand still
        input_size=size,
        crop_pct=config["crop_pct"],
        precision=precision,
        class_counts=by_class.view(num_classes, 2).cpu().numpy() if answers is None else None,
        confusion=matrix.view(num_classes, num_classes).cpu().numpy() if confusion else None,
    )


def _require_size(model: nn.Module, size: int) -> None:
    """Raise `InputError` where the model cannot take images of `size` pixels; computes shapes only."""
    stages = getattr(model, "feature_info", None)
    reduction = stages[-1].get("reduction", 1) if isinstance(stages, list) and stages else 1
    if size > LONGEST_SIDE:
        raise InputError(f"input size {size}: must be at most {LONGEST_SIDE} pixels")
    if size < reduction:
        raise InputError(f"input size {size}: the model makes one value of {reduction} pixels, so it takes no fewer")
    try:
        with torch.no_grad():
            dtype = next(model.parameters()).dtype
            copy.deepcopy(model).to("meta").eval()(torch.zeros(1, 3, size, size, dtype=dtype, device="meta"))
    except Exception as error:  # whatever the model makes of it
        raise InputError(f"input size {size}: the model cannot take images of this size ({error})") from error


def _answer_table(split: Split, num_classes: int, device: torch.device) -> torch.Tensor:
    """Return the right classes of each image, `(images, most of them)`, filled up with -1."""
    assert split.right_classes is not None
    classes = split.right_classes.classes
    table = np.full((len(classes), max(1, *map(len, classes))), -1, np.int64)
    for number, right in enumerate(classes):
        if max(right, default=0) >= num_classes:
            place = split.place(number) if split.right_classes.file_pattern is None else f"image {number + 1}"
            raise InputError(f"{place}: labels {list(right)}, expected 0 to {num_classes - 1}")
        table[number, : len(right)] = right
    return torch.from_numpy(table).to(device)


def in_model_order(split: Split, model: nn.Module) -> Split:
    """Return the split with its classes numbered as the model numbers them, by their names (see `class_order`)."""
    if split.class_names is None:
        return split
    order = class_order(split.class_names, model, source=split.source)
    return split if order is None else in_class_order(split, order)


def with_real_labels(split: Split, model: nn.Module) -> Split:
    """Return a split of ImageNet's validation images with their reassessed labels (ReaL, arXiv 2006.07159).

    The images are known by their files' names. Errors: `InputError` where the model's classes are not ImageNet's.
    """
    return replace(split, right_classes=RightClasses(imagenet_real_labels(model), IMAGENET_FILE), class_order=None)


def per_class(confusion: np.ndarray) -> list[ClassAccuracy]:
    """Return the accuracy of each class from the confusion matrix `(classes, classes)`."""
    rows = []
    for number, predictions in enumerate(confusion):
        images, correct = int(predictions.sum()), int(predictions[number])
        others = predictions.copy()
        others[number] = 0
        mistaken_for = int(others.argmax())
        row = ClassAccuracy(
            number=number, images=images, correct=correct, top1=100 * correct / images if images else None,
            mistaken_for=mistaken_for if others[mistaken_for] else None, mistaken=int(others[mistaken_for]),
        )  # fmt: skip
        rows.append(row)
    return rows


def worst_classes(confusion: np.ndarray, names: Sequence[str] | None = None, most: int = 5) -> list[dict[str, Any]]:
    """Return the classes of lowest accuracy as `{index, name, top1}`, worst first, leaving out those without images."""
    found = [(row.top1, row.number) for row in per_class(confusion) if row.top1 is not None]
    return [
        {"index": number, "name": names[number] if names else str(number), "top1": round(top1, 4)}
        for top1, number in sorted(found)[:most]
    ]


def require_report(directory: Path) -> None:
    """Raise `InputError` where no report could be written into `directory`, before the work for it is done."""
    existing = next(folder for folder in (directory, *directory.absolute().parents) if os.path.exists(folder))
    if not os.path.isdir(existing):
        raise InputError(f"cannot write a report into {directory}: {existing} is no folder")
    if directory.is_dir():
        with only_writer(directory, patience=0):
            pass


def write_report(directory: Path, confusion: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Write `per_class.csv`, `confusion.csv` and `confusion.png`; a new folder appears whole.

    `confusion` counts images by class (row) and prediction (column); `names` are the classes'. Errors: `InputError`
    where the folder cannot be written.
    """
    named = list(names) if names else [str(number) for number in range(len(confusion))]

    def fill(folder: Path) -> None:
        with replacing(folder / PER_CLASS_NAME) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["class", "name", "images", "correct", "top1", "mistaken_for", "mistaken"])
            for row in per_class(confusion):
                wrong = "" if row.mistaken_for is None else named[row.mistaken_for]
                top1 = "" if row.top1 is None else f"{row.top1:.4f}"
                table.writerow([row.number, named[row.number], row.images, row.correct, top1, wrong, row.mistaken])
        with replacing(folder / CONFUSION_NAME) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["class \\ predicted", *named])
            table.writerows([name, *counts] for name, counts in zip(named, confusion.tolist(), strict=True))
        with replacing(folder / PICTURE_NAME) as temporary:
            draw_confusion(confusion, named, temporary)

    with only_writer(directory) if directory.is_dir() else nullcontext():
        fill_folder(directory, fill)
