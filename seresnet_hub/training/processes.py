"""The processes of a run: how they are joined, and what they say to each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from torch import distributed
from tqdm import tqdm

from seresnet_hub.environment import usable_cpus
from seresnet_hub.errors import InputError, printable
from seresnet_hub.training.launchers import processes_started
from seresnet_hub.training.rendezvous import join_again

# How long a process waits for the others before it takes them for lost.
WAIT_FOR_OTHERS = timedelta(minutes=10)
# How long it waits for the first one to read a data set.
WAIT_FOR_READING = timedelta(days=1)
Answer = TypeVar("Answer")


class Processes:
    """All processes that the launcher started, seen from one of them: number `rank` of `count`, on `device`.

    Making it joins them; `main` is whether this is process 0. Errors: `InputError` where an earlier run in this process
    used another precision, and where the launcher started more processes than were joined.
    """

    def __init__(self, *, device_type: str, mixed_precision: str, trackers: Sequence[str], folder: Path) -> None:
        join_again(WAIT_FOR_OTHERS)
        # Accelerate joins CPU processes only when it is told that there is nothing but a CPU.
        try:
            self.accelerator = Accelerator(
                cpu=device_type == "cpu", mixed_precision=mixed_precision,
                log_with=list(trackers) or None, project_dir=folder,
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=WAIT_FOR_OTHERS),
                    # No copy of the gradients, and no sending of buffers before each step: see `RunningStatistics`.
                    DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
                ],
            )  # fmt: skip
        except ValueError as error:  # it keeps the settings of the first one that a process makes
            raise InputError(f"mixed_precision={mixed_precision}: {error}") from error
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self._share_cores()

    def say(self, line: str) -> None:
        """Print a line on standard error, once for all processes."""
        if self.main:
            tqdm.write(printable(line), file=sys.stderr)

    def require_all_joined(self, environment: Mapping[str, str]) -> None:
        """Say how many run; `InputError` where the launcher started more, which would all write the same folder."""
        self.say(f"{self.count} process{'es' if self.count > 1 else ''} on {self.device.type}")
        asked = processes_started(environment) or self.count
        if asked != self.count:
            raise InputError(
                f"the launcher started {asked} processes, but they were not joined: {self.count} runs here"
            )
        if self.count == 1 and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
            self.say(
                "warning: the launcher was asked for more processes but started only this one; "
                "on CPUs start them with: accelerate launch --multi_gpu --num_processes N -m seresnet_hub COMMAND"
            )

    def from_main(self, ask: Callable[[], Answer]) -> Answer:
        """Return on all processes what `ask` returns on the main one; an `InputError` there is one on all."""
        answers: list[Any] = [None]
        if self.main:
            try:
                answers = [ask()]
            except InputError as error:
                answers = [error]
        broadcast_object_list(answers)
        if isinstance(answers[0], InputError):
            raise answers[0]
        answer: Answer = answers[0]
        return answer

    def gathered(self, value: Answer) -> list[Answer]:
        """Return what each process gave, in the order of their numbers; all have to call it."""
        answers: list[Any] = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(answers, value)
        return answers

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process go first, and let the others wait for it as long as it takes."""
        group: Any = None if self.count == 1 else distributed.new_group(timeout=WAIT_FOR_READING, backend="gloo")
        if group is not None and not self.main:
            distributed.barrier(group)
        yield
        if group is not None and self.main:
            distributed.barrier(group)

    def wait_for_all(self) -> None:
        """Wait until every process has come here, as long as it takes."""
        if self.count > 1:
            group: Any = distributed.new_group(timeout=WAIT_FOR_READING, backend="gloo")
            distributed.barrier(group)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process; all have to call it."""
        if self.count == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(int(flag), device=self.device)).item())

    def total(self, counts: torch.Tensor) -> torch.Tensor:
        """Return the tensor, summed over the processes."""
        summed: torch.Tensor = self.accelerator.reduce(counts, reduction="sum")
        return summed

    def summed(self, values: list[torch.Tensor]) -> list[float]:
        """Return the scalars, each summed over the processes in float64; waits for the device."""
        return self.total(torch.stack(values).double()).tolist()

    def _share_cores(self) -> None:
        """Let the processes on this machine share its cores, where a launcher has left each of them a single thread.

        `accelerate launch` and `torchrun` set OMP_NUM_THREADS=1 on their own; a person's own setting is kept otherwise.
        """
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        if self.device.type == "cpu" and launched and os.environ.get("OMP_NUM_THREADS") == "1":
            local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(max(1, usable_cpus() // local_processes))
