"""Training recipes: what to train, on what, and how, as frozen tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.fields import AUTO_TEXT, FOLLOWS, LEAST_CROP_PCT, LONGEST_SIDE, closest, parsed

Value = TypeVar("Value")
# The type says what a field is where it is used; before, it may be AUTO.
Followed = Annotated[Value, FOLLOWS]
AUTO: Any = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the machine it runs on.

    `recipe_fields.FIELDS` explains each field, and `scripts/train.py --show-recipe` prints that. A field that may be
    "auto" is `AUTO` here until `finetuning.resolved` gives it the value that fits the weights and the data. Errors:
    `InputError` names a field with a wrong value.
    """

    name: str
    model: Followed[str]
    data: str | None
    train_split: str = "train"
    eval_split: str | None = "validation"
    holdout: float = 0.0
    num_classes: int | None = None

    weights: str | None = None
    new_head: bool = False
    freeze: Literal["nothing", "stem", "layer1", "layer2", "layer3", "layer4", "backbone"] = "nothing"
    backbone_lr_factor: Followed[float] = 1.0
    bn_momentum: float | None = None
    zero_init_last: bool | None = None

    epochs: Followed[int]
    batch_size: Followed[int]
    optimizer: str = "sgd"
    optimizer_eps: float | None = None
    learning_rate: Followed[float]
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    base_batch_size: int | None = None
    momentum: float = 0.9
    weight_decay: float
    decay_all: bool = True
    schedule: Literal["cosine", "step", "staircase"] = "cosine"
    decay_epochs: tuple[int, ...] = ()
    decay_every: float | None = None
    decay_rate: float = 0.1
    warmup_epochs: Followed[int] = 0
    warmup_learning_rate: float = 0.0
    clip_grad: float = 0.0
    accumulation: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_steps: int = 0
    keep_states: int = 2
    eval_every: int = 1
    save_every: int = 1
    eval_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    inductor: tuple[str, ...] = ()
    deterministic: bool = False
    se_blocks: bool = False
    grad_checkpointing: bool = False
    sync_bn: bool = False

    dropout: float = 0.0
    drop_path: float = 0.0
    ema_decay: float = 0.0
    loss: Literal["softmax", "binary"] = "softmax"
    target_threshold: float | None = None
    label_smoothing: float = 0.0

    crop: Literal["pad", "resized"]
    crop_padding: int = 4
    scale: Followed[tuple[float, float]] = (0.08, 1.0)
    horizontal_flip: float = 0.5
    input_size: Followed[int]
    eval_size: int | None = None
    interpolation: Followed[Literal["bilinear", "bicubic"]] = "bilinear"
    decoder: Literal["fast", "pil"] = "fast"
    auto_augment: str | None = None
    color_jitter: float = 0.0
    repeated_augmentation: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    crop_pct: Followed[float] = 1.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    license: str | None = None

    shuffle_window: int = 16384
    lanes: int = 24
    drop_last: bool = False
    corrupt_share: float = 0.001
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("model", "train_split", "eval_split", "optimizer", "license", "weights"):
            if getattr(self, name) == "":
                raise InputError(f"{name} is empty")
        if self.num_classes is not None and self.num_classes < 1:
            raise InputError(f"num_classes={self.num_classes}: must be at least 1")
        if None not in (self.epochs, self.warmup_epochs) and 0 < self.epochs <= self.warmup_epochs:
            raise InputError(f"warmup_epochs={self.warmup_epochs}: must be fewer than the {self.epochs} epochs")
        positive = ("epochs", "batch_size", "learning_rate", "input_size", "shuffle_window", "crop_pct", "lanes",
                    "repeated_augmentation", "decay_rate", "accumulation", "keep_states", "backbone_lr_factor",
                    "base_batch_size", "decay_every", "bn_momentum", "optimizer_eps", "eval_every",
                    "save_every")  # fmt: skip
        fractions = (
            "label_smoothing",
            "horizontal_flip",
            "momentum",
            "corrupt_share",
            "erasing",
            "ema_decay",
            "dropout",
            "drop_path",
            "holdout",
        )
        for name in positive:
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
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
            if getattr(self, name) is not AUTO and not 0 <= getattr(self, name) < 2**63:
                raise InputError(f"{name}={getattr(self, name)}: must not be negative, nor beyond 2**63")
        for name in fractions:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: must be between 0 and 1")
        if (self.schedule == "step") != bool(self.decay_epochs):
            raise InputError(f"decay_epochs={self.decay_epochs}: needed with schedule=step, and only with it")
        if list(self.decay_epochs) != sorted({*self.decay_epochs}) or min((1, *self.decay_epochs)) < 1:
            raise InputError(f"decay_epochs={self.decay_epochs}: must be epochs from 1 on, each later than the last")
        for name in ("ema_decay", "dropout", "drop_path", "holdout"):
            if getattr(self, name) == 1:
                raise InputError(f"{name}=1: must be less than 1")
        if (self.schedule == "staircase") != (self.decay_every is not None):
            raise InputError(f"decay_every={self.decay_every}: needed with schedule=staircase, and only with it")
        if (self.lr_scaling == "none") != (self.base_batch_size is None):
            raise InputError(
                f"base_batch_size={self.base_batch_size}: needed with lr_scaling=linear or sqrt, and only with them"
            )
        if self.target_threshold is not None and self.loss != "binary":
            raise InputError(f"target_threshold={self.target_threshold}: needs loss=binary")
        if self.inductor and not self.compile:
            raise InputError(f"inductor={','.join(self.inductor)}: of no effect without compile=true: set both")
        graphs = any(setting.replace(" ", "").lower() == "triton.cudagraphs=true" for setting in self.inductor)
        if graphs and self.accumulation > 1:  # torch sums wrongly there, or fails (pytorch issues 96693 and 169545)
            raise InputError(
                f"accumulation={self.accumulation}: gradients are not summed over pieces with triton.cudagraphs=true; "
                "set accumulation=1, or leave CUDA graphs out"
            )
        if self.bn_momentum is not None and self.bn_momentum > 1:
            raise InputError(f"bn_momentum={self.bn_momentum}: must be between 0 and 1, the weight of a new batch")
        if self.holdout and self.eval_split is not None:
            raise InputError(
                f"holdout={self.holdout}: nothing is held out where eval_split={self.eval_split} is measured on; set "
                "holdout=0 too, or eval_split=none"
            )
        if self.freeze != "nothing" and self.weights is None:
            raise InputError(f"freeze={self.freeze}: there is nothing to keep in a random start; set weights too")
        if self.zero_init_last is not None and self.weights is not None:
            raise InputError(
                f"zero_init_last={self.zero_init_last}: of no effect where weights={self.weights} are read"
            )
        if self.batch_size is not AUTO and self.batch_size % self.repeated_augmentation:
            raise InputError(
                f"batch_size={self.batch_size}: must be a multiple of "
                f"repeated_augmentation={self.repeated_augmentation}"
            )
        if self.scale is not AUTO and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale={self.scale}: must be a range within 0 and 1, the smaller number first")
        if self.crop_pct is not AUTO and not LEAST_CROP_PCT <= self.crop_pct <= 1:
            raise InputError(f"crop_pct={self.crop_pct}: must be between {LEAST_CROP_PCT} and 1")
        if self.eval_size is not None and self.eval_size < 1:
            raise InputError(f"eval_size={self.eval_size}: must be at least 1")
        for name in ("input_size", "crop_padding", "eval_size"):
            if (getattr(self, name) or 0) > LONGEST_SIDE:
                raise InputError(f"{name}={getattr(self, name)}: must be at most {LONGEST_SIDE} pixels")
        if self.std is not None and not all(1e-6 < value < math.inf for value in self.std):
            raise InputError(f"std={self.std}: must be greater than 0")
        if self.mean is not None and not all(math.isfinite(value) for value in self.mean):
            raise InputError(f"mean={self.mean}: must be finite")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up: `learning_rate` by the rule `lr_scaling`."""
        if self.base_batch_size is None:
            return self.learning_rate
        ratio = self.batch_size / self.base_batch_size
        return self.learning_rate * (ratio if self.lr_scaling == "linear" else math.sqrt(ratio))


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

`accelerate launch scripts/train.py` needs half a minute to two on two CPU cores: 99.72 top-1 measured here (seed 0).
"""

CIFAR10 = Recipe(
    name="cifar10",
    model="seresnet20_cifar",
    data="uoft-cs/cifar10",
    eval_split="test",
    epochs=15,
    batch_size=128,
    learning_rate=0.2,
    weight_decay=5e-4,
    warmup_epochs=1,
    mixed_precision="bf16",
    crop="pad",
    crop_padding=4,
    horizontal_flip=0.5,
    input_size=32,
)
"""A short CIFAR-10 run with the augmentation of He et al. (arXiv 1512.03385, section 4.2): pad by 4, crop, flip.

`accelerate launch scripts/train.py --recipe cifar10` needs 20 to 30 minutes on two CPU cores (bfloat16 in AVX-512).
Longer trainings of other authors reach 93.99 with this network (pytorchcv); 15 epochs are not meant to. On a copy of
the images as JPEG of quality 75, three seeds gave 85.17, 84.29 and 84.13 (84.53 ± 0.56), and with
`--set model=resnet20_cifar` 85.15, 84.79 and 85.01 (84.98 ± 0.18): so small a network gains nothing by SE in so short a
run. (pytorchcv's long ones: 94.03 without it.)
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

`accelerate launch scripts/train.py --recipe seresnet50_8xb32_in1k`. Estimated, not run here: 51 hours on one RTX 3090.

Like all hours of ImageNet recipes here, these are 1,281,167 images an epoch divided by what timm's benchmark of
training reaches on that card with mixed precision and channels_last (seresnet50: 972 images/s, seresnet101: 590, at
224), so they are the least it takes: loading, evaluation and the moving average come on top, and this recipe is fp32
unless told `--set mixed_precision=bf16`. Eight such cards need an eighth at best.
"""

SERESNET101_8XB32_IN1K = replace(
    SERESNET50_8XB32_IN1K,
    name="seresnet101_8xb32_in1k",
    model="seresnet101",
    epochs=100,
    decay_epochs=(30, 60, 90),
)
"""mmpretrain's SE-ResNet-101 (configs/seresnet/seresnet101_8xb32_in1k.py): 78.26 top-1, 94.07 top-5 published.

`accelerate launch scripts/train.py --recipe seresnet101_8xb32_in1k`. Estimated, not run here: 60 hours on one RTX 3090
(see `SERESNET50_8XB32_IN1K`).
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
"""The SENet paper's training (arXiv 1709.01507v4, section 5.1), on SE-ResNet-50, with the label smoothing of section 6.

`accelerate launch scripts/train.py --recipe senet_paper`. Estimated, not run here: 37 hours on one RTX 3090 (see
`SERESNET50_8XB32_IN1K`). The authors' released weights have 77.63 top-1, 93.64 top-5 (github.com/hujie-frank/SENet);
the ablations of the paper's section 6 begin with 77.72, after about 300 epochs.
"""

CIFAR10_PAPER = replace(
    CIFAR10,
    name="cifar10_paper",
    epochs=164,
    optimizer="momentum",
    learning_rate=0.1,
    weight_decay=1e-4,
    warmup_epochs=0,
    mixed_precision="no",
    schedule="step",
    decay_epochs=(82, 123),
)
"""He et al.'s schedule (arXiv 1512.03385, section 4.2): 64,000 steps of 128, the rate divided at 32,000 and 48,000.

`accelerate launch scripts/train.py --recipe cifar10_paper --set model=seresnet56_cifar`. Whole epochs of 391 steps
here: 64,124 in all, divided at 32,062 and 48,093. Estimated, not run here: eleven times as long as `cifar10` for the
same network. Expected: 93.63 for `resnet110_cifar`, 94.79 for `seresnet110_cifar` (arXiv
1709.01507, its table of CIFAR-10 errors), on the original images.
"""

RSB_A2 = Recipe(
    name="rsb_a2",
    model="seresnet50",
    data="ILSVRC/imagenet-1k",
    epochs=300,
    batch_size=2064,
    optimizer="lamb",
    learning_rate=5e-3,
    weight_decay=0.02,
    decay_all=False,
    warmup_epochs=5,
    warmup_learning_rate=5e-7,
    mixed_precision="bf16",
    loss="binary",
    target_threshold=0.2,
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

`accelerate launch scripts/train.py --recipe rsb_a2`. Estimated, not run here: 110 hours on one RTX 3090 (see
`SERESNET50_8XB32_IN1K`). The paper's batch is 2,048; here it is 688 images three times each, which 2, 4 and 8
processes can share and mix. Its mixed precision is float16. A class counts as present where it has more than a fifth
of a mixed image, as in the commands with which timm's users train A2 (`--bce-target-thresh 0.2`). The rate falls step
by step where timm's falls epoch by epoch.
"""

RSB_A1 = replace(
    RSB_A2, name="rsb_a1", epochs=600, weight_decay=0.01, label_smoothing=0.1, target_threshold=None, mixup=0.2
)
"""Procedure A1 of "ResNet strikes back" (arXiv 2110.00476, table 2): timm's seresnet50.a1_in1k has 80.01 top-1 at 224.

`accelerate launch scripts/train.py --recipe rsb_a1`. Estimated, not run here: 220 hours on one RTX 3090 (see
`SERESNET50_8XB32_IN1K`); the paper reports 4.6 days for a ResNet-50 on four V100. Mixed classes keep their shares,
since a threshold would undo the smoothing.
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

`accelerate launch scripts/train.py --recipe rsb_a3`. Estimated, not run here: 19 hours on one RTX 3090 (see
`SERESNET50_8XB32_IN1K`; images of 160 pixels count by their area).
"""

RA2 = Recipe(
    name="ra2",
    model="seresnet50",
    data="ILSVRC/imagenet-1k",
    epochs=700,
    batch_size=704,
    optimizer="rmsproptf",
    optimizer_eps=1e-3,
    learning_rate=0.082,
    weight_decay=1e-5,
    decay_all=False,
    schedule="staircase",
    decay_every=1.0,
    decay_rate=0.988,
    warmup_epochs=5,
    warmup_learning_rate=1e-6,
    mixed_precision="bf16",
    label_smoothing=0.1,
    dropout=0.19,
    drop_path=0.1,
    ema_decay=0.999987,
    crop="resized",
    input_size=224,
    interpolation="bicubic",
    crop_pct=0.875,
    auto_augment="rand-m9-mstd1.0-inc1",
    mixup=0.19,
    erasing=0.2,
    shuffle_window=9600,
    workers=8,
)
"""timm's "RA2" training, with which its seresnet50.ra2_in1k has 80.26 top-1, 95.07 top-5 at 224.

`accelerate launch scripts/train.py --recipe ra2`. Estimated, not run here: 256 hours on one RTX 3090 (see
`SERESNET50_8XB32_IN1K`).

What was done to that very model is not published, so 80.26 is the accuracy of its kind and not of these figures. Of the
kind, timm's cards say: RandAugment, RMSProp as in TensorFlow 1, moving average, a staircase after a warm-up ("B" in
arXiv 2110.00476). Epochs, batch, rate, its decay, dropout, stochastic depth, mixup, RandAugment and the average's decay
are those of the author's published RA2 file of another residual network with channel attention, ecaresnet26d
(gist.github.com/rwightman/07839a82d0f50e42840168bc43df70b3: two cards of 352 images). Epsilon, weight decay, erasing
and the rate where the warm-up begins are those of EfficientNet-B2 in timm's documentation ("Training Examples").
Five epochs of warm-up and label smoothing 0.1 are timm's usual values. The file's noise on the rate is left out;
bfloat16 is ours.
"""

SERESNET101_MODERN = Recipe(
    name="seresnet101_modern",
    model="seresnet101",
    data="ILSVRC/imagenet-1k",
    epochs=600,
    batch_size=1024,
    optimizer="momentum",
    learning_rate=0.5,
    lr_scaling="linear",
    base_batch_size=1024,
    weight_decay=2e-5,
    decay_all=False,
    warmup_epochs=5,
    warmup_learning_rate=0.005,
    mixed_precision="bf16",
    label_smoothing=0.1,
    drop_path=0.05,
    ema_decay=0.99997,
    crop="resized",
    input_size=176,
    eval_size=224,
    crop_pct=0.965,
    auto_augment="ta_wide",
    repeated_augmentation=4,
    mixup=0.2,
    cutmix=1.0,
    erasing=0.1,
    shuffle_window=9600,
    workers=8,
)
"""Ours, for SE-ResNet-101: aimed at 82.0 top-1 at 224 or more, which nobody has published. An aim, not a result.

`accelerate launch scripts/train.py --recipe seresnet101_modern`. Estimated, not run here: 223 hours on one RTX 3090
(see `SERESNET50_8XB32_IN1K`; images of 176 pixels count by their area), 28 on eight at best.

Why it may get there: the plain ResNet-101 has 81.89 at 224 in torchvision (IMAGENET1K_V2) and 81.95 after timm's a1h,
and SE units gained 0.3 (mmpretrain, 101 layers) to 1.0 (arXiv 1709.01507, 50 layers) in equal training. Under one
strong recipe of torchvision they are the difference between its RegNet Y and X: 0.8 to 1.3 up to 8 GFLOPs (8GF, about
the arithmetic of ResNet-101: 1.15), 0.2 and 0.35 beyond. Why it may not: under A1, A2 and A3 of arXiv 2110.00476
SE-ResNet-50 is 0.4 worse, 0.3 better and 1.0 worse than ResNet-50.

- The base is torchvision's "new recipe" and not A1, because all of it is published
  (github.com/pytorch/vision/issues/3995, which torchvision names for those 81.89), and because A1 is where SE gained
  nothing: 600 epochs, SGD with a rate of 0.5 for 1,024 images, cosine after 5 epochs of warm-up, weight decay 2e-5,
  label smoothing 0.1, mixup 0.2, cutmix 1.0, TrivialAugment, erasing 0.1, moving average. A repetition by another user
  reached 81.33, with a batch of 4,096 at the same rate of 0.5. The rate here scales with the batch (arXiv 1706.02677).
- Four repetitions of an image, and training at 176 for evaluation at 224 with the short edge at 232, are not of those
  81.89, whose weights are older than torchvision's repeated augmentation; they are of its recipe for ResNet-50 (80.86).
  Objects look larger in random crops than in central ones (arXiv 1906.06423), and timm's weights trained at 224 gain as
  much at 288 (seresnet50.ra2: 80.26 to 81.29). The smaller images also cost 0.62 of the arithmetic.
- Not as there: erasing comes after mixing and leaves noise, as in timm, where torchvision erases before it and writes
  zeros (the mean colour); stochastic depth 0.05, as in A1, for a1h owes its 101 layers to more of it; no weight decay
  on biases besides norms; an average of each step, where torchvision's 0.99998 every 32 steps, scaled by its rule, is
  about 0.99997 a step; bfloat16.
"""

FINETUNE = Recipe(
    name="finetune",
    model=AUTO,
    data=None,
    eval_split=None,
    holdout=0.2,
    weights="seresnet50.ra2_in1k",
    new_head=True,
    backbone_lr_factor=AUTO,
    epochs=AUTO,
    batch_size=AUTO,
    learning_rate=AUTO,
    lr_scaling="linear",
    base_batch_size=64,
    weight_decay=1e-4,
    warmup_epochs=AUTO,
    label_smoothing=0.1,
    crop="resized",
    scale=AUTO,
    input_size=AUTO,
    interpolation=AUTO,
    crop_pct=AUTO,
)
"""A model for your own classes, from a folder of images or a Hub data set: new classifier, gently changed backbone.

`accelerate launch scripts/train.py --recipe finetune --data DIR_OR_HUB_ID --output DIR`. Ours. Without a network:
`--set weights=seresnet20_cifar.c10`. The accuracy is measured on the validation or test split, or on a fifth of each
class that is held out where there is none: of three classes of 60 pictures these are 36, so that one mistake is 2.8
points. (A tenth would be 18, and a mistake 5.6.)

It starts from the most accurate SE-ResNet-50 of timm at 224 (80.26 on ImageNet). Fine-tuning all layers by SGD with
Nesterov momentum and a cosine is what arXiv 1805.08974 compares models with. `finetuning.resolved` gives values to the
fields that are AUTO:

- Architecture, image size, interpolation and crop are those of the weights.
- Few images are taken in batches of 16 for as many epochs, 20 to 100, as make 500 steps, the number that the
  BiT-HyperRule has for small data sets (arXiv 1912.11370, section 3.3); 1,600 images or more in batches of 64.
- Weights made for photographs (128 pixels or more) change gently: a rate of 0.01 for 64 images, the backbone's a tenth
  of it, crops of at least a quarter of a picture. These values are estimates: ImageNet's weights were not at hand.
  Estimated, not run here: 5,000 images need 2 minutes of an RTX 3090's arithmetic (twice or more in fp32).
- Weights of small pictures, and a random start, learn anew: a rate of 0.2 for 64 images (0.05 for 16), the same for the
  backbone, crops of at least half a picture.

The last three values were chosen with `seresnet20_cifar.c10` on JPEG pictures by the top-1 on other pictures than those
trained on, in a plain loop with these augmentations: 500 steps of 16, for the sixteen pictures 100. Drawn sets: ten
shapes, 20 pictures each (600 to measure on); circles, pentagons and hexagons, 60 each (600); three shapes, 90, 35 and
25 (200); circles and stars, 8 each (400). CIFAR-10: cats, horses and frogs, 34 each (48). Seed 0, where two are given
also seed 1.

rate for 16, backbone's, crops   ten    near-alike   unequal   sixteen   CIFAR-10
0.05, the same, half             97.3   97.3, 98.3   98.5      80.2      81.2, 77.1
0.025, the same, half            95.2   94.7         99.0      -         77.1
0.025, the same, quarter         93.2   95.0         -         75.8      72.9
0.1, the same, quarter           91.3   33.0         -         -         -
0.025, a tenth, quarter          75.7   -            -         -         -
0.025, a tenth, half             -      -            -         -         79.2

Of three shapes with 60 pictures each (600), 60 steps of 64 at a rate of 0.01, the backbone's a tenth, named 81.3 %.
With few images of what the weights know already, `--set freeze=backbone` or `backbone_lr_factor=0.1` keeps more of
them. A batch that does not fit becomes smaller with `--set batch_size=8`, and the rate with it.
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
        RA2,
        SERESNET101_MODERN,
        FINETUNE,
    )
}

# One line each, for lists.
SUMMARIES: dict[str, str] = {
    "digits": "the first run: small handwritten digits, half a minute to two on two CPU cores",
    "cifar10": "a short CIFAR-10 run, 20 to 30 minutes on two CPU cores",
    "cifar10_paper": "He et al.'s CIFAR-10 schedule of 64,000 steps",
    "seresnet50_8xb32_in1k": "mmpretrain's SE-ResNet-50 on ImageNet",
    "seresnet101_8xb32_in1k": "mmpretrain's SE-ResNet-101 on ImageNet",
    "senet_paper": "the SENet paper's training, with label smoothing",
    "rsb_a1": "procedure A1 of 'ResNet strikes back': 600 epochs",
    "rsb_a2": "procedure A2 of 'ResNet strikes back': 300 epochs",
    "rsb_a3": "procedure A3 of 'ResNet strikes back': 100 epochs at 160 pixels",
    "ra2": "timm's RA2 training",
    "seresnet101_modern": "ours for SE-ResNet-101: an aim, not a result",
    "finetune": "your own classes from a folder of pictures, beginning with trained weights",
}


def listed() -> list[dict[str, str]]:
    """Return each recipe as `{recipe, model, data, summary}`."""
    return [
        {"recipe": name, "model": recipe.model or AUTO_TEXT, "data": recipe.data or "yours", "summary": SUMMARIES[name]}
        for name, recipe in RECIPES.items()
    ]


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`; `InputError` lists the known ones where there is none."""
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}{closest(name, RECIPES)}; there are: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """Return `recipe` with fields replaced by `key=value` texts, each checked by name and type.

    Tuples are written `0.08,1.0`; `none` clears a field that may be empty, and `auto` lets one that may follow the
    weights and the data do so. With fewer epochs, a warm-up that is not set as well becomes shorter than they are.
    Errors: `InputError` names the field.
    """
    changes = parsed(assignments, Recipe)
    epochs = changes.get("epochs")
    if epochs and "warmup_epochs" not in changes and recipe.warmup_epochs is not AUTO:
        changes["warmup_epochs"] = min(recipe.warmup_epochs, max(epochs - 1, 0))
    return replace(recipe, **changes)
