"""The loop of a training run: its epochs, what is looked at between steps, and what is measured and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from seresnet_hub.data.batch_augmentation import on_device
from seresnet_hub.data.damaged_images import require_few_damaged
from seresnet_hub.data.loader import Loader, training_spec
from seresnet_hub.data.loader_spec import LoaderSpec
from seresnet_hub.data.loader_workers import LoaderWorkers, Pass
from seresnet_hub.data.repeated_augmentation import dealt
from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.evaluate import Accuracy, Evaluation, evaluation_of, measure
from seresnet_hub.recipes.recipe import Recipe
from seresnet_hub.training.checkpoint import list_checkpoints, save_checkpoint
from seresnet_hub.training.learner import Learner
from seresnet_hub.training.processes import Processes
from seresnet_hub.training.progress import EpochLeft, Progress
from seresnet_hub.training.run_folder import drawn_curves, save_run
from seresnet_hub.training.same_run import require_same_weights_everywhere, settings_of
from seresnet_hub.training.signals import Interruption
from seresnet_hub.training.start_or_resume import BEST, BEST_RAW, RAW
from seresnet_hub.training.throughput import Clock

# Look at losses and signals every so many steps: each look synchronises with the device.
LOOK_STEPS = 20


@dataclass(kw_only=True)
class Loop:
    """Train a `learner` from where `progress` is until its last step is measured, or a signal stops it.

    `facts_of` is `run_folder.facts_of_run` with what is the same for the whole run; `tracked` says whether there are
    trackers, `has_checkpoint` whether `output` holds something to resume from. Afterwards `accuracy` is that of the
    last epoch, if this process measured it, and `stopped` says whether a signal came.
    """

    recipe: Recipe
    output: Path
    train_split: Split
    eval_split: Split
    processes: Processes
    learner: Learner
    progress: Progress
    clock: Clock
    interruption: Interruption
    bar: tqdm[Any]
    facts_of: Callable[..., dict[str, Any]]
    tracked: bool
    has_checkpoint: bool
    accuracy: Accuracy | None = field(default=None, init=False)
    stopped: bool = field(default=False, init=False)

    _workers: LoaderWorkers | None = field(default=None, init=False)

    @cached_property
    def _train_spec(self) -> LoaderSpec:
        recipe, processes = self.recipe, self.processes
        return training_spec(
            self.train_split, recipe, rank=processes.rank, world_size=processes.count, workers=recipe.workers,
            seed=recipe.seed,
        )  # fmt: skip

    @cached_property
    def _evaluation(self) -> Evaluation:
        processes, split = self.processes, self.eval_split
        return evaluation_of(
            self.learner.measured, split, workers=self.recipe.workers, rank=processes.rank, world_size=processes.count,
            batch_size=128 * processes.count,
            # A held-out part is of the collection that is trained on, damage and all.
            corrupt_share=0.0 if split.subset is None else self.recipe.corrupt_share,
            precision=self.recipe.eval_precision,
        )  # fmt: skip

    def run(self) -> None:
        epochs = self.progress.epochs_left(self.recipe.eval_every)
        with LoaderWorkers(self._train_spec, self._evaluation.spec) as self._workers:
            self._workers.announce(self._passes(epochs))
            for epoch, start, measures in epochs:
                if start is not None:
                    self._train_epoch(epoch)
                if measures and not self.stopped:
                    self._measure(epoch)
                if self.stopped:
                    break
        self._workers = None

    def _passes(self, epochs: Sequence[EpochLeft]) -> Iterator[Pass]:
        """Yield the passes over the data that these epochs need, so that workers know what comes next."""
        evaluations = 1 if self.learner.average is None else 2
        for epoch, start, measures in epochs:
            if start is not None:
                yield Pass(self._train_spec.of_epoch(epoch), start)
            yield from [Pass(self._evaluation.spec)] * (evaluations if measures else 0)

    def _train_epoch(self, epoch: int) -> None:
        """Train what is left of an epoch, until its end, the run's end or a signal."""
        recipe, progress, repeats = self.recipe, self.progress, self.recipe.repeated_augmentation
        rank, world_size = self.processes.rank, self.processes.count
        batches = Loader(self._train_spec.of_epoch(epoch), progress.position, workers=self._workers)
        self.learner.train()
        progress.begin_epoch()
        self.clock.start()
        for batch in self.clock.batches(on_device(batches, self.processes.device)):
            batch = dealt(
                batch, batches.plan, progress.position, repeats=repeats, rank=rank, world_size=world_size,
                seed=(recipe.seed, progress.step, rank),
            )  # fmt: skip
            progress.add_step(batch, self.learner.step(batch, progress.step))
            self.clock.step(len(batch.images))
            self.bar.update(batch.total)
            ends = progress.ended or progress.position == 0
            saves = self._saves_now()
            # Alone, a signal is looked for after every step; several processes have to agree on the step.
            signalled = world_size == 1 and self.interruption.name is not None
            if ends or saves or signalled or progress.step % LOOK_STEPS == 0:
                self._check_and_save(epoch, ends=ends, saves=saves)
            if self.stopped or progress.ended:
                break
        if progress.skipped:
            left_out = progress.skipped // repeats
            self.processes.say(
                f"epoch {epoch + 1}: {left_out} undecodable image{' was' if left_out == 1 else 's were'} left out"
            )

    def _saves_now(self) -> bool:
        every = self.recipe.checkpoint_steps
        if self.progress.is_due(self.recipe.save_every) or (every and self.progress.step % every == 0):
            return True
        # A model folder without a checkpoint beside it is no run that could go on.
        return not self.has_checkpoint and self.progress.is_due(self.recipe.eval_every)

    def _check_and_save(self, epoch: int, *, ends: bool, saves: bool) -> None:
        """Wait for the device, check the losses, look for a signal, and save where that is due."""
        progress, learner = self.progress, self.learner
        progress.read_losses(self.processes)
        left_out = progress.skipped // self.recipe.repeated_augmentation
        require_few_damaged(left_out, self.train_split, self.recipe.corrupt_share)
        if found := progress.first_loss_not_finite(LOOK_STEPS):
            raise self._diverged(f"the loss is {found[1]} at step {found[0]:,} (noticed at {progress.step:,})")
        self.bar.set_postfix(epoch=epoch + 1, loss=f"{progress.losses[-1]:.3f}", refresh=False)
        self._track({"loss": progress.losses[-1], "learning_rate": learner.learning_rate})
        self.stopped = self.processes.any(self.interruption.name is not None)
        self.clock.stop(progress.trained)
        if progress.position == 0:
            learner.statistics.share()
        if ends:
            progress.add_row(learner.learning_rate)
        if (ends or saves or self.stopped) and not learner.is_finite():
            raise self._diverged(f"the weights are no longer finite after step {progress.step:,}")
        if saves or self.stopped:
            self._save(self._statistics_of_processes())
        if not (ends or self.stopped):
            self.clock.start()

    def _measure(self, epoch: int) -> None:
        """Measure the model after an epoch, or at the run's end, and write the model folders."""
        progress, learner = self.progress, self.learner
        progress.add_row(learner.learning_rate)  # it is there unless an earlier process made the last step
        statistics = self._statistics_of_processes()
        if progress.position:  # the run ends within an epoch
            learner.statistics.share()
        require_same_weights_everywhere(learner.measured)
        self.accuracy = accuracy = self.evaluate(learner.measured)
        self.processes.say(
            f"epoch {epoch + 1}/{self.recipe.epochs}: {accuracy.top1:.2f} % top-1, loss {accuracy.loss:.4f} over "
            f"{accuracy.seen:,} {self.eval_split.name} images"
        )
        progress.history[-1] |= _row_of(accuracy)
        kinds = [("top1", learner.measured, accuracy, self.output, self.output / BEST)]
        if learner.average is not None:
            raw = self.evaluate(learner.model)
            progress.history[-1] |= _row_of(raw, "raw_")
            kinds.append(("raw_top1", learner.model, raw, self.output / RAW, self.output / BEST_RAW))
        self._track(progress.history[-1])
        curves = drawn_curves(progress.history, self._evaluation.num_classes) if self.processes.main else b""
        for key, model, its_accuracy, last, best in kinds if self.processes.main else []:
            for folder in (last, best) if progress.is_best(key) else (last,):
                kind = folder.name if folder != self.output else ""
                facts = self.facts_of(its_accuracy, step=progress.step, seen=progress.seen, kind=kind)
                save_run(folder, model, self.train_split.class_names, facts, progress.history, curves)
        self.stopped = not progress.ended and self.processes.any(self.interruption.name is not None)
        if self.stopped or progress.ended:  # a run that goes on has a checkpoint without these figures
            self._save(statistics)
        self.processes.accelerator.wait_for_everyone()

    def evaluate(self, model: nn.Module) -> Accuracy:
        """Return the accuracy of a model on the split to measure on; all processes have to call it."""
        return measure(model, self._evaluation, total=self.processes.total, workers=self._workers)

    def _statistics_of_processes(self) -> dict[str, torch.Tensor]:
        """Return what the processes' running statistics are within an epoch; at its end they are equal."""
        return self.learner.statistics.gathered() if self.progress.position else {}

    def _save(self, statistics: dict[str, torch.Tensor]) -> None:
        """Save a checkpoint, with the running statistics of all processes."""
        if self.processes.main:
            checkpoint = {
                "settings": settings_of(self.recipe, self.train_split), **self.progress.state_dict(),
                "shards": self.train_split.fingerprint, **self.learner.state_dict(), "statistics": statistics,
            }  # fmt: skip
            save_checkpoint(self.output, checkpoint, keep=self.recipe.keep_states)
        self.has_checkpoint = True

    def _track(self, values: dict[str, float]) -> None:
        if self.tracked:
            self.processes.accelerator.log(values, self.progress.step)

    def _diverged(self, what: str) -> InputError:
        saved = list_checkpoints(self.output)
        kept = f"the last good state, {saved[0]}, is kept" if saved else "nothing was saved yet"
        return InputError(f"{what}: lower learning_rate={self.recipe.learning_rate}; {kept}")


def _row_of(accuracy: Accuracy, prefix: str = "") -> dict[str, float]:
    assert accuracy.loss is not None  # every image has one label
    return {f"{prefix}eval_loss": accuracy.loss, f"{prefix}top1": accuracy.top1, f"{prefix}top5": accuracy.top5}
