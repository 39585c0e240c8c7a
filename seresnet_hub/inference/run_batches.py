"""Run a model over the pictures of a split in batches that are always the same, whatever prepares them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
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
from seresnet_hub.engines.exported_model import require_network
from seresnet_hub.errors import InputError
from seresnet_hub.inference.sources import picture_name
from seresnet_hub.models.create import eval_mode
from seresnet_hub.torch_settings import AUTOCAST, Precision, float32_arithmetic

BATCH_SIZE = 32


class BatchAnswers(NamedTuple):
    """What a model says of one batch of rows, in order; what it says of rows with an error means nothing.

    `first` numbers the first row within the split. `images` are the pictures' names: paths, addresses, or None.
    `labels` are int64, -1 where there is none. `errors` say why a picture could not be read, without its name.
    `logits` are `(rows, classes)`. `features` are `(rows, channels)`: "features" before the classifier,
    "features_stage2" of a stage. Tensors are float32 on the CPU.
    """

    first: int
    images: list[str | None]
    labels: np.ndarray
    errors: list[str | None]
    logits: torch.Tensor | None
    features: dict[str, torch.Tensor]


class Outputs(NamedTuple):
    """What a model makes of one batch, on its device: logits, and features.

    Features are before the classifier under None, `(rows, channels)`, and a stage's map under its number.
    """

    logits: torch.Tensor | None
    features: Mapping[int | None, torch.Tensor]


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
) -> Generator[BatchAnswers, None, None]:
    """Yield what a model says of the batches from `start` on, to the end or before batch `stop`.

    In `features`, None asks for the features before the classifier, and a number for that stage's map, pooled by its
    mean; all come out of one forward pass. Batch k has the rows from k times `batch_size` on; a picture that cannot be
    read leaves black in its place, and the last of several batches is filled up with black. So a row's bits depend
    neither on `workers` nor on where one starts. `loader_workers` are kept for later calls with the same model and
    split. Errors: `InputError` where the model cannot do this, or its outputs are not finite.
    """
    if logits:
        require_classifier(model)
    stages = [None if stage is None else checked_stage(model, stage) for stage in features]
    batches = forward_batches(
        model, split, batch_size=batch_size, workers=workers, start=start, stop=stop, logits=logits, features=stages,
        precision=precision, decoder=decoder, loader_workers=loader_workers,
    )  # fmt: skip
    with closing(batches):
        for batch, outputs in on_cpu(batches):
            numbers = batch.indices.tolist()
            if outputs.logits is not None and not outputs.logits.isfinite().all():
                raise InputError(
                    "the model's outputs are not finite numbers: its weights are damaged or were never trained"
                )
            yield BatchAnswers(
                first=numbers[0],
                images=[picture_name(split, row, batch.paths.get(row)) for row in numbers],
                labels=batch.labels.numpy(),
                errors=[batch.errors.get(row) for row in numbers],
                logits=outputs.logits,
                features={name_of(stage): one for stage, one in outputs.features.items()},
            )


def on_cpu(batches: Iterable[tuple[Batch, Outputs]]) -> Iterator[tuple[Batch, Outputs]]:
    """Yield batches with what a model makes of them as float32 on the CPU, maps pooled.

    From a GPU each is copied while it computes the next one.
    """
    before: tuple[Batch, Outputs, Any] | None = None
    for batch, outputs in batches:
        logits = None if outputs.logits is None else _copied(outputs.logits)
        copied = Outputs(logits, {stage: _copied(pooled_map(one)) for stage, one in outputs.features.items()})
        if all(one is None or not one.is_cuda for one in (outputs.logits, *outputs.features.values())):
            yield batch, copied
            continue
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        if before is not None:
            before[2].synchronize()
            yield before[:2]
        before = batch, copied, event
    if before is not None:
        before[2].synchronize()
        yield before[:2]


def _copied(values: torch.Tensor) -> torch.Tensor:
    values = values.float()
    if not values.is_cuda:
        return values.cpu()
    return torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)


def name_of(stage: int | None) -> str:
    """Return what the features of a stage are called, or with None those before the classifier."""
    return "features" if stage is None else f"features_stage{stage}"


def require_classifier(model: nn.Module) -> None:
    """Raise `InputError` where a model names no classes."""
    if not getattr(model, "num_classes", 0):
        raise InputError("the model has no classifier: create it with num_classes > 0, or use extract_features")


def checked_stage(model: nn.Module, stage: int) -> int:
    """Return a stage counted from 0, the stem, where it may be counted from the end. Errors: `InputError`."""
    require_network(model, "features")
    stages = len(cast(Any, model).feature_info)
    if not -stages <= stage < stages:
        raise InputError(f"stage={stage}: the model has stages 0 to {stages - 1}")
    return stage % stages


def pooled_map(features: torch.Tensor) -> torch.Tensor:
    """Return the mean of maps `(rows, channels, height, width)`, and other features as they are: `(rows, channels)`."""
    return features.mean((2, 3)) if features.ndim == 4 else features


def forward_batches(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int,
    workers: int,
    start: int = 0,
    stop: int | None = None,
    logits: bool,
    features: Sequence[int | None] = (),
    precision: Precision = "no",
    decoder: DecoderName = "pil",
    loader_workers: LoaderWorkers | None = None,
) -> Generator[tuple[Batch, Outputs], None, None]:
    """Yield each batch without its images, and what the model makes of its rows, on its device (see `run_batches`)."""
    if precision != "no" and precision not in AUTOCAST:
        raise InputError(f"precision={precision}: must be no, {' or '.join(AUTOCAST)}")
    for what, asked in (("autocast", precision != "no"), ("features", features)):
        if asked:
            require_network(model, what)
    _, config = model_transform(model)
    parameter = next(model.parameters())
    kind = parameter.device.type
    size = min(batch_size, split.rows)  # of each batch: one alone is not filled up
    decoded = decoded_batches(
        model, split, batch_size=batch_size, workers=workers, start=start, stop=stop, decoder=decoder,
        loader_workers=loader_workers,
    )  # fmt: skip
    waiting: deque[Batch] = deque()  # asking a GPU for labels would wait for it

    def noted() -> Iterator[Batch]:
        for batch in decoded:
            waiting.append(batch._replace(images=torch.empty(0)))
            yield batch

    with closing(decoded):
        for batch in on_device(noted(), parameter.device):
            images, rows = batch.images, len(batch.images)
            # Not around the loop: whoever takes the batches computes in between, in settings of its own.
            with ExitStack() as settings:
                settings.enter_context(eval_mode(model))
                settings.enter_context(torch.inference_mode())
                settings.enter_context(float32_arithmetic(kind, "exact"))
                if precision != "no":
                    settings.enter_context(torch.autocast(kind, AUTOCAST[precision]))
                if rows < size:
                    images = torch.cat([images, images.new_zeros(size - rows, *images.shape[1:])])
                images = normalize(images, mean=config["mean"], std=config["std"], dtype=parameter.dtype)
                outputs = _outputs(model, images, logits, features)
                own = Outputs(
                    None if outputs.logits is None else outputs.logits[:rows],
                    {stage: one[:rows] for stage, one in outputs.features.items()},
                )
            del batch, images
            yield waiting.popleft(), own


def decoded_batches(
    model: nn.Module, split: Split, *, batch_size: int = BATCH_SIZE, workers: int = 0, start: int = 0,
    stop: int | None = None, decoder: DecoderName = "pil", loader_workers: LoaderWorkers | None = None,
) -> Generator[Batch, None, None]:  # fmt: skip
    """Return the batches of rows as a model takes them, but for the normalisation (see `run_batches`)."""
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: must be at least 1")
    if workers < 0:
        raise InputError(f"workers={workers}: must be at least 0")
    _, config = model_transform(model)
    shape = tuple(config["input_size"])
    spec = LoaderSpec(
        split=split, plan=Plan(unit_rows=split.unit_rows, batch_size=batch_size, lanes=1, order=None),
        decoder=_decoder(decoder, shape, config["interpolation"], config["crop_pct"], config["crop_mode"]),
        size=shape[-2:], num_classes=None, workers=workers, reports_errors=True,
    )  # fmt: skip
    batches = iter(Loader(spec, start, stop=stop, workers=loader_workers))
    return cast(Generator[Batch, None, None], batches)


def _outputs(model: nn.Module, images: torch.Tensor, logits: bool, features: Sequence[int | None]) -> Outputs:
    network: Any = model
    stages = sorted({stage for stage in features if stage is not None})
    found: dict[int | None, torch.Tensor] = {}
    scores = None
    try:
        if not features:
            scores = network(images)
        else:
            if stages:
                last, maps = network.forward_intermediates(images, indices=stages)
                found.update(zip(stages, maps, strict=True))
            else:
                last = network.forward_features(images)
            if None in features:
                found[None] = network.forward_head(last, pre_logits=True)
            scores = network.forward_head(last) if logits else None
    except Exception as error:  # whatever the model makes of images of the size that its config names
        raise InputError(f"the model does not run on images of {tuple(images.shape[1:])}: {error}") from error
    if scores is not None and scores.shape != (len(images), network.num_classes):
        raise InputError(f"the model gives {tuple(scores.shape)} values for a batch, and not one for each class")
    return Outputs(scores, found)


@lru_cache(maxsize=16)  # so that workers know a pass of the same model again
def _decoder(name: DecoderName, shape: tuple[int, ...], interpolation: str, crop_pct: float, crop_mode: str) -> Decoder:
    transform = evaluation_transform(
        input_size=shape, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode
    )
    return Decoder(transform, name)
