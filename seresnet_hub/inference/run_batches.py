"""Run a model over the pictures of a split in batches that are always the same, whatever prepares them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from seresnet_hub.data.batch_augmentation import on_device
from seresnet_hub.data.decoding import Decoder, DecoderName
from seresnet_hub.data.loader import Batch, Loader
from seresnet_hub.data.loader_spec import LoaderSpec
from seresnet_hub.data.loader_workers import LoaderWorkers
from seresnet_hub.data.plan import Plan
from seresnet_hub.data.split import Split
from seresnet_hub.data.transforms import evaluation_transform, model_transform, normalize
from seresnet_hub.errors import InputError
from seresnet_hub.models.create import eval_mode
from seresnet_hub.torch_settings import AUTOCAST, Precision, float32_arithmetic

BATCH_SIZE = 32


class BatchAnswers(NamedTuple):
    """What a model says of one batch of rows, in order; tensors are float32 on the CPU, rows with an error are to be ignored.

    `first` numbers the first row within the split. `images` are the pictures' names: paths, addresses, or None. `labels`
    are int64, -1 where there is none. `errors` say why a picture could not be read, without its name. `logits` are
    `(rows, classes)`. `features` are `(rows, channels)` by name: "features" before the classifier, "features_stage2".
    """

    first: int
    images: list[str | None]
    labels: np.ndarray
    errors: list[str | None]
    logits: torch.Tensor | None
    features: dict[str, torch.Tensor]


class Outputs(NamedTuple):
    """What a model makes of one batch, on its device: logits, pooled features, and the maps of stages by number."""

    logits: torch.Tensor | None
    pooled: torch.Tensor | None
    maps: dict[int, torch.Tensor]


def batches_in(split: Split, batch_size: int) -> int:
    """Return how many batches a split has."""
    return -(-split.rows // batch_size)


def run_batches(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    start: int = 0,
    stop: int | None = None,
    logits: bool = True,
    features: Sequence[int | None] = (),
    precision: Precision = "no",
    decoder: DecoderName = "pil",
    loader_workers: LoaderWorkers | None = None,
) -> Iterator[BatchAnswers]:
    """Yield what a model says of the batches from `start` on, to the end or before batch `stop`.

    In `features`, None asks for the features before the classifier, and a number for that stage's map, pooled by its
    mean; all come out of one forward pass. Batch k has the rows from k times `batch_size` on; a picture that cannot be
    read leaves black in its place, and the last of several batches is filled up with black. So a row's bits depend
    neither on `workers` nor on where one starts. `loader_workers` are kept for later calls with the same model and
    split. Errors: `InputError` where the model cannot do this, or its outputs are not finite.
    """
    stages = [None if stage is None else checked_stage(model, stage) for stage in features]
    batches = forward_batches(
        model, split, batch_size=batch_size, workers=workers, start=start, stop=stop, logits=logits,
        pooled=None in stages, stages=[stage for stage in stages if stage is not None], precision=precision,
        decoder=decoder, loader_workers=loader_workers,
    )  # fmt: skip
    with closing(batches):
        for batch, outputs in batches:
            by_name = {} if outputs.pooled is None else {"features": outputs.pooled}
            by_name |= {f"features_stage{stage}": mean_of(one) for stage, one in outputs.maps.items()}
            numbers = batch.indices.tolist()
            yield BatchAnswers(
                first=numbers[0], images=[picture_name(split, row, batch.paths.get(row)) for row in numbers],
                labels=batch.labels.cpu().numpy(), errors=[batch.errors.get(row) for row in numbers],
                logits=None if outputs.logits is None else _finite(outputs.logits.float().cpu()),
                features={name: one.float().cpu() for name, one in by_name.items()},
            )  # fmt: skip


def picture_name(split: Split, row: int, path: str | None = None) -> str | None:
    """Return what a row's picture is called, None where it has no name; `path` is what the row of a data set says.

    Bytes of a name that are no UTF-8 are shown as escapes.
    """
    if split.pictures is not None:
        path = split.pictures.name(row)
    elif split.class_folders is not None:
        number = row if split.subset is None else int(split.subset.rows[0][row])
        path = split.class_folders.path(number)
    return None if path is None else path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def checked_stage(model: nn.Module, stage: int) -> int:
    """Return a stage counted from 0, the stem, where it may be counted from the end. Errors: `InputError`."""
    stages = len(cast(Any, model).feature_info)
    if not -stages <= stage < stages:
        raise InputError(f"stage={stage}: the model has stages 0 to {stages - 1}")
    return stage % stages


def mean_of(maps: torch.Tensor) -> torch.Tensor:
    """Return feature maps `(rows, channels, height, width)`, pooled: `(rows, channels)`."""
    return maps.mean((2, 3))


def forward_batches(
    model: nn.Module, split: Split, *, batch_size: int, workers: int, start: int = 0, stop: int | None = None,
    logits: bool, pooled: bool = False, stages: Sequence[int] = (), precision: Precision = "no",
    decoder: DecoderName = "pil", loader_workers: LoaderWorkers | None = None,
) -> Iterator[tuple[Batch, Outputs]]:  # fmt: skip
    """Yield each batch with what the model makes of its rows, on its device (see `run_batches`)."""
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: must be at least 1")
    if workers < 0:
        raise InputError(f"workers={workers}: must be at least 0")
    if precision != "no" and precision not in AUTOCAST:
        raise InputError(f"precision={precision}: must be no, {' or '.join(AUTOCAST)}")
    classes = getattr(model, "num_classes", 0)
    if logits and not classes:
        raise InputError("the model has no classifier: create it with num_classes > 0, or use extract_features")
    _, config = model_transform(model)
    parameter = next(model.parameters())
    network: Any = model
    loader = Loader(_spec(split, config, batch_size, workers, decoder), start, stop=stop, workers=loader_workers)
    rows_of_all = min(batch_size, split.rows)  # of each batch: one alone is not filled up

    def outputs_of(images: torch.Tensor) -> Outputs:
        if not (pooled or stages):
            return Outputs(network(images), None, {})
        wanted = sorted(set(stages))
        if wanted:
            last, found = network.forward_intermediates(images, indices=wanted)
        else:
            last, found = network.forward_features(images), []
        return Outputs(
            network.forward_head(last) if logits else None,
            network.forward_head(last, pre_logits=True) if pooled else None, dict(zip(wanted, found, strict=True)),
        )  # fmt: skip

    with closing(iter(loader)) as batches:
        for batch in on_device(batches, parameter.device):
            rows = len(batch.images)
            # Not around the loop: whoever takes the batches computes in between, in settings of its own.
            with ExitStack() as settings:
                settings.enter_context(eval_mode(model))
                settings.enter_context(torch.inference_mode())
                settings.enter_context(float32_arithmetic(parameter.device.type, "exact"))
                kind = AUTOCAST.get(precision)
                settings.enter_context(torch.autocast(parameter.device.type, kind) if kind else nullcontext())
                images = batch.images
                if rows < rows_of_all:
                    images = torch.cat([images, images.new_zeros(rows_of_all - rows, *images.shape[1:])])
                images = normalize(images, mean=config["mean"], std=config["std"], dtype=parameter.dtype)
                try:
                    outputs = outputs_of(images)
                except Exception as error:  # whatever the model makes of images of the size that its config names
                    shape = tuple(images.shape[1:])
                    raise InputError(f"the model does not run on images of {shape}: {error}") from error
                if logits and outputs.logits.shape != (rows_of_all, classes):
                    shape = tuple(outputs.logits.shape)
                    raise InputError(f"the model gives {shape} values for a batch, and not one for each class")
                outputs = Outputs(*(None if one is None else one[:rows] for one in outputs[:2]),
                                  {stage: one[:rows] for stage, one in outputs.maps.items()})  # fmt: skip
            yield batch, outputs


def _finite(logits: torch.Tensor) -> torch.Tensor:
    if not logits.isfinite().all():
        raise InputError("the model's outputs are not finite numbers: its weights are damaged or were never trained")
    return logits


def _spec(split: Split, config: dict[str, Any], batch_size: int, workers: int, decoder: DecoderName) -> LoaderSpec:
    shape = tuple(config["input_size"])
    return LoaderSpec(
        split=split, plan=Plan(unit_rows=split.unit_rows, batch_size=batch_size, lanes=1, order=None),
        decoder=_decoder(decoder, shape, config["interpolation"], config["crop_pct"], config["crop_mode"]),
        size=shape[-2:], num_classes=None, workers=workers, reports_errors=True,
    )  # fmt: skip


@lru_cache(maxsize=16)  # so that workers know a pass of the same model again
def _decoder(name: DecoderName, shape: tuple[int, ...], interpolation: str, crop_pct: float, crop_mode: str) -> Decoder:
    transform = evaluation_transform(
        input_size=shape, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode
    )
    return Decoder(transform, name)
