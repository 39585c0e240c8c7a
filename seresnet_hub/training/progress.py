"""How far a training run is: its steps, the images it has seen, its losses and its history."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from seresnet_hub.data.loader import Batch
from seresnet_hub.training.processes import Processes

Row = dict[str, float]  # what is known of an epoch, with the accuracies where it was measured


class EpochLeft(NamedTuple):
    """What is left to do of an epoch: to train the batches from `start` on, where there are any, and to measure it."""

    epoch: int
    start: int | None
    measures: bool


class Progress:
    """Count the steps of a run that ends with `last_step`, and keep the loss of each.

    `seen` counts images since the run began, `trained` those since this process started, `skipped` the undecodable rows
    since it took up the current epoch; all three are exact after `read_losses`. `losses` has the mean over each step's
    batch, `history` a row an epoch.
    """

    def __init__(self, *, steps_per_epoch: int, last_step: int) -> None:
        self.steps_per_epoch, self.last_step = steps_per_epoch, last_step
        self.step = self.seen = self.trained = self.skipped = 0
        self.history: list[Row] = []
        self.losses: list[float] = []
        self._unread: list[torch.Tensor] = []  # on the device: reading one would wait for it
        self._skipped_here = 0  # by this process alone

    @property
    def position(self) -> int:
        """The number of steps since the epoch began, 0 at its end."""
        return self.step % self.steps_per_epoch

    @property
    def ended(self) -> bool:
        return self.step == self.last_step

    @property
    def measured_until(self) -> int:
        """The step at which the last row of the history ends, 0 where there is none."""
        return int(self.history[-1]["step"]) if self.history else 0

    def is_due(self, every: int) -> bool:
        """Return whether what is done every so many epochs is done now; it always is at the run's end."""
        return self._is_due_at(self.step, every)

    def _is_due_at(self, step: int, every: int) -> bool:
        return step == self.last_step or (step > 0 and step % (every * self.steps_per_epoch) == 0)

    def epochs_left(self, eval_every: int) -> list[EpochLeft]:
        """Return the epochs that are not done yet, in order; the accuracy is due after each of so many."""
        left, step = [], self.step
        if self.is_due(eval_every) and not self.is_measured():  # the run ended when the epoch was trained
            left.append(EpochLeft((step - 1) // self.steps_per_epoch, None, measures=True))
        while step < self.last_step:
            epoch, start = divmod(step, self.steps_per_epoch)
            step = min(step - start + self.steps_per_epoch, self.last_step)
            left.append(EpochLeft(epoch, start, self._is_due_at(step, eval_every)))
        return left

    def is_measured(self) -> bool:
        """Return whether the accuracy after this step is in the history."""
        return bool(self.history) and self.history[-1]["step"] == self.step and "top1" in self.history[-1]

    def is_best(self, key: str) -> bool:
        """Return whether the last row has the largest value of `key` so far, and no other row has it."""
        return self.history[-1][key] > max((row[key] for row in self.history[:-1] if key in row), default=-1.0)

    def begin_epoch(self) -> None:
        self.skipped = self._skipped_here = 0

    def add_step(self, batch: Batch, loss: torch.Tensor) -> None:
        """Count a step on a batch, without waiting for the device that holds its loss."""
        self._unread.append(loss)
        self.step, self.seen, self.trained = self.step + 1, self.seen + batch.total, self.trained + batch.total
        self._skipped_here += batch.missing

    def read_losses(self, processes: Processes) -> None:
        """Bring what happened since the last time from all processes; waits for the device, and all have to call it."""
        skipped_here = self._unread[-1].new_tensor(self._skipped_here)
        *newest, skipped = processes.summed([*self._unread, skipped_here])
        self.losses += newest
        self._unread.clear()
        newly_skipped, self.skipped = int(skipped) - self.skipped, int(skipped)
        self.seen, self.trained = self.seen - newly_skipped, self.trained - newly_skipped

    def first_loss_not_finite(self, newest: int) -> tuple[int, float] | None:
        """Return the step and the value of the first loss that is no number, among so many of the newest."""
        start = max(len(self.losses) - newest, 0)
        numbered = enumerate(self.losses[start:], start=start + 1)
        return next(((step, loss) for step, loss in numbered if not math.isfinite(loss)), None)

    def add_row(self, learning_rate: float) -> None:
        """Append the history's row of the epoch that ended with the last loss, if it is not there."""
        step, before = len(self.losses), self.measured_until
        if before < step:
            train_loss = statistics.fmean(self.losses[before:])
            self.history.append(
                {"step": step, "epoch": step / self.steps_per_epoch, "learning_rate": learning_rate,
                 "train_loss": train_loss}
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: `step`, `seen`, `history`, `losses`."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return {"step": self.step, "seen": self.seen, "history": self.history, "losses": losses}

    def load_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        self.step, self.seen = checkpoint["step"], checkpoint["seen"]
        self.history, self.losses = checkpoint["history"], checkpoint["losses"].tolist()
