"""What learns in a training run: the model, all that changes it, and one step of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import is_compiled_module
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy
from torch import nn
from torch.nn import functional as F

from seresnet_hub.data.batch_augmentation import Mixer, finish
from seresnet_hub.data.loader import Batch
from seresnet_hub.data.plan import Plan
from seresnet_hub.data.repeated_augmentation import part_rows
from seresnet_hub.data.transforms import seed_from
from seresnet_hub.errors import InputError
from seresnet_hub.models.training_blocks import use_compiled_sync_norms, use_training_blocks
from seresnet_hub.recipes.recipe import Recipe
from seresnet_hub.training.batchnorm_statistics import RunningStatistics, statistics_kept
from seresnet_hub.training.checkpoint import load_optimizer
from seresnet_hub.training.checkpoint_checks import Run, require_fitting
from seresnet_hub.training.initial_model import eval_frozen_parts, require_mixable, require_trainable
from seresnet_hub.training.moving_average import MovingAverage
from seresnet_hub.training.optimizer_and_schedule import optimizer_of, schedule_of
from seresnet_hub.training.processes import Processes


class Learner:
    """A model with what changes it: optimiser, schedule, moving average (or None), mixer, running statistics.

    `model` is what learns, `measured` what is measured and saved as the run's result: the average where there is one.
    All processes make it at once, of equal models. Errors: `InputError` where the model cannot be trained so.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, processes: Processes, *, num_classes: int, plan: Plan,
        device_type: str, compile_options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self._recipe, self._processes, self._accelerator = recipe, processes, processes.accelerator
        model = model.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        whole, last = (
            piece_sizes(
                part_rows(plan, batch, repeats=recipe.repeated_augmentation, world_size=processes.count),
                recipe.accumulation,
            )
            for batch in (0, plan.steps - 1)
        )
        require_trainable(model, recipe, images=min(whole | last))
        require_mixable(recipe, plan, processes.count)
        self.model = _with_training_forms(model, recipe)
        self.optimizer = optimizer_of(self.model, recipe, device_type=device_type)
        self._schedule = schedule_of(self.optimizer, recipe, plan.steps, recipe.epochs * plan.steps)
        self.average = MovingAverage(self.model, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.measured = self.model if self.average is None else self.average.module
        self._prepared, self.optimizer = self._accelerator.prepare(self.model, self.optimizer)
        # Accelerate made the model compute in mixed precision wherever it is called; it is measured as it is saved.
        self._accelerator.unwrap_model(self._prepared, keep_fp32_wrapper=False)
        # Compiled here, since Accelerate's own setting is one for the process.
        if recipe.compile and not is_compiled_module(self._prepared):
            # For the sizes of a full batch alone: a graph for any size would be made after the first short batch, so a
            # resumed run, which begins elsewhere, would be another one's bits.
            self._prepared = torch.compile(self._prepared, dynamic=False, options=dict(compile_options))
        # What a short batch runs through: compiling for its size as well takes a minute on a GPU, for a step an epoch.
        self._uncompiled, self._compiled_sizes = getattr(self._prepared, "_orig_mod", self._prepared), whole
        averaged = {"average": self.average.module} if self.average is not None else {}
        self.statistics = RunningStatistics({"model": self.model, **averaged}, self._accelerator)
        self._mixer = Mixer(recipe, num_classes, processes.device)
        self._precision = next(self.model.parameters()).dtype

    @property
    def learning_rate(self) -> float:
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def train(self) -> None:
        """Put the model in training mode, but for its frozen parts."""
        self._prepared.train()
        eval_frozen_parts(self.model)

    def step(self, batch: Batch, step: int) -> torch.Tensor:
        """Learn from this process's part of a batch, in the step number `step` of the run, which begins with 0.

        Returns this process's summed loss divided by the images of all processes: a scalar left on the device, so
        nothing waits for it.
        """
        # Drop-outs draw from the step's own stream, so a resumed run draws what the uninterrupted one drew.
        torch.manual_seed(seed_from(self._recipe.seed, step, self._processes.rank))
        self._schedule.step_update(step)
        images, targets = self._images_and_targets(batch, step)
        self.optimizer.zero_grad()
        loss = self._gradients(images, targets, batch)
        if self._recipe.clip_grad:
            self._accelerator.clip_grad_norm_(self.model.parameters(), self._recipe.clip_grad)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, step + 1)
        return loss

    def _images_and_targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images, normalised and augmented, and their labels or class probabilities."""
        config: Any = self.model.pretrained_cfg
        images = finish(batch, mean=config["mean"], std=config["std"], dtype=self._precision)
        seed = (self._recipe.seed, step, self._processes.rank)
        return self._mixer(images, batch.labels, batch.whole or batch.mask, *seed)

    def _gradients(self, images: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Add up the gradients of the batch, piece by piece, and return its loss."""
        loss = torch.zeros((), device=self._processes.device)
        tensors = (images, targets, batch.mask)
        pieces = list(zip(*(tensor.chunk(self._recipe.accumulation) for tensor in tensors), strict=True))
        for number, (piece, wanted, counts) in enumerate(pieces):
            waits = number < len(pieces) - 1  # only the last piece's gradients are sent to the other processes
            with self._accelerator.no_sync(self._prepared) if waits else nullcontext():
                with self._accelerator.autocast():
                    logits = (self._prepared if len(piece) in self._compiled_sizes else self._uncompiled)(piece)
                losses = image_losses(logits.to(self._precision), wanted, self._recipe)
                part = (losses * counts).sum() / batch.total
                # Processes average their gradients; times their number, that is the mean over the whole batch.
                with statistics_kept(self.model) if self._recipe.grad_checkpointing else nullcontext():
                    self._accelerator.backward(part * self._processes.count)
            loss += part.detach()
        return loss

    def is_finite(self) -> bool:
        """Return whether the model's weights and statistics are finite on all processes; all have to call it."""
        finite = torch.stack([tensor.isfinite().all() for tensor in self.model.state_dict().values()]).all()
        return not self._processes.any(not finite)

    def state_dict(self) -> dict[str, Any]:
        """Return what this process holds, for a checkpoint: `model`, `optimizer`, `scaler`, `average`."""
        scaler = self._accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "average": self.average.module.state_dict() if self.average is not None else {},
        }

    def load_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take everything from a checkpoint; `InputError` where something in it does not fit, and nothing was taken."""
        average = self.average.module if self.average is not None else None
        require_fitting(checkpoint, Run(self.model, average, self.optimizer, self._recipe))
        self.model.load_state_dict(checkpoint["model"])
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(checkpoint["scaler"])
        if average is not None:
            average.load_state_dict(checkpoint["average"])
        self.statistics.load(checkpoint.get("statistics", {}))  # none in checkpoints of an older version


def image_losses(logits: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return the loss of each image, `(batch,)`.

    `targets` are labels `(batch,)`, or class probabilities `(batch, classes)` with all smoothing in them.
    """
    smoothing = 0.0 if targets.is_floating_point() else recipe.label_smoothing
    if recipe.loss == "softmax":
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    binary = BinaryCrossEntropy(smoothing=smoothing, target_threshold=recipe.target_threshold, reduction="none")
    return binary(logits, targets).mean(dim=1)


def piece_sizes(images: int, pieces: int) -> set[int]:
    """Return the sizes of the pieces that `torch.chunk` makes of a batch; only the last may be smaller."""
    size = -(-images // pieces)
    return {size, images - (-(-images // size) - 1) * size}


def _with_training_forms(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the model with the recipe's activation checkpointing, synchronised norms and SE blocks for training."""
    if recipe.grad_checkpointing:
        try:
            model.set_grad_checkpointing()  # type: ignore[operator]
        except Exception as error:  # whatever the model makes of it
            raise InputError(f"grad_checkpointing=true: {recipe.model} has none ({error})") from error
    if recipe.sync_bn:
        model = convert_sync_batchnorm(model)
        if recipe.compile:
            use_compiled_sync_norms(model)
    if recipe.se_blocks:
        if not recipe.compile:
            raise InputError("se_blocks=true has no effect without compile=true: set both")
        if not use_training_blocks(model):
            raise InputError(f"se_blocks=True: {recipe.model} has no block of timm's with an SE unit")
    return model
