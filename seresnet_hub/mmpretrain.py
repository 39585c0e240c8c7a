"""The calls that users of mmpretrain know, over this package's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.inference.pictures import Picture
from seresnet_hub.inference.predict import predict
from seresnet_hub.models.load import load


def get_model(name: str | Path, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create a model under mmpretrain's call, in eval mode: random weights unless `pretrained`, which are then checked.

    `name` is mmpretrain's, or any that `load` takes. Errors: `InputError` as for `load`, and where `pretrained` is a
    checkpoint, as mmpretrain takes them: convert it to a model folder first, whose path is then the name.
    """
    if not isinstance(pretrained, bool):
        raise InputError(
            f"get_model(pretrained={str(pretrained)!r}): True or False is needed; convert a checkpoint first "
            f"(scripts/convert.py {pretrained} --output DIR, or seresnet_hub.convert), then load DIR"
        )
    return load(name, pretrained=pretrained, **kwargs)


def inference_model(model: nn.Module | str | Path, image: Picture) -> dict[str, Any]:
    """Return the most probable class of one image, as mmpretrain's `inference_model` does.

    The keys are `pred_label` (class index), `pred_score` (probability in [0, 1]) and `pred_class` (its name).
    `model` is a model, or a name that `load` takes. An array is in RGB order, where mmpretrain takes OpenCV's BGR: give
    `array[..., ::-1]`. Errors: as for `predict`.
    """
    best = predict(model, [image], topk=1)[0][0]
    return {"pred_label": best["index"], "pred_score": best["score"], "pred_class": best["name"]}
