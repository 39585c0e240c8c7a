"""Training recipes: what to train, on what, and how, as frozen tables."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from seresnet_hub.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the machine it runs on.

    `batch_size` counts images over all processes. `data` is a folder or a Hub data set id; "digits" is the embedded
    one. `mean` and `std` default to the model's own.

    `shuffle_window` is the number of rows permuted together, over `lanes` (see `plan`). Up to `corrupt_share` of the
    images may be undecodable. `auto_augment` is a text in timm's language, "rand-m9-mstd0.5", "original" or "3a";
    `color_jitter` is a strength. With `repeated_augmentation` (arXiv 1901.09335) each image is so many times in its
    batch, and an epoch has as many fewer of them. `mixup` and `cutmix` are the alphas of their Beta distributions,
    `erasing` is a probability.

    `optimizer` is timm's name: its "sgd" has Nesterov momentum, its "momentum" has not. `decay_all` extends weight
    decay to biases and norm parameters. `num_classes` is needed only where the data set does not say.
    `license` is that of the trained weights, as an identifier of the Hub.
    """

    name: str
    model: str
    data: str | None
    train_split: str = "train"
    eval_split: str = "validation"
    num_classes: int | None = None

    epochs: int
    batch_size: int
    optimizer: str = "sgd"
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float
    decay_all: bool = True
    warmup_epochs: int = 0
    label_smoothing: float = 0.0

    crop: Literal["pad", "resized"]
    crop_padding: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: float = 0.5
    input_size: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    decoder: Literal["fast", "pil"] = "fast"
    auto_augment: str | None = None
    color_jitter: float = 0.0
    repeated_augmentation: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    crop_pct: float = 1.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    license: str = "apache-2.0"

    shuffle_window: int = 16384
    lanes: int = 24
    drop_last: bool = False
    corrupt_share: float = 0.001
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("model", "train_split", "eval_split", "optimizer", "license"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty")
        if self.num_classes is not None and self.num_classes < 1:
            raise InputError(f"num_classes={self.num_classes}: must be at least 1")
        if self.warmup_epochs >= self.epochs > 0 and self.warmup_epochs:
            raise InputError(f"warmup_epochs={self.warmup_epochs}: must be fewer than the {self.epochs} epochs")
        positive = ("epochs", "batch_size", "learning_rate", "input_size", "shuffle_window", "crop_pct", "lanes",
                    "repeated_augmentation")  # fmt: skip
        fractions = ("label_smoothing", "horizontal_flip", "momentum", "corrupt_share", "erasing")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}: must be a finite number greater than 0")
        for name in (
            "weight_decay",
            "warmup_epochs",
            "crop_padding",
            "seed",
            "workers",
            "color_jitter",
            "mixup",
            "cutmix",
        ):
            if not 0 <= getattr(self, name) < 2**63:
                raise InputError(f"{name}={getattr(self, name)}: must not be negative, nor beyond 2**63")
        for name in fractions:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: must be between 0 and 1")
        if self.batch_size % self.repeated_augmentation:
            raise InputError(
                f"batch_size={self.batch_size}: must be a multiple of "
                f"repeated_augmentation={self.repeated_augmentation}"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale={self.scale}: must be a range within 0 and 1, the smaller number first")
        if not 0.01 <= self.crop_pct <= 1:
            raise InputError(f"crop_pct={self.crop_pct}: must be between 0.01 and 1")
        for name in ("input_size", "crop_padding"):
            if getattr(self, name) > 4096:
                raise InputError(f"{name}={getattr(self, name)}: must be at most 4096 pixels")
        if self.std is not None and not all(1e-6 < value < math.inf for value in self.std):
            raise InputError(f"std={self.std}: must be greater than 0")
        if self.mean is not None and not all(math.isfinite(value) for value in self.mean):
            raise InputError(f"mean={self.mean}: must be finite")


DIGITS = Recipe(
    name="digits",
    model="seresnet20_cifar",
    data="digits",
    epochs=20,
    batch_size=64,
    learning_rate=0.1,
    weight_decay=5e-4,
    crop="pad",
    crop_padding=2,
    horizontal_flip=0.0,
    input_size=16,
)
"""The first run: 1,437 of scikit-learn's 8 x 8 handwritten digits, tested on the other 360.

`accelerate launch scripts/train.py`
"""

CIFAR10 = Recipe(
    name="cifar10",
    model="seresnet20_cifar",
    data="uoft-cs/cifar10",
    eval_split="test",
    epochs=5,
    batch_size=128,
    learning_rate=0.2,
    weight_decay=5e-4,
    warmup_epochs=1,
    crop="pad",
    crop_padding=4,
    horizontal_flip=0.5,
    input_size=32,
)
"""A short CIFAR-10 run with the augmentation of He et al. (arXiv 1512.03385, section 4.2): pad by 4, crop, flip.

`accelerate launch scripts/train.py --recipe cifar10` needs minutes on two CPU cores; a smoke test, not a result.
"""

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (DIGITS, CIFAR10)}


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`; `InputError` lists the known ones where there is none."""
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}; there are: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def override(recipe: Recipe, assignments: typing.Sequence[str]) -> Recipe:
    """Return `recipe` with fields replaced by `key=value` texts, each checked by name and type.

    Tuples are written `0.08,1.0`; `none` clears a field that may be empty. Errors: `InputError` names the field.
    """
    hints = typing.get_type_hints(Recipe)
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator:
            raise InputError(f"--set {assignment!r}: write it as key=value")
        if key not in hints or key == "name":
            known = ", ".join(field.name for field in fields(Recipe) if field.name != "name")
            raise InputError(f"--set {key}: a recipe has no such field; it has: {known}")
        try:
            changes[key] = _parse(text.strip(), hints[key])
        except ValueError as error:
            raise InputError(f"--set {key}={text}: {error}") from None
    return replace(recipe, **changes)


def _parse(text: str, hint: Any) -> Any:
    """Read `text` as the type `hint`; `ValueError` says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none":
            return None
        return _parse(text, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        if text not in arguments:
            raise ValueError(f"expected one of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        parts = text.strip("()[]").split(",")
        if len(parts) != len(arguments):
            raise ValueError(f"expected {len(arguments)} numbers separated by commas")
        return tuple(_parse(part.strip(), kind) for part, kind in zip(parts, arguments, strict=True))
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
