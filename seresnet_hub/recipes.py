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
    one. `mean` and `std` default to the model's own. `eval_size` is the image size of evaluation, where it is another.

    `shuffle_window` is the number of rows permuted together, over `lanes` (see `plan`). Up to `corrupt_share` of the
    images may be undecodable. `auto_augment` is a text in timm's language, "rand-m9-mstd0.5", "original" or "3a";
    `color_jitter` is a strength. With `repeated_augmentation` (arXiv 1901.09335) each image is so many times in its
    batch, and an epoch has as many fewer of them. `mixup` and `cutmix` are the alphas of their Beta distributions,
    `erasing` is a probability.

    `weights` is where to start: a timm name with a tag, `hf-hub:NS/NAME` or `local-dir:DIR`; none is a random start.
    `schedule="step"` multiplies the learning rate by `decay_rate` at the start of each of `decay_epochs`, "cosine" lets
    it fall to 0 step by step; before, it rises for `warmup_epochs` from `warmup_learning_rate`. `loss="binary"` is a
    binary cross entropy for each class, over targets that are 1 where they exceed `target_threshold`, if that is set.
    `ema_decay` above 0 keeps a moving average of weights and statistics, which is then what is measured and saved.
    `clip_grad` is the largest norm of all gradients together, 0 for any. Each process's part of a batch is computed in
    `accumulation` pieces. `checkpoint_steps` is the number of steps between states to resume from, 0 for epochs alone.

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

    weights: str | None = None

    epochs: int
    batch_size: int
    optimizer: str = "sgd"
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float
    decay_all: bool = True
    schedule: Literal["cosine", "step"] = "cosine"
    decay_epochs: tuple[int, ...] = ()
    decay_rate: float = 0.1
    warmup_epochs: int = 0
    warmup_learning_rate: float = 0.0
    clip_grad: float = 0.0
    accumulation: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_steps: int = 0

    drop_path: float = 0.0
    ema_decay: float = 0.0
    loss: Literal["softmax", "binary"] = "softmax"
    target_threshold: float | None = None
    label_smoothing: float = 0.0

    crop: Literal["pad", "resized"]
    crop_padding: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: float = 0.5
    input_size: int
    eval_size: int | None = None
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
                    "repeated_augmentation", "decay_rate", "accumulation")  # fmt: skip
        fractions = (
            "label_smoothing",
            "horizontal_flip",
            "momentum",
            "corrupt_share",
            "erasing",
            "ema_decay",
            "drop_path",
        )
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
            "warmup_learning_rate",
            "clip_grad",
            "checkpoint_steps",
        ):
            if not 0 <= getattr(self, name) < 2**63:
                raise InputError(f"{name}={getattr(self, name)}: must not be negative, nor beyond 2**63")
        for name in fractions:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: must be between 0 and 1")
        if (self.schedule == "step") != bool(self.decay_epochs):
            raise InputError(f"decay_epochs={self.decay_epochs}: needed with schedule=step, and only with it")
        if list(self.decay_epochs) != sorted({*self.decay_epochs}) or min((1, *self.decay_epochs)) < 1:
            raise InputError(f"decay_epochs={self.decay_epochs}: must be epochs from 1 on, each later than the last")
        if self.ema_decay == 1 or self.drop_path == 1:
            raise InputError(f"ema_decay={self.ema_decay}, drop_path={self.drop_path}: must be less than 1")
        if self.batch_size % self.repeated_augmentation:
            raise InputError(
                f"batch_size={self.batch_size}: must be a multiple of "
                f"repeated_augmentation={self.repeated_augmentation}"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale={self.scale}: must be a range within 0 and 1, the smaller number first")
        if not 0.01 <= self.crop_pct <= 1:
            raise InputError(f"crop_pct={self.crop_pct}: must be between 0.01 and 1")
        if self.eval_size is not None and self.eval_size < 1:
            raise InputError(f"eval_size={self.eval_size}: must be at least 1")
        for name in ("input_size", "crop_padding", "eval_size"):
            if (getattr(self, name) or 0) > 4096:
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

SERESNET50_8XB32_IN1K = Recipe(
    name="seresnet50_8xb32_in1k",
    model="seresnet50",
    data="ILSVRC/imagenet-1k",
    epochs=140,
    batch_size=256,
    optimizer="momentum",
    learning_rate=0.1,
    weight_decay=1e-4,
    schedule="step",
    decay_epochs=(40, 80, 120),
    crop="resized",
    input_size=224,
    decoder="pil",
    crop_pct=0.875,
    drop_last=False,
    shuffle_window=2400,
    workers=8,
)
"""mmpretrain's SE-ResNet-50 (configs/seresnet/seresnet50_8xb32_in1k.py): 77.74 top-1, 93.84 top-5 published.

`accelerate launch scripts/train.py --recipe seresnet50_8xb32_in1k`. Not run here: needs ImageNet and GPUs.
"""

SERESNET101_8XB32_IN1K = replace(
    SERESNET50_8XB32_IN1K,
    name="seresnet101_8xb32_in1k",
    model="seresnet101",
    epochs=100,
    decay_epochs=(30, 60, 90),
)
"""mmpretrain's SE-ResNet-101 (configs/seresnet/seresnet101_8xb32_in1k.py): 78.26 top-1, 94.07 top-5 published.

`accelerate launch scripts/train.py --recipe seresnet101_8xb32_in1k`. Not run here.
"""

SENET_PAPER = replace(
    SERESNET50_8XB32_IN1K,
    name="senet_paper",
    epochs=100,
    batch_size=1024,
    learning_rate=0.6,
    decay_epochs=(30, 60, 90),
    label_smoothing=0.1,
)
"""The SENet paper's training (arXiv 1709.01507v4, section 6.1): 77.72 top-1 reported, after longer training.

`accelerate launch scripts/train.py --recipe senet_paper`. Not run here.
"""

CIFAR10_PAPER = replace(
    CIFAR10,
    name="cifar10_paper",
    epochs=164,
    optimizer="momentum",
    learning_rate=0.1,
    weight_decay=1e-4,
    warmup_epochs=0,
    schedule="step",
    decay_epochs=(82, 123),
)
"""He et al.'s schedule (arXiv 1512.03385, section 4.2): 64,000 steps of 128, the rate divided at 32,000 and 48,000.

`accelerate launch scripts/train.py --recipe cifar10_paper --set model=seresnet56_cifar`. Whole epochs of 391 steps
here: 64,124 in all, divided at 32,062 and 48,093. Not run here.
"""

RSB_A2 = Recipe(
    name="rsb_a2",
    model="seresnet50",
    data="ILSVRC/imagenet-1k",
    epochs=300,
    batch_size=2046,
    optimizer="lamb",
    learning_rate=5e-3,
    weight_decay=0.02,
    decay_all=False,
    warmup_epochs=5,
    warmup_learning_rate=5e-7,
    loss="binary",
    drop_path=0.05,
    crop="resized",
    input_size=224,
    interpolation="bicubic",
    crop_pct=0.95,
    auto_augment="rand-m7-mstd0.5-inc1",
    repeated_augmentation=3,
    mixup=0.1,
    cutmix=1.0,
    shuffle_window=9600,
    workers=8,
)
"""Procedure A2 of "ResNet strikes back" (arXiv 2110.00476, table 2): timm's seresnet50.a2_in1k has 80.10 top-1 at 224.

`accelerate launch scripts/train.py --recipe rsb_a2`. Not run here. The paper's batch is 2,048; here it is 682 images,
three times each. The rate falls step by step where timm's falls epoch by epoch.
"""

RSB_A1 = replace(RSB_A2, name="rsb_a1", epochs=600, weight_decay=0.01, label_smoothing=0.1, mixup=0.2)
"""Procedure A1 of "ResNet strikes back" (arXiv 2110.00476, table 2): timm's seresnet50.a1_in1k has 80.01 top-1 at 224.

`accelerate launch scripts/train.py --recipe rsb_a1`. Not run here.
"""

RSB_A3 = replace(
    RSB_A2,
    name="rsb_a3",
    epochs=100,
    learning_rate=8e-3,
    drop_path=0.0,
    input_size=160,
    eval_size=224,
    batch_size=2048,
    auto_augment="rand-m6-mstd0.5-inc1",
    repeated_augmentation=1,
)
"""Procedure A3 of "ResNet strikes back" (arXiv 2110.00476, table 2): timm's seresnet50.a3_in1k has 77.04 top-1 at 224.

`accelerate launch scripts/train.py --recipe rsb_a3`. Not run here.
"""

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        DIGITS,
        CIFAR10,
        CIFAR10_PAPER,
        SERESNET50_8XB32_IN1K,
        SERESNET101_8XB32_IN1K,
        SENET_PAPER,
        RSB_A1,
        RSB_A2,
        RSB_A3,
    )
}


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
        parts = text.strip("()[]").strip(",").split(",")
        if arguments[-1] is Ellipsis:
            return tuple(_parse(part.strip(), arguments[0]) for part in parts if part.strip())
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
