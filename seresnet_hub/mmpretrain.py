"""The calls that users of mmpretrain know, over this package's own."""

from __future__ import annotations

from typing import Any

from torch import nn

from seresnet_hub.inference import Picture, predict


def inference_model(model: nn.Module | str, image: Picture) -> dict[str, Any]:
    """Return the most probable class of one image, as mmpretrain's `inference_model` does.

    The keys are `pred_label` (class index), `pred_score` (probability in [0, 1]) and `pred_class` (its name).
    `model` is a model, or a name that `create` takes. Errors: as for `predict`.
    """
    best = predict(model, [image], topk=1)[0][0]
    return {"pred_label": best["index"], "pred_score": best["score"], "pred_class": best["name"]}
