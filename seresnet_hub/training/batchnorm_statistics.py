"""BatchNorm's running statistics: each process of a run has its own, and at an epoch's end all take their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from timm.utils import distribute_bn
from torch import nn


class RunningStatistics:
    """The running statistics of some models, by name, over the processes of a run.

    A checkpoint within an epoch keeps those of every process, so that a resumed run ends with the same bits.
    """

    def __init__(self, models: Mapping[str, nn.Module], accelerator: Accelerator) -> None:
        self._models, self._accelerator = models, accelerator

    def share(self) -> None:
        """Give every process the mean of all processes' statistics."""
        if self._accelerator.num_processes > 1:
            for model in self._models.values():
                distribute_bn(model, self._accelerator.num_processes, reduce=True)

    def gathered(self) -> dict[str, torch.Tensor]:
        """Return each model's statistics `(processes, values)`, nothing for a single process; all have to call it."""
        if self._accelerator.num_processes == 1:
            return {}
        own = {name: _buffers(model) for name, model in self._models.items()}
        return {
            name: self._accelerator.gather(torch.cat([buffer.flatten() for buffer in buffers])[None])
            for name, buffers in own.items()
            if buffers
        }

    def load(self, gathered: Mapping[str, torch.Tensor]) -> None:
        """Take what `gathered` returned: its own row as one of as many processes, else the mean of the rows.

        A model that is not named keeps what it has. Errors: `RuntimeError` where the rows are of another model.
        """
        for name, rows in gathered.items():
            rank, same = self._accelerator.process_index, len(rows) == self._accelerator.num_processes
            buffers = _buffers(self._models[name])
            values = torch.split(rows[rank] if same else rows.mean(dim=0), [buffer.numel() for buffer in buffers])
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value.view_as(buffer))


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a second forward pass, within the backward one, does to BatchNorm's running statistics."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def values_in(model: nn.Module) -> int:
    """Return how many numbers the running statistics of a model are."""
    return sum(buffer.numel() for buffer in _buffers(model))


def _buffers(model: nn.Module) -> list[torch.Tensor]:
    """Return the buffers that timm's `distribute_bn` takes for running statistics."""
    return [buffer for name, buffer in model.named_buffers() if "running_mean" in name or "running_var" in name]
