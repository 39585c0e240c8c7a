"""What each field of a recipe means, and how its values are written: for people, on the command line and in files."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from seresnet_hub.errors import InputError

# Marks fields that may be `None` until `finetuning.resolved` gives them the value that fits the weights and the data.
FOLLOWS = "follows the weights and the data"
AUTO_TEXT, NONE_TEXT = "auto", "none"
# The largest images that a model folder may ask for: with more, a stranger's few bytes could fill anybody's memory.
# timm's largest has 1,024 pixels a side, and the smallest share of a crop there is 0.875.
LONGEST_SIDE = 2048
LEAST_CROP_PCT = 0.1

# One line for each field of `Recipe`, in the same order. This is the only place where they are explained.
FIELDS: dict[str, str] = {
    "name": "the recipe's name",
    "model": "architecture, by timm's name; auto: that of the weights",
    "data": "a folder, a Hub data set id, a glob of files, or digits, the embedded data set; none: name it with --data",
    "train_split": "the split to train on",
    "eval_split": "the split to measure on; none: validation, else test, else the part that holdout keeps",
    "holdout": "share of each class's training images that is measured on and never trained on, where no split is for "
    "that; which ones depends on seed; from 0 to 1",
    "num_classes": "number of classes, where the data set does not say it",
    "weights": "weights to start from: a timm name with a tag, NS/NAME on the Hub or a model folder; none: a random "
    "start",
    "new_head": "true: a new classifier always; false: only where the number of classes differs",
    "freeze": "the last part, counted from the image, that does not change: neither its weights nor its statistics",
    "backbone_lr_factor": "learning rate of all but the classifier, as a multiple of the classifier's",
    "bn_momentum": "weight of a new batch in batch norm's running statistics; none: torch's own, 0.1",
    "zero_init_last": "whether residual branches begin at zero (arXiv 1706.02677, section 5.1); none: as the "
    "model does",
    "epochs": "passes over the training images",
    "batch_size": "images in a step, over all processes",
    "optimizer": "timm's name of it; sgd has Nesterov momentum, momentum has not",
    "optimizer_eps": "the optimizer's epsilon; none: its own",
    "learning_rate": "the largest learning rate, of base_batch_size images where lr_scaling is not none",
    "lr_scaling": "how learning_rate changes with batch_size / base_batch_size: not, with it (arXiv 1706.02677), or "
    "with its square root",
    "base_batch_size": "the batch size that learning_rate is for; needed with lr_scaling=linear or sqrt",
    "momentum": "momentum of the optimizer; from 0 to 1",
    "weight_decay": "weight decay",
    "decay_all": "true: weight decay on all parameters; false: not on biases and norms",
    "schedule": "how the rate falls: cosine, to 0 step by step; step, by decay_rate at each of decay_epochs; "
    "staircase, by decay_rate every decay_every epochs",
    "decay_epochs": "epochs at whose start the rate falls, for schedule=step",
    "decay_every": "epochs between two falls, for schedule=staircase",
    "decay_rate": "what a fall multiplies the rate by",
    "warmup_epochs": "epochs in which the rate rises to learning_rate; fewer than epochs",
    "warmup_learning_rate": "the rate at which the warm-up begins, never scaled",
    "clip_grad": "the largest norm of all gradients together; 0: any",
    "accumulation": "pieces in which each process computes its part of a batch, for less memory",
    "mixed_precision": "no: float32 throughout",
    "checkpoint_steps": "steps between two states to resume from; 0: at the ends of epochs alone",
    "keep_states": "how many of the last states are kept",
    "eval_every": "epochs between two measurements, which also write the model folders; the last is measured always",
    "save_every": "epochs between two states to resume from; after the last epoch there is always one",
    "eval_precision": "autocast in the measurements during training; no: float32, as validate.py measures",
    "compile": "true: torch.compile; batches smaller than the others run uncompiled",
    "inductor": "settings of Inductor, torch's compiler, key=value,key=value; needs compile=true. Worth trying on a "
    "GPU: triton.cudagraphs=true (3 % faster for seresnet50 on an H200), triton.max_tiles=1",
    "deterministic": "true: algorithms that give the same bits each time, also on a GPU, where they are slower",
    "se_blocks": "true: this package's forms of timm's SE blocks, which are faster in training; needs compile=true",
    "grad_checkpointing": "true: compute activations again in the backward pass, for less memory",
    "sync_bn": "true: batch norm's statistics over all GPUs; with compile=true within the compiled graph",
    "dropout": "drop-out before the classifier; from 0 to 1",
    "drop_path": "the largest stochastic depth (arXiv 1603.09382); from 0 to 1",
    "ema_decay": "decay of a moving average of the weights, which is then what is measured and saved; 0: none",
    "loss": "softmax: cross entropy; binary: a binary cross entropy for each class",
    "target_threshold": "with loss=binary: a class counts as present where its share is larger; none: shares count",
    "label_smoothing": "label smoothing; from 0 to 1",
    "crop": "pad: resize, pad by crop_padding and crop (arXiv 1512.03385, section 4.2); resized: a random part of the "
    "picture, resized",
    "crop_padding": "pixels on each side, for crop=pad",
    "scale": "smallest and largest share of the picture's area, for crop=resized",
    "horizontal_flip": "probability of mirroring a picture; 0 where left and right make a difference",
    "input_size": "height and width in training, in pixels",
    "eval_size": "height and width in evaluation; none: input_size",
    "interpolation": "how pictures are resized",
    "decoder": "fast: JPEG files by torchvision, in training alone; pil: the pixels of timm's own transforms",
    "auto_augment": "in timm's language, such as rand-m9-mstd0.5, original or 3a; or ta_wide, torchvision's "
    "TrivialAugment (arXiv 2103.10158); none: no such augmentation",
    "color_jitter": "strength of random changes of colour",
    "repeated_augmentation": "how many times each image is in its batch (arXiv 1901.09335), its copies dealt out "
    "among the processes; an epoch has as many fewer",
    "mixup": "alpha of the Beta distribution that mixes pairs of images; 0: none are mixed",
    "cutmix": "alpha of the Beta distribution of patches from other images; 0: no patches",
    "erasing": "probability of erasing a rectangle, which becomes noise, after mixing",
    "crop_pct": "in evaluation, the crop's share of the resized picture's edge",
    "mean": "mean of each channel in [0, 1]; none: the model's own",
    "std": "standard deviation of each channel; none: the model's own",
    "license": "licence of the trained weights, as an identifier of the Hub; none: that of the weights it starts from, "
    "apache-2.0 for a random start",
    "shuffle_window": "rows that are permuted together, over all lanes",
    "lanes": "streams of rows that each batch takes from in equal parts (see plan.py)",
    "drop_last": "true: leave out the last batch of an epoch where it is smaller",
    "corrupt_share": "share of the images that may be undecodable, in small data sets a few; more end the run; 0: none "
    "may",
    "seed": "seed of all random numbers",
    "workers": "loader processes on each training process",
}  # fmt: skip


def closest(given: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the most similar of the `known` names, or nothing where none is similar."""
    found = difflib.get_close_matches(given.lower(), list(known), 1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def may_follow(hint: Any) -> bool:
    """Return whether a field of this type hint may be "auto"."""
    return typing.get_origin(hint) is typing.Annotated and FOLLOWS in hint.__metadata__


def following(recipe: Any) -> list[str]:
    """Return the names of a recipe's fields that still follow the weights and the data."""
    hints = typing.get_type_hints(type(recipe), include_extras=True)
    return [name for name, hint in hints.items() if may_follow(hint) and getattr(recipe, name) is None]


def parse(text: str, hint: Any) -> Any:
    """Read `text` as the type `hint`; `ValueError` says what was expected."""
    if may_follow(hint):
        return None if text.lower() == AUTO_TEXT else parse(text, hint.__origin__)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == NONE_TEXT:
            return None
        return parse(text, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        if text not in arguments:
            raise ValueError(f"expected one of {', '.join(map(str, arguments))}{closest(text, arguments)}")
        return text
    if origin is tuple:
        parts = text.strip("()[]").strip(",").split(",")
        if arguments[-1] is Ellipsis:
            return tuple(parse(part.strip(), arguments[0]) for part in parts if part.strip())
        if len(parts) != len(arguments):
            raise ValueError(f"expected {len(arguments)} numbers separated by commas")
        return tuple(parse(part.strip(), kind) for part, kind in zip(parts, arguments, strict=True))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"expected {'a whole number' if hint is int else 'a number'}") from None
    return text


def values_of(hint: Any) -> str:
    """Return in words which values a field of this type hint takes, as `--set` reads them."""
    if may_follow(hint):
        return f"{values_of(hint.__origin__)}, or {AUTO_TEXT}"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return f"{values_of(next(a for a in arguments if a is not type(None)))}, or {NONE_TEXT}"
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        kind = {int: "whole numbers", float: "numbers", str: "texts"}[arguments[0]]
        return f"{kind} separated by commas" if arguments[-1] is Ellipsis else f"{len(arguments)} {kind}: a,b,…"
    names = {bool: "true | false", int: "whole number", float: "number", str: "text"}
    return names[hint]


def written(value: Any, hint: Any = None) -> str:
    """Return a field's value as `--set` takes it."""
    if value is None:
        return AUTO_TEXT if may_follow(hint) else NONE_TEXT
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def described(recipe: Any) -> list[dict[str, Any]]:
    """Return each field of a recipe as `{field, value, values, explanation}`; texts as `--set` takes them."""
    hints = typing.get_type_hints(type(recipe), include_extras=True)
    return [
        {"field": field.name, "value": written(getattr(recipe, field.name), hints[field.name]),
         "values": values_of(hints[field.name]), "explanation": FIELDS[field.name]}
        for field in dataclasses.fields(recipe)
    ]  # fmt: skip


def parsed(assignments: Iterable[str], kind: type) -> dict[str, Any]:
    """Return the fields of the dataclass `kind` that `key=value` texts set. Errors: `InputError` names the field."""
    hints = typing.get_type_hints(kind, include_extras=True)
    known = [name for name in hints if name != "name"]
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator:
            raise InputError(f"--set {assignment!r}: write it as key=value")
        if key not in known:
            near = closest(key, known) or f"; it has: {', '.join(known)}"
            raise InputError(f"--set {key}: a recipe has no such field{near} (train.py --show-recipe explains each)")
        try:
            changes[key] = parse(text.strip(), hints[key])
        except ValueError as error:
            raise InputError(f"--set {key}={text}: {error}") from None
    return changes
