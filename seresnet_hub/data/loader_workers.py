"""The worker processes of a run's loaders: started once, and asked for what comes next before a pass ends.

A pass is an epoch or an evaluation. Requests to workers are answered in their order, so where it is known which pass
comes next, its first batches are prepared while the last ones of the present pass are in use.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from seresnet_hub.data.loader_spec import LoaderSpec, fitting_ahead
from seresnet_hub.data.shared_batches import SharedBatches
from seresnet_hub.data.units import require_unchanged_files
from seresnet_hub.data.worker import PassKey, Request, RowDecoder, WorkerRows
from seresnet_hub.data.worker_pool import WorkerPool
from seresnet_hub.errors import InputError

# Seconds that the first batch of an announced pass waits for the look at its shards, and new workers for all looks.
LOOK_PATIENCE, LONGEST_LOOK = 1.0, 60.0


class Pass(NamedTuple):
    """The batches of an epoch or an evaluation, from `start` on, to the end or before `stop`."""

    spec: LoaderSpec
    start: int = 0
    stop: int | None = None

    @property
    def end(self) -> int:
        """The batch before which the pass ends."""
        steps = self.spec.plan.steps
        return steps if self.stop is None else min(self.stop, steps)


class _Expected(NamedTuple):
    """A pass that is announced or asked for, and the look at its shards, once that was begun."""

    key: PassKey
    what: Pass
    shards_looked_at: list[Future[None]]


class _Asked(NamedTuple):
    """What the workers were asked for: a batch of a pass, in a slot of the shared batches; or nothing."""

    number: int | None
    batch: int
    slot: int | None


class LoaderWorkers:
    """The workers of all loaders of a process, started at the first pass; a context, at whose end they end.

    They know the `specs`, which differ in more than their epochs; a pass of another spec starts new workers.
    """

    def __init__(self, *specs: LoaderSpec) -> None:
        self._specs = list(specs)
        self._announced: Iterator[Pass] = iter(())
        self._numbers = count(1)
        self._taken = 0  # the number of the pass that a loader took up last
        self._coming: deque[_Expected] = deque()  # nothing of these was asked for
        self._begun: deque[_Expected] = deque()  # of these something was, and no loader has taken them up
        self._asked: deque[_Asked] = deque()  # not answered yet
        self._pool: WorkerPool | None = None
        self._shared: SharedBatches | None = None
        self._looks: list[Future[None]] = []  # at shards, begun in threads
        self._width = 1  # answers to each batch, one of each worker

    def announce(self, passes: Iterable[Pass]) -> None:
        """Say which passes come next, in order, beginning with the one that is asked for next.

        Another one may be asked for all the same: then what was prepared is dropped, and the announcement with it.
        """
        self._announced = iter(passes)
        self._coming.clear()

    def batches(self, asked: Pass) -> Iterator[tuple[list[WorkerRows], torch.Tensor | None]]:
        """Yield for each batch of a pass what its readers made, and its images where they are in shared memory.

        Errors: `InputError` where the split's shards are not what they were, or a worker fails. Where the pass was
        announced, its first batch waits a second for the look at the shards, and its last one as long as it takes.
        """
        taken, last = self._take_up(asked), asked.end - 1
        for batch in range(asked.start, last + 1):
            if self._taken != taken.key.number:  # another pass was taken up meanwhile
                taken = self._take_up(asked._replace(start=batch))
            answers, slot = self._answers_to(taken.key.number, batch)
            parts = [answer for answer in answers[: asked.spec.readers] if not isinstance(answer, InputError)]
            errors = [answer for answer in answers if isinstance(answer, InputError)]
            del answers
            if batch == asked.start:
                wait(taken.shards_looked_at, LOOK_PATIENCE)
            for look in taken.shards_looked_at:  # what cannot be read may have been changed, which says more
                if errors or batch == last or look.done():
                    look.result()
            if errors:
                raise errors[0]
            shared = self._shared if parts[0].slot is not None else None
            yield parts, shared.lend(slot, asked.spec.shape) if shared is not None and slot is not None else None
            del parts

    def __enter__(self) -> LoaderWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.__exit__(*error)

    def close(self) -> None:
        """End the workers; the next pass starts new ones."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._shared = None
        self._announced = iter(())
        for passes in (self._coming, self._begun, self._asked):
            passes.clear()

    # ------------------------------------------------------------------ passes

    def _take_up(self, asked: Pass) -> _Expected:
        """Return the pass that a loader asks for, as it was announced, or else anew; drops all that come before it."""
        self._look_ahead()
        found = next((one for one in (*self._begun, *self._coming) if one.what == asked), None)
        if found is None or not found.shards_looked_at:
            require_unchanged_files(asked.spec.split)
        if found is None:
            if self._index(asked.spec) is None:
                self.close()
                self._specs.append(asked.spec)
            self._announced = iter(())
            self._coming.clear()
            found = self._expected(asked)
            self._coming.append(found)
        self._taken = found.key.number
        for passes in (self._begun, self._coming):
            while passes and passes[0].key.number < self._taken:
                passes.popleft()
        if self._begun and self._begun[0] is found:
            self._begun.popleft()
        if self._pool is None:
            self._start()
        return found

    def _look_ahead(self) -> None:
        """Take over what is announced, up to two passes."""
        while len(self._coming) < 2 and (announced := next(self._announced, None)) is not None:
            if self._index(announced.spec) is None:  # workers do not know it, so it must wait until it is asked for
                self._announced = iter(())
                return
            self._coming.append(self._expected(announced))

    def _expected(self, what: Pass) -> _Expected:
        spec, order = self._index(what.spec), what.spec.plan.order
        assert spec is not None
        epoch = order.epoch if order else 0
        return _Expected(PassKey(next(self._numbers), spec, epoch, what.start, what.end), what, [])

    def _index(self, spec: LoaderSpec) -> int | None:
        """Return which of the specs it is, whatever its epoch."""
        first = spec.of_epoch(0)
        return next((number for number, one in enumerate(self._specs) if one.of_epoch(0) == first), None)

    # ------------------------------------------------------------------ workers

    def _start(self) -> None:
        with_workers = [spec for spec in self._specs if spec.workers]
        number = max((spec.readers for spec in with_workers), default=0)
        self._width = max(number, 1)
        ahead = None
        if with_workers:
            shape = max((spec.shape for spec in with_workers), key=_product)
            ahead = fitting_ahead(max(spec.ahead for spec in with_workers), _product(shape))
            self._shared = SharedBatches(ahead + 2, shape)
            wait(self._looks, LONGEST_LOOK)  # a fork copies the locks that their threads hold, and nobody frees them
        loader_of = partial(
            DataLoader, RowDecoder(self._specs, self._shared), batch_size=None, sampler=self._requests(),
            collate_fn=_unchanged, prefetch_factor=ahead,
        )  # fmt: skip
        try:
            self._pool = WorkerPool(loader_of, number)
        except BaseException:
            self.close()
            raise

    def _requests(self) -> Iterator[Request | None]:
        """Yield the requests to the workers, one to each in turn; torch's loader asks when it needs one.

        Where no pass is known to come, the workers are asked for nothing, so that there are always as many requests
        under way; so too where all of the next pass was asked for, as each pass looks at its shards shortly before it.
        """
        while True:
            self._look_ahead()
            if not self._coming or self._begun:
                self._asked.append(_Asked(None, 0, None))
                yield from [None] * self._width
                continue
            current = self._coming.popleft()
            spec, number = current.what.spec, current.key.number
            if number != self._taken:
                self._begun.append(current)
                current.shards_looked_at.append(_in_background(partial(require_unchanged_files, spec.split)))
                self._looks = [*(look for look in self._looks if not look.done()), *current.shards_looked_at]
            for batch in range(current.what.start, current.what.end):
                if number < self._taken:
                    break
                self._look_ahead()
                slot = self._shared.reserve() if self._shared is not None else None
                self._asked.append(_Asked(number, batch, slot))
                upcoming = self._coming[0].key if self._coming else None
                for reader in range(self._width):
                    yield Request(current.key, batch, reader, slot, upcoming)

    def _answers_to(self, number: int, batch: int) -> tuple[list[WorkerRows | InputError], int | None]:
        """Return the workers' answers for a batch, and its slot; drops those for what was dropped itself."""
        assert self._pool is not None
        try:
            while True:
                answers = [self._pool.answer() for _ in range(self._width)]
                asked = self._asked.popleft()
                if (asked.number, asked.batch) == (number, batch):
                    return answers, asked.slot
                if self._shared is not None and asked.slot is not None:
                    self._shared.release(asked.slot)
        except BaseException:  # what the workers were asked for and what they answer are no longer in step
            self.close()
            raise


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Run `work` in a thread that does not keep the process from ending."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            with suppress(BaseException):
                future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="shards", daemon=True).start()
    return future


def _product(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _unchanged(rows: Any) -> Any:
    return rows
