"""The schema of training recipes: what to train, on what, and how; and recipes by name or from a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from seresnet_hub.errors import InputError
from seresnet_hub.recipes import toml_files
from seresnet_hub.recipes.field_types import (
    AUTO_TEXT,
    BELOW_ONE,
    CROP_SHARE,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    OR_AUTO,
    PIXELS,
    POSITIVE,
    RANGE,
    RISING,
    SCALES,
    check_bounds,
    parsed,
)

AUTO: Any = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the machine it runs on.

    Each field says what it means, as `seresnet-hub train --show-recipe` prints it, and its bounds. A field with
    `OR_AUTO` may be `AUTO` until `finetuning.resolved` gives it the value that fits the weights and the data; its
    type is that of the value. Errors: `InputError` names a field with a wrong value.
    """

    # fmt: off
    name: Annotated[str, "the recipe's name"]
    model: Annotated[str, OR_AUTO, "architecture, by timm's name; auto: that of the weights"]
    data: Annotated[str | None,
        "a folder, a Hub data set id, a glob of files, or digits, the embedded data set; none: name it with --data"]
    train_split: Annotated[str, "the split to train on"] = "train"
    eval_split: Annotated[str | None,
        "the split to measure on; none: validation, else test, else the part that holdout keeps"] = "validation"
    holdout: Annotated[float, FRACTION, BELOW_ONE,
        "share of each class's training images that is measured on and never trained on, where no split is for that; "
        "which ones depends on seed; from 0 to 1"] = 0.0
    num_classes: Annotated[int | None, POSITIVE, "number of classes, where the data set does not say it"] = None

    # Where it starts.
    weights: Annotated[str | None,
        "what to start from: a timm name with a tag, NS/NAME on the Hub or a model folder; none: a random start"] = None
    new_head: Annotated[bool, "true: always a new classifier; false: only where the number of classes differs"] = False
    freeze: Annotated[Literal["nothing", "stem", "layer1", "layer2", "layer3", "layer4", "backbone"],
        "the last part, counted from the image, whose weights and statistics do not change"] = "nothing"
    backbone_lr_factor: Annotated[float, OR_AUTO, POSITIVE,
        "learning rate of all but the classifier, as a multiple of the classifier's"] = 1.0
    bn_momentum: Annotated[float | None, POSITIVE, FRACTION,
        "weight of a new batch in batch norm's running statistics; none: torch's own, 0.1"] = None
    zero_init_last: Annotated[bool | None,
        "whether residual branches begin at zero (arXiv 1706.02677, section 5.1); none: as the model does"] = None

    # How it learns.
    epochs: Annotated[int, OR_AUTO, POSITIVE, "passes over the training images"]
    batch_size: Annotated[int, OR_AUTO, POSITIVE, "images in a step, over all processes"]
    optimizer: Annotated[str, "timm's name of it; sgd has Nesterov momentum, momentum has not"] = "sgd"
    optimizer_eps: Annotated[float | None, POSITIVE, "the optimizer's epsilon; none: its own"] = None
    learning_rate: Annotated[float, OR_AUTO, POSITIVE,
        "the learning rate after the warm-up, before lr_scaling"]
    lr_scaling: Annotated[Literal["none", "linear", "sqrt"],
        "none: learning_rate is used as it is; linear: times batch_size / base_batch_size (arXiv 1706.02677); sqrt: "
        "times the square root of that"] = "none"
    base_batch_size: Annotated[int | None, POSITIVE,
        "the batch size that learning_rate is for; needed with lr_scaling=linear or sqrt"] = None
    momentum: Annotated[float, FRACTION, "momentum of the optimizer; from 0 to 1"] = 0.9
    weight_decay: Annotated[float, NOT_NEGATIVE, "weight decay"]
    decay_all: Annotated[bool, "true: weight decay on all parameters; false: not on biases and norms"] = True
    schedule: Annotated[Literal["cosine", "step", "staircase"],
        "how the rate falls: cosine, to 0 step by step; step, by decay_rate at each of decay_epochs; staircase, by "
        "decay_rate every decay_every epochs"] = "cosine"
    decay_epochs: Annotated[tuple[int, ...], RISING, "epochs at whose start the rate falls, for schedule=step"] = ()
    decay_every: Annotated[float | None, POSITIVE, "epochs between two falls, for schedule=staircase"] = None
    decay_rate: Annotated[float, POSITIVE, "what a fall multiplies the rate by"] = 0.1
    warmup_epochs: Annotated[int, OR_AUTO, NOT_NEGATIVE,
        "epochs in which the rate rises to learning_rate; fewer than epochs"] = 0
    warmup_learning_rate: Annotated[float, NOT_NEGATIVE, "the rate at which the warm-up begins, never scaled"] = 0.0
    clip_grad: Annotated[float, NOT_NEGATIVE, "the largest norm of all gradients together; 0: any"] = 0.0
    accumulation: Annotated[int, POSITIVE,
        "pieces in which each process computes its part of a batch, for less memory"] = 1

    # How it runs.
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], "no: float32 throughout"] = "no"
    checkpoint_steps: Annotated[int, NOT_NEGATIVE,
        "steps between two checkpoints to resume from; 0: at the ends of epochs alone"] = 0
    keep_states: Annotated[int, POSITIVE, "how many of the last checkpoints are kept"] = 2
    eval_every: Annotated[int, POSITIVE,
        "epochs between two measurements, which also write the model folders; the last epoch is always measured"] = 1
    save_every: Annotated[int, POSITIVE,
        "epochs between two checkpoints to resume from; after the last epoch there is always one"] = 1
    eval_precision: Annotated[Literal["no", "bf16", "fp16"],
        "autocast in the measurements during training; no: float32, as `validate` measures"] = "no"
    compile: Annotated[bool, "true: torch.compile; batches smaller than the others run uncompiled"] = False
    inductor: Annotated[tuple[str, ...],
        "settings of Inductor, torch's compiler, key=value,key=value; needs compile=true. Worth trying on a GPU: "
        "triton.cudagraphs=true (3 % faster for seresnet50 on an H200), triton.max_tiles=1"] = ()
    deterministic: Annotated[bool,
        "true: algorithms that give the same bits each time, also on a GPU, where they are slower"] = False
    se_blocks: Annotated[bool,
        "true: this package's forms of timm's SE blocks, which are faster in training; needs compile=true"] = False
    grad_checkpointing: Annotated[bool, "true: compute activations again in the backward pass, for less memory"] = False
    sync_bn: Annotated[bool,
        "true: batch norm's statistics over all GPUs; with compile=true within the compiled graph"] = False

    # Regularisation.
    dropout: Annotated[float, FRACTION, BELOW_ONE, "drop-out before the classifier; from 0 to 1"] = 0.0
    drop_path: Annotated[float, FRACTION, BELOW_ONE,
        "the largest stochastic depth (arXiv 1603.09382); from 0 to 1"] = 0.0
    ema_decay: Annotated[float, FRACTION, BELOW_ONE,
        "decay of a moving average of the weights, which is then what is measured and saved; 0: none"] = 0.0
    loss: Annotated[Literal["softmax", "binary"],
        "softmax: cross entropy; binary: a binary cross entropy for each class"] = "softmax"
    target_threshold: Annotated[float | None,
        "with loss=binary: a class counts as present where its share is larger; none: shares count"] = None
    label_smoothing: Annotated[float, FRACTION, "label smoothing; from 0 to 1"] = 0.0

    # Pictures.
    crop: Annotated[Literal["pad", "resized"],
        "pad: resize, pad by crop_padding and crop (arXiv 1512.03385, section 4.2); resized: a random part of the "
        "picture, resized"]
    crop_padding: Annotated[int, NOT_NEGATIVE, PIXELS, "pixels on each side, for crop=pad"] = 4
    scale: Annotated[tuple[float, float], OR_AUTO, RANGE,
        "smallest and largest share of the picture's area, for crop=resized"] = (0.08, 1.0)
    horizontal_flip: Annotated[float, FRACTION,
        "probability of mirroring a picture; 0 where left and right make a difference"] = 0.5
    input_size: Annotated[int, OR_AUTO, POSITIVE, PIXELS, "height and width in training, in pixels"]
    eval_size: Annotated[int | None, POSITIVE, PIXELS, "height and width in evaluation; none: input_size"] = None
    interpolation: Annotated[Literal["bilinear", "bicubic"], OR_AUTO, "how pictures are resized"] = "bilinear"
    decoder: Annotated[Literal["fast", "pil", "region"],
        "fast: JPEG files by torchvision, in training alone; pil: the pixels of timm's own transforms; region: those "
        "of fast, but only the part of a JPEG file that crop=resized shows is decoded, by nvImageCodec on the CPU (pip "
        "install 'seresnet-hub[region]')"] = "fast"
    auto_augment: Annotated[str | None,
        "in timm's language, such as rand-m9-mstd0.5, original or 3a; or ta_wide, torchvision's TrivialAugment (arXiv "
        "2103.10158); none: no such augmentation"] = None
    color_jitter: Annotated[float, NOT_NEGATIVE, "strength of random changes of colour"] = 0.0
    repeated_augmentation: Annotated[int, POSITIVE,
        "how many times each image is in its batch (arXiv 1901.09335), its copies dealt out among the processes; an "
        "epoch has as many times fewer images"] = 1
    mixup: Annotated[float, NOT_NEGATIVE,
        "alpha of the Beta distribution that mixes pairs of images; 0: none are mixed"] = 0.0
    cutmix: Annotated[float, NOT_NEGATIVE,
        "alpha of the Beta distribution of patches from other images; 0: no patches"] = 0.0
    erasing: Annotated[float, FRACTION, "probability of erasing a rectangle, which becomes noise, after mixing"] = 0.0
    crop_pct: Annotated[float, OR_AUTO, POSITIVE, CROP_SHARE,
        "in evaluation, the crop's share of the resized picture's edge"] = 1.0
    mean: Annotated[tuple[float, float, float] | None, FINITE,
        "mean of each channel in [0, 1]; none: the model's own"] = None
    std: Annotated[tuple[float, float, float] | None, SCALES,
        "standard deviation of each channel; none: the model's own"] = None

    license: Annotated[str | None,
        "licence of the trained weights, as an identifier of the Hub; none: that of the weights it starts from, "
        "apache-2.0 for a random start"] = None

    # Loading.
    shuffle_window: Annotated[int, POSITIVE, "rows that are permuted together, over all lanes"] = 16384
    lanes: Annotated[int, POSITIVE, "streams of rows that each batch takes from in equal parts (see data/plan.py)"] = 24
    drop_last: Annotated[bool, "true: leave out the last batch of an epoch where it is smaller"] = False
    corrupt_share: Annotated[float, FRACTION,
        "share of the images that may be undecodable, in small data sets a few; more end the run; 0: none may"] = 0.001
    seed: Annotated[int, NOT_NEGATIVE, "seed of all random numbers"] = 0
    workers: Annotated[int, NOT_NEGATIVE, "loader processes on each training process"] = 2
    cache_gb: Annotated[float | None, NOT_NEGATIVE,
        "gigabytes of a remote data set that are kept on this machine as they are read; 0: none; none: as many as the "
        "disk holds with a tenth of it, and at least 10 GB, left free"] = None
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)
        for holds, message in self._rules():
            if not holds:
                raise InputError(message)

    def _rules(self) -> list[tuple[bool, str]]:
        """Return what must hold between fields, and what to say where it does not."""
        cuda_graphs = "triton.cudagraphs=true" in (one.replace(" ", "").lower() for one in self.inductor)
        return [
            (AUTO in (self.epochs, self.warmup_epochs) or self.warmup_epochs < self.epochs,
             f"warmup_epochs={self.warmup_epochs}: must be fewer than the {self.epochs} epochs"),
            ((self.schedule == "step") == bool(self.decay_epochs),
             f"decay_epochs={self.decay_epochs}: needed with schedule=step, and only with it"),
            ((self.schedule == "staircase") == (self.decay_every is not None),
             f"decay_every={self.decay_every}: needed with schedule=staircase, and only with it"),
            ((self.lr_scaling == "none") == (self.base_batch_size is None),
             f"base_batch_size={self.base_batch_size}: needed with lr_scaling=linear or sqrt, and only with them"),
            (self.target_threshold is None or self.loss == "binary",
             f"target_threshold={self.target_threshold}: needs loss=binary"),
            (not self.inductor or self.compile,
             f"inductor={','.join(self.inductor)}: of no effect without compile=true: set both"),
            # torch sums wrongly there, or fails (pytorch issues 96693 and 169545).
            (not cuda_graphs or self.accumulation == 1,
             f"accumulation={self.accumulation}: gradients are not summed over pieces with triton.cudagraphs=true; set "
             "accumulation=1, or leave CUDA graphs out"),
            (not self.holdout or self.eval_split is None,
             f"holdout={self.holdout}: nothing is held out where eval_split={self.eval_split} is measured on; set "
             "holdout=0 too, or eval_split=none"),
            (self.freeze == "nothing" or self.weights is not None,
             f"freeze={self.freeze}: there is nothing to keep in a random start; set weights too"),
            (self.zero_init_last is None or self.weights is None,
             f"zero_init_last={self.zero_init_last}: of no effect where weights={self.weights} are read"),
            (self.batch_size is AUTO or self.batch_size % self.repeated_augmentation == 0,
             f"batch_size={self.batch_size}: must be a multiple of repeated_augmentation={self.repeated_augmentation}"),
        ]  # fmt: skip

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up: `learning_rate` by the rule `lr_scaling`."""
        if self.base_batch_size is None:
            return self.learning_rate
        ratio = self.batch_size / self.base_batch_size
        return self.learning_rate * (ratio if self.lr_scaling == "linear" else math.sqrt(ratio))


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """Return `recipe` with fields replaced by `key=value` texts, each checked by name and type.

    Tuples are written `0.08,1.0`; `none` clears a field that may be empty, and `auto` lets one that may follow the
    weights and the data do so. With fewer epochs, a warm-up that is not set as well becomes shorter than they are.
    Errors: `InputError` names the field.
    """
    return replace(recipe, **_changes(recipe, assignments))


def _changes(recipe: Recipe, assignments: Sequence[str]) -> dict[str, Any]:
    changes = parsed(assignments, Recipe)
    epochs = changes.get("epochs")
    if epochs and "warmup_epochs" not in changes and recipe.warmup_epochs is not AUTO:
        changes["warmup_epochs"] = min(recipe.warmup_epochs, max(epochs - 1, 0))
    return changes


def with_origins(name: str, assignments: Sequence[str] = ()) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe of `get_recipe` and `override`, and each value's origin: a file, "--set" or "default"."""
    path = toml_files.path_of(name)
    file = toml_files.read(path, Recipe)
    optional = {field.name for field in fields(Recipe) if field.default is not MISSING}
    if lacking := [one.name for one in fields(Recipe) if one.name not in {"name", *optional, *file.values}]:
        raise InputError(f"{path}: lacks {', '.join(lacking)}: set them, or name a recipe to begin with as its base")
    try:
        recipe = Recipe(name=path.stem, **file.values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    changes = _changes(recipe, assignments)
    origins = dict.fromkeys(optional, "default") | file.origins | dict.fromkeys(changes, "--set")
    return replace(recipe, **changes), origins


RECIPES: dict[str, Recipe] = {name: with_origins(name)[0] for name in toml_files.NAMES}


def get_recipe(name: str | Path) -> Recipe:
    """Return the recipe of this package called `name`, or that in a file: a name that ends in .toml is a path.

    The recipe in a file is called as the file is, without .toml. Errors: `InputError` lists the known recipes where
    there is none, and names the file and the key of what is wrong in a file.
    """
    return RECIPES.get(str(name)) or with_origins(str(name))[0]


def listed() -> list[dict[str, str]]:
    """Return each recipe of this package as `{recipe, model, data, summary}`."""
    return [
        {"recipe": name, "model": recipe.model or AUTO_TEXT, "data": recipe.data or "yours",
         "summary": toml_files.read(toml_files.path_of(name), Recipe).summary}
        for name, recipe in RECIPES.items()
    ]  # fmt: skip
