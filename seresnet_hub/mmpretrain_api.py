"""The calls that users of mmpretrain know, over this package's own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from seresnet_hub.conversion.convert import convert
from seresnet_hub.data.picture_list import ImageInput
from seresnet_hub.errors import InputError
from seresnet_hub.inference.predict import predict
from seresnet_hub.models.load import load
from seresnet_hub.models.names import architecture_of


def get_model(name: str | Path, pretrained: bool | str | Path = False, **kwargs: Any) -> nn.Module:
    """Create a model in eval mode, as mmpretrain's `get_model` does.

    `name` is mmpretrain's name or any that `load` takes. `pretrained` is False for random weights, True for the
    published ones, or a checkpoint that `convert` takes: a file, a URL, or a Hub file `NS/NAME:path`. A checkpoint is
    converted for the architecture of that name, with all checks of `convert`, and nothing is kept on the disk. `kwargs`
    are those of `load`. Errors: `InputError` as for `load` and `convert`, and where the checkpoint does not fit.
    """
    if isinstance(pretrained, bool):
        return load(name, pretrained=pretrained, **kwargs)
    if not isinstance(pretrained, str | Path):
        raise InputError(f"get_model(pretrained={pretrained!r}): True, False or a checkpoint is needed")
    architecture = architecture_of(str(name))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        try:
            convert(pretrained, folder, model=architecture)
        except InputError as error:
            raise InputError(f"{pretrained} cannot become a {architecture}: {error}") from error
        return load(folder, **kwargs)


def inference_model(model: nn.Module | str | Path, image: ImageInput) -> dict[str, Any]:
    """Return the most probable class of one image, as mmpretrain's `inference_model` does.

    The keys are `pred_label` (class index), `pred_score` (probability in [0, 1]) and `pred_class` (its name).
    `model` is a model, or a name that `load` takes. An array is in RGB order, where mmpretrain takes OpenCV's BGR: give
    `array[..., ::-1]`. Errors: as for `predict`.
    """
    best = predict(model, [image], topk=1)[0][0]
    return {"pred_label": best["index"], "pred_score": best["score"], "pred_class": best["name"]}
