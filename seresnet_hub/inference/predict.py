"""Name what pictures show, and take features out of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seresnet_hub.data.class_names import class_names
from seresnet_hub.data.transforms import Transform, model_transform, normalize, require_resizable
from seresnet_hub.errors import InputError
from seresnet_hub.inference.image_inputs import ImageInput, listed, read_picture
from seresnet_hub.models.create import eval_mode
from seresnet_hub.models.load import load

BATCH_SIZE = 32


def predict(
    model: nn.Module | str | Path,
    images: ImageInput | Sequence[ImageInput],
    topk: int = 5,
    *,
    unreadable: Callable[[int, InputError], None] | None = None,
) -> list[list[dict[str, Any]]]:
    """Return the `topk` most probable classes of each image, best first, as `{index, name, score}`.

    `model` is a model or a name that `load` takes. `images` is one picture or a list of them, each a path, an address
    of http or https, encoded bytes, Pillow's image, or an array: uint8, `(height, width, 3)` in RGB order or grey
    `(height, width)`. OpenCV reads BGR, as mmpretrain takes it: give `array[..., ::-1]`. An array `(n, height, width,
    3)` is a list of n. Scores are softmax probabilities in [0, 1]. Works in batches on the model's device, in eval
    mode, with the model's own preprocessing. Errors: `InputError` where a picture cannot be read, the model has no
    classifier, or its name cannot be loaded. With `unreadable`, it is called with the number and the error of each
    picture that cannot be read, whose classes are an empty list.
    """
    model = load(model) if isinstance(model, (str, Path)) else model
    if topk < 1:
        raise InputError(f"topk={topk}: must be at least 1")
    if not getattr(model, "num_classes", 0):
        raise InputError("the model has no classifier: create it with num_classes > 0, or use extract_features")
    names = class_names(model)
    results: list[list[dict[str, Any]]] = []
    outputs, left_out = _in_batches(model, images, model, unreadable)
    for logits in outputs:
        if logits.ndim != 2 or logits.shape[1] != model.num_classes:
            raise InputError(f"the model gives {tuple(logits.shape)} values for a batch, and not one for each class")
        if not logits.isfinite().all():
            raise InputError(
                "the model's outputs are not finite numbers: its weights are damaged or were never trained"
            )
        scores, indices = logits.float().softmax(dim=-1).topk(min(topk, logits.shape[-1]))
        results += [
            [{"index": k, "name": names[k] if names else str(k), "score": score} for k, score in zip(*row, strict=True)]
            for row in zip(indices.tolist(), scores.tolist(), strict=True)
        ]
    for number in left_out:  # in order, so that each comes to its place
        results.insert(number, [])
    return results


def extract_features(
    model: nn.Module | str | Path, images: ImageInput | Sequence[ImageInput], stage: int | None = None
) -> torch.Tensor:
    """Return pooled features `(batch, channels)`, or with `stage` the map `(batch, channels, height, width)`.

    Stages count as in timm's `feature_info`: 0 is the stem, then one for each stage; negative ones count from the end.
    `model` and `images` are those of `predict`. The result is on the model's device. Errors: `InputError` as for
    `predict`, and where there is no such stage.
    """
    network: Any = load(model) if isinstance(model, (str, Path)) else model
    if stage is None:
        maps, _ = _in_batches(
            network, images, lambda x: network.forward_head(network.forward_features(x), pre_logits=True)
        )
        return torch.cat(maps)
    stages = len(network.feature_info)
    if not -stages <= stage < stages:
        raise InputError(f"stage={stage}: the model has stages 0 to {stages - 1}")
    options = {"indices": [stage % stages], "intermediates_only": True}
    maps, _ = _in_batches(network, images, lambda x: network.forward_intermediates(x, **options)[0])
    return torch.cat(maps)


def _in_batches(
    model: nn.Module,
    images: ImageInput | Sequence[ImageInput],
    forward: Any,
    unreadable: Callable[[int, InputError], None] | None = None,
) -> tuple[list[torch.Tensor], list[int]]:
    """Return the outputs of `forward` for the images, batch by batch, and the numbers of the images left out.

    In eval mode, on the model's device. Images that cannot be read are left out if `unreadable` is there to be told.
    """
    pictures = listed(images)
    transform, config = model_transform(model)
    parameter = next(model.parameters())
    with eval_mode(model), torch.inference_mode():
        outputs, left_out = [], []
        for start in range(0, len(pictures), BATCH_SIZE):
            read: list[torch.Tensor] = []
            for number, picture in enumerate(pictures[start : start + BATCH_SIZE], start):
                try:
                    read.append(_prepared(picture, transform))
                except InputError as error:
                    if unreadable is None:
                        raise
                    unreadable(number, error)
                    left_out.append(number)
            if not read:
                continue
            batch = torch.stack(read).to(parameter.device)
            batch = normalize(batch, mean=config["mean"], std=config["std"], dtype=parameter.dtype)
            try:
                outputs.append(forward(batch))
            except Exception as error:  # whatever the model makes of images of the size that its config names
                raise InputError(f"the model does not run on images of {tuple(batch.shape[1:])}: {error}") from error
        return outputs, left_out


def _prepared(picture: ImageInput, transform: Transform) -> torch.Tensor:
    image = read_picture(picture)
    try:
        require_resizable(transform, image.size)
    except InputError as error:
        name = f"{picture}: " if isinstance(picture, (str, Path)) else ""
        raise InputError(f"{name}{error}") from error
    return transform(image)
