"""Measure a model on a labelled split: every image once, counted."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from seresnet_hub.data.batch_augmentation import finish, on_device
from seresnet_hub.data.class_names import IMAGENET_FILE, class_order, imagenet_real_labels
from seresnet_hub.data.damaged_images import require_few_damaged
from seresnet_hub.data.loader import Loader, evaluation_spec
from seresnet_hub.data.loader_spec import LoaderSpec
from seresnet_hub.data.loader_workers import LoaderWorkers
from seresnet_hub.data.split import RightClasses, Split, in_class_order
from seresnet_hub.data.transforms import model_transform
from seresnet_hub.engines.exported_model import require_network
from seresnet_hub.environment import loader_workers
from seresnet_hub.errors import InputError, printable
from seresnet_hub.evaluation.class_subset import ClassSubset, subset_for
from seresnet_hub.evaluation.counts import Counts
from seresnet_hub.evaluation.image_records import ImageRecords, Recorder
from seresnet_hub.evaluation.out_of_memory import with_smaller_batches
from seresnet_hub.evaluation.test_time_augmentation import (
    TestTimeAugmentation,
    answer,
    require_augmentation,
    resized_transform,
)
from seresnet_hub.models.create import eval_mode
from seresnet_hub.recipes.field_types import LEAST_CROP_PCT, LONGEST_SIDE
from seresnet_hub.torch_settings import AUTOCAST, Precision, float32_arithmetic

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
    image. `precision` is what the model computed in: "no" is the type of its weights. `batch_size` is how many images a
    process had at a time, and `classes` the model's classes that were told apart, where these were not all: what is
    counted by class, and `records`, numbers these. `records`, on request, are those of every image.
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
    batch_size: int = 0
    tta: TestTimeAugmentation | None = None
    classes: tuple[int, ...] | None = field(default=None, repr=False)
    class_counts: np.ndarray | None = field(default=None, repr=False, compare=False)
    confusion: np.ndarray | None = field(default=None, repr=False, compare=False)
    records: ImageRecords | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What models of one kind are measured on, and how; made by `evaluation_of`.

    This process has the batches from `start` on, before `stop`. `num_classes` are those that are told apart. `main` is
    whether it is process 0, and `whole_batches` whether each process has batches of its own.
    """

    spec: LoaderSpec
    config: dict[str, Any]
    num_classes: int
    right_classes: torch.Tensor | None
    confusion: bool
    precision: Precision
    tta: TestTimeAugmentation | None = None
    subset: ClassSubset | None = None
    records: bool = False
    start: int = 0
    stop: int | None = None
    main: bool = True
    whole_batches: bool = False


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 128,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
    gather: Callable[[Any], list[Any]] | None = None,
    input_size: int | None = None,
    crop_pct: float | None = None,
    confusion: bool = False,
    corrupt_share: float = 0.0,
    precision: Precision = "no",
    tta: TestTimeAugmentation | None = None,
    classes: Sequence[int] | None = None,
    records: bool = False,
) -> Accuracy:
    """Return loss, top-1 and top-5 accuracy of `model` on every image of `split`, each counted once.

    The result is an `Accuracy`, in percent. Each rank takes a stretch of the batches, which are the same for any number
    of them; `total` sums a tensor over them, and `gather` lists what each gives it. `input_size` and
    `crop_pct` replace those of the model's config, `confusion` asks for the confusion matrix. Where images have
    several right classes (`Split.right_classes`), one of them is enough, and an image that has none is not counted.
    Up to `corrupt_share` of the images may be undecodable (see `most_damaged`): they are left out, and not `seen`.
    `precision` is the type of autocast that the model computes in; "no" is the type of its weights, and float32 is
    then exact, on a GPU too. `tta` averages over views of each image (see `test_time_augmentation.answer`). `classes`
    restricts the model to some of its classes (see `class_subset.subset_for`), `records` asks for what is said of each
    image. `workers=None` starts as many as suit the machine. Where the memory is not enough, the batch size is halved.
    `images_per_second` is measured after the first two batches, in which workers start and a compiled model compiles;
    where there are no more, over all. Errors: `InputError` where a label lies outside the model's classes, more images
    cannot be decoded, the model does not take the size or there is no such precision; `RuntimeError` if not every image
    was counted.
    """

    def counted(size: int) -> tuple[Evaluation, _Counted]:
        evaluation = evaluation_of(
            model, split, batch_size=size, workers=workers, rank=rank, world_size=world_size, input_size=input_size,
            crop_pct=crop_pct, confusion=confusion, corrupt_share=corrupt_share, precision=precision, tta=tta,
            classes=classes, records=records, whole_batches=True,
        )  # fmt: skip
        return evaluation, _count(model, evaluation, None)

    if records and world_size > 1 and gather is None:
        raise ValueError("records of several processes need `gather`")
    (evaluation, result), _ = with_smaller_batches(counted, batch_size, gather=gather)
    return _accuracy(evaluation, result, total, gather)


def evaluation_of(
    model: nn.Module, split: Split, *, batch_size: int = 128, workers: int | None = None, rank: int = 0,
    world_size: int = 1, input_size: int | None = None, crop_pct: float | None = None, confusion: bool = False,
    corrupt_share: float = 0.0, precision: Precision = "no", tta: TestTimeAugmentation | None = None,
    classes: Sequence[int] | None = None, records: bool = False, whole_batches: bool = False,
) -> Evaluation:  # fmt: skip
    """Return what `evaluate` would do with these arguments; reads no image.

    Ranks divide each batch of `batch_size` images, unless they have `whole_batches` of so many. Errors: `InputError`
    where the arguments, the model and the split do not go together.
    """
    subset = None if classes is None else subset_for(split, model, classes)
    _require_arguments(
        model, split, batch_size=batch_size, workers=workers, world_size=1 if whole_batches else world_size,
        crop_pct=crop_pct, confusion=confusion, precision=precision, subset=subset,
    )  # fmt: skip
    require_augmentation(tta)
    model_classes: int = model.num_classes  # type: ignore[assignment]
    overrides = {"input_size": (3, input_size, input_size) if input_size is not None else None, "crop_pct": crop_pct}
    if input_size is not None:
        _require_size(model, input_size)
    transform, config = model_transform(model, **overrides)
    size: tuple[int, int] = tuple(config["input_size"][-2:])
    if tta == "tencrop":
        transform, size = resized_transform(config)
    device = next(model.parameters()).device
    right_classes = _right_class_table(split, model_classes, device)
    labels = model_classes if subset is None else subset.label_classes
    spec = evaluation_spec(
        split, transform, input_size=size, batch_size=batch_size,
        num_classes=labels if right_classes is None else len(right_classes),
        rank=0 if whole_batches else rank, world_size=1 if whole_batches else world_size,
        workers=loader_workers() if workers is None else workers, corrupt_share=corrupt_share,
    )  # fmt: skip
    start, stop = 0, None
    if whole_batches:
        start, stop = (spec.plan.steps * number // world_size for number in (rank, rank + 1))
    return Evaluation(
        spec=replace(spec, reports_paths=records), config=config,
        num_classes=model_classes if subset is None else len(subset.classes),
        right_classes=right_classes, confusion=confusion, precision=precision, tta=tta, subset=subset,
        records=records, start=start, stop=stop, main=rank == 0, whole_batches=whole_batches,
    )  # fmt: skip


def measure(
    model: nn.Module,
    evaluation: Evaluation,
    *,
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
    workers: LoaderWorkers | None = None,
) -> Accuracy:
    """Return what `evaluate` does, of a model like the one that the evaluation was made for.

    `workers` are those of a run; without them workers are started for this evaluation alone.
    """
    return _accuracy(evaluation, _count(model, evaluation, workers), total, None)


class _Counted(NamedTuple):
    """What one process has counted, and how many images a second it saw."""

    counts: Counts
    recorder: Recorder | None
    images_per_second: float


def _count(model: nn.Module, evaluation: Evaluation, workers: LoaderWorkers | None) -> _Counted:
    """Run the model over this process's images; no process waits for another one."""
    spec, config, precision, subset = evaluation.spec, evaluation.config, evaluation.precision, evaluation.subset
    split, parameter = spec.split, next(model.parameters())
    device, size = parameter.device, tuple(config["input_size"][-2:])
    batches = Loader(spec, evaluation.start, stop=evaluation.stop, workers=workers)
    counts = Counts(
        evaluation.num_classes, device, right_classes=evaluation.right_classes, confusion=evaluation.confusion
    )
    recorder = Recorder(split.rows, evaluation.num_classes) if evaluation.records else None
    classes = None if subset is None else torch.tensor(subset.classes, device=device)
    labels_of = None if subset is None or subset.labels is None else torch.tensor(subset.labels, device=device)
    start, before_start, rows = time.perf_counter(), 0, 0
    with eval_mode(model):
        progress = tqdm(batches, desc=f"evaluating {printable(split.name)}", disable=not evaluation.main, leave=False)
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
                logits = answer(model, images, name=evaluation.tta, size=size, classes=classes)
                if labels_of is not None:
                    batch = batch._replace(labels=labels_of[batch.labels])
                counts.add(logits, batch)
                if recorder is not None:
                    one_class = evaluation.right_classes is None
                    recorder.add(logits, batch, batch.labels if one_class else None)
    if not counts.finite:
        raise InputError("the model's outputs are not finite numbers: its weights are damaged or were never trained")
    seconds = max(time.perf_counter() - start, 1e-9)  # a clock may stand still
    return _Counted(counts, recorder, (rows - before_start) / seconds)


def _accuracy(
    evaluation: Evaluation, result: _Counted, total: Callable[[torch.Tensor], torch.Tensor] | None,
    gather: Callable[[Any], list[Any]] | None,
) -> Accuracy:  # fmt: skip
    """Return what all processes have counted together."""
    spec, (counts, recorder, images_per_second) = evaluation.spec, result
    split = spec.split
    counts.finish(total)
    top1, top5, counted, seen, damaged = counts.images.tolist()
    require_few_damaged(damaged, split, spec.corrupt_share)
    if seen + damaged != split.rows:
        raise RuntimeError(f"{seen} of the {split.rows} images of split {split.name!r} of {split.source} were counted")
    if counted == 0:
        lacks = "can be decoded" if seen == 0 else "has a label"
        raise InputError(f"no image of split {split.name!r} of {split.source} {lacks}")
    if total is not None and evaluation.whole_batches:
        images_per_second = total(counts.losses.new_tensor([images_per_second])).item()
    records = None
    if recorder is not None:
        part = recorder.part()
        records = recorder.joined([part] if gather is None else gather(part))
    return Accuracy(
        seen=seen,
        counted=counted,
        top1=100 * top1 / counted,
        top5=100 * top5 / counted,
        loss=counts.losses.item() / counted if evaluation.right_classes is None else None,
        images_per_second=images_per_second,
        input_size=tuple(evaluation.config["input_size"][-2:]),
        crop_pct=evaluation.config["crop_pct"],
        precision=evaluation.precision,
        batch_size=spec.plan.batch_size,
        tta=evaluation.tta,
        classes=None if evaluation.subset is None else evaluation.subset.classes,
        class_counts=None if counts.classes is None else counts.classes.cpu().numpy(),
        confusion=None if counts.confusion is None else counts.confusion.cpu().numpy(),
        records=records,
    )


def _require_arguments(
    model: nn.Module, split: Split, *, batch_size: int, workers: int | None, world_size: int, crop_pct: float | None,
    confusion: bool, precision: str, subset: ClassSubset | None,
) -> None:  # fmt: skip
    if batch_size < world_size:
        raise InputError(f"batch size {batch_size}: must be at least {world_size}, one image for each process")
    if split.rows == 0:
        raise InputError(f"split {split.name!r} of {split.source} is empty")
    num_classes: int = model.num_classes  # type: ignore[assignment]
    if not num_classes:
        raise InputError("the model has no classifier: create it with num_classes > 0")
    if split.class_names and len(split.class_names) != num_classes and subset is None:
        raise InputError(f"{split.source} has {len(split.class_names)} classes, the model {num_classes}")
    if confusion and split.right_classes is not None:
        raise InputError(f"images of {split.source} have several right classes, so there is no confusion matrix of it")
    if subset is not None:
        num_classes = len(subset.classes)
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
    if precision != "no":
        require_network(model, "autocast")


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


def _right_class_table(split: Split, num_classes: int, device: torch.device) -> torch.Tensor | None:
    """Return the right classes of each image, `(images, most of them)`, filled up with -1; `None` where it has one."""
    if split.right_classes is None:
        return None
    classes, file_pattern = split.right_classes
    table = np.full((len(classes), max(1, *map(len, classes))), -1, np.int64)
    for number, right in enumerate(classes):
        if max(right, default=0) >= num_classes:
            place = split.place(number) if file_pattern is None else f"image {number + 1}"
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
