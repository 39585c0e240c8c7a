"""Name what pictures show, and take features out of a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from seresnet_hub.data.class_names import class_names
from seresnet_hub.data.picture_list import ImageInput
from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError
from seresnet_hub.inference.image_inputs import listed
from seresnet_hub.inference.run_batches import (
    BATCH_SIZE,
    BatchAnswers,
    checked_stage,
    forward_batches,
    pooled_map,
    require_classifier,
    run_batches,
)
from seresnet_hub.inference.sources import named_error, open_sources, picture_name
from seresnet_hub.models.load import load
from seresnet_hub.torch_settings import Precision

Images = ImageInput | Sequence[ImageInput] | Split


def predict(
    model: nn.Module | str | Path,
    images: Images,
    topk: int = 5,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    unreadable: Callable[[int, InputError], None] | None = None,
) -> list[list[dict[str, Any]]]:
    """Return the `topk` most probable classes of each image, best first, as `{index, name, score}`.

    `model` is a model or a name that `load` takes. `images` is one picture or a list of them, each a path, an address
    of http or https, encoded bytes, Pillow's image, or an array: uint8, `(height, width, 3)` in RGB order or grey
    `(height, width)`. OpenCV reads BGR, as mmpretrain takes it: give `array[..., ::-1]`. An array `(n, height, width,
    3)` is a list of n. A folder stands for its pictures, and a data set for its rows (see `open_sources`). Scores are
    softmax probabilities in [0, 1]. Works on the model's device, in eval mode, with the model's own preprocessing, in
    batches of `batch_size`; `workers` processes decode, which changes no result. Errors: `InputError` where a picture
    cannot be read, the model has no classifier, or its name cannot be loaded. With `unreadable`, it is called with the
    number and the error of each picture that cannot be read, whose classes are an empty list.
    """
    model = load(model) if isinstance(model, (str, Path)) else model
    if topk < 1:
        raise InputError(f"topk={topk}: must be at least 1")
    require_classifier(model)
    names = class_names(model)
    results: list[list[dict[str, Any]]] = []
    with closing(run_batches(model, _opened(images), batch_size=batch_size, workers=workers)) as batches:
        for answers in batches:
            assert answers.logits is not None
            scores, indices = answers.logits.softmax(dim=-1).topk(min(topk, answers.logits.shape[-1]))
            columns = zip(answers.images, answers.errors, indices.tolist(), scores.tolist(), strict=True)
            for number, (image, error, *best) in enumerate(columns, answers.first):
                if error is None:
                    named = [(k, names[k] if names else str(k), score) for k, score in zip(*best, strict=True)]
                    results.append([{"index": k, "name": name, "score": score} for k, name, score in named])
                    continue
                if unreadable is None:
                    raise _unreadable(image, error)
                unreadable(number, _unreadable(image, error))
                results.append([])
    return results


@overload
def extract_features(
    model: nn.Module | str | Path, images: Images, stage: int | None = None, *, batch_size: int = BATCH_SIZE,
    workers: int = 0, pooled: bool = False,
) -> torch.Tensor: ...  # fmt: skip
@overload
def extract_features(
    model: nn.Module | str | Path, images: Images, stage: Sequence[int | None], *, batch_size: int = BATCH_SIZE,
    workers: int = 0, pooled: bool = False,
) -> list[torch.Tensor]: ...  # fmt: skip
def extract_features(
    model: nn.Module | str | Path,
    images: Images,
    stage: int | Sequence[int | None] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    pooled: bool = False,
) -> torch.Tensor | list[torch.Tensor]:
    """Return pooled features `(images, channels)`, or with `stage` the map `(images, channels, height, width)`.

    Stages count as in timm's `feature_info`: 0 is the stem, then one for each stage; negative ones count from the end.
    Several stages give a list of tensors, all from one forward pass; None among them is the features before the
    classifier. With `pooled` a stage is the mean of its map: `(images, channels)`. The other arguments are those of
    `predict`. The result is on the model's device, all of it in memory: for more see `iterate_features`. Errors:
    `InputError` as for `predict`, and where there is no such stage.
    """
    network = load(model) if isinstance(model, (str, Path)) else model
    asked = [stage] if stage is None or isinstance(stage, int) else list(stage)
    stages = [None if one is None else checked_stage(network, one) for one in asked]
    split, found = _opened(images), [list[torch.Tensor]() for _ in stages]
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "logits": False, "features": stages}
    with closing(forward_batches(network, split, **options)) as batches:
        for batch, outputs in batches:
            for row, reason in batch.errors.items():
                raise _unreadable(picture_name(split, row, batch.paths.get(row)), reason)
            for one, parts in zip(stages, found, strict=True):
                parts.append(pooled_map(outputs.features[one]) if pooled else outputs.features[one])
    tensors = [torch.cat(parts) for parts in found]
    return tensors[0] if stage is None or isinstance(stage, int) else tensors


def iterate_features(
    model: nn.Module | str | Path,
    images: Images,
    stages: Sequence[int | None] = (None,),
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    precision: Precision = "no",
) -> Generator[BatchAnswers, None, None]:
    """Yield the pooled features of images batch by batch, of as many as there are: `BatchAnswers`, without logits.

    The arguments are those of `extract_features`; `precision` is the type of autocast. A picture that cannot be read
    is a row with its error.
    """
    network = load(model) if isinstance(model, (str, Path)) else model
    return run_batches(
        network, _opened(images), batch_size=batch_size, workers=workers, logits=False, features=stages,
        precision=precision,
    )  # fmt: skip


def _opened(images: Images) -> Split:
    return images if isinstance(images, Split) else open_sources(listed(images), missing_are_rows=True)


def _unreadable(image: str | None, error: str) -> InputError:
    return InputError(named_error(image, error))
