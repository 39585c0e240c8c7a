"""Emulate an epoch of training on several GPUs: what loader workers fetch and decode, and what each step waits for.

An event-driven simulation. Each reader (a loader worker) fetches row groups in a few threads, decodes its rows of each
batch one after the other, and is at most so many batches ahead of its GPU. A step begins when every GPU has its part of
the batch. All readers share the requests that the Hub allows, the network and the disk. Nothing is read or computed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

ON_DEVICE = 1  # batches that wait on the GPU
# Row groups that a reader fetches at once, and keeps ahead, where the data is not on this machine, and where it is.
REMOTE_AHEAD, LOCAL_AHEAD = 4, 1


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is emulated: `readers` is over all GPUs, `batch_size` counts augmented images, times are in seconds.

    `cpu_spread` is the standard deviation of one image's CPU time, divided by its mean. Workers prepare
    `batches_ahead` of the one that a GPU took last. A row group costs
    `requests_a_row_group`, and a file's address costs one request of each of `address_holders` groups of readers, and
    is used for `address_seconds`. `network` and `disk` are in bytes/s.
    """

    gpus: int
    gpu_images_per_second: float
    readers: int
    cpu_seconds_per_image: float
    cpu_spread: float
    batch_size: int
    repeats: int
    steps: int
    batches_ahead: int
    row_group_rows: int
    row_group_bytes: float
    files: int
    requests_a_row_group: float
    address_holders: int
    address_seconds: float
    network: float
    disk: float
    seconds_a_request: float

    @property
    def step_seconds(self) -> float:
        """How long the GPUs compute a step, once it can begin."""
        return self.batch_size / (self.gpus * self.gpu_images_per_second)

    @property
    def row_groups(self) -> float:
        """How many row groups the steps of an epoch take, over all readers."""
        return self.steps * self.batch_size / self.repeats / self.row_group_rows


@dataclass
class Limit:
    """Requests that an account may make: `requests` in `seconds`, as a bucket of tokens that refills evenly.

    The Hub counts in fixed windows, which allow the same number in the long run.
    """

    requests: float
    seconds: float
    _left: float = field(init=False)
    _at: float = field(default=0.0, init=False)
    waited: float = field(default=0.0, init=False)  # seconds until requests were allowed, of all together

    def __post_init__(self) -> None:
        self._left = self.requests

    def take(self, requests: float, now: float) -> float:
        """Return when so many requests may be made, at `now` or later; who asks first is served first."""
        start = max(now, self._at)
        self._left, self._at = self.left(start), start
        if requests > self._left:
            self._at += (requests - self._left) * self.seconds / self.requests
            self._left = requests
        self._left -= requests
        self.waited += self._at - now
        return self._at

    def left(self, now: float) -> float:
        """Return how many requests may be made at `now`."""
        return min(self.requests, self._left + max(now - self._at, 0) * self.requests / self.seconds)


@dataclass
class Line:
    """A network or a disk, which moves one row group after the other."""

    bytes_per_second: float
    free_at: float = 0.0

    def take(self, size: float, now: float) -> float:
        """Return when `size` bytes have arrived."""
        self.free_at = max(now, self.free_at) + size / self.bytes_per_second
        return self.free_at


@dataclass(frozen=True)
class Epoch:
    """How long an epoch took, in seconds, and which share of that time each resource was at work."""

    seconds: float
    requests: float
    shares: dict[str, float]

    @property
    def held_up_by(self) -> str:
        """The resource that was at work for the largest part of the time."""
        return max(self.shares, key=lambda name: self.shares[name])


@dataclass
class _Reader:
    rank: int
    ends: np.ndarray  # the rows that its parts of the batches take, summed up to each batch
    seconds: np.ndarray  # CPU time of its part of each batch
    groups: int
    next_batch: int = 0
    submitted: int = 0  # row groups that were asked for
    waiting: deque[int] = field(default_factory=deque)  # of these, those without a thread
    fetching: int = 0
    arrived: set[int] = field(default_factory=set)
    decoding: bool = False


class Simulation:
    """Epochs one after the other, on one clock and one account."""

    def __init__(self, setup: Setup, limit: Limit, seed: int = 0) -> None:
        self._setup, self._limit = setup, limit
        self._random = np.random.default_rng(seed)
        self._network, self._disk = Line(setup.network), Line(setup.disk)
        self._addresses: dict[tuple[int, int], float] = {}  # when a group of readers last asked where a file is
        self.now = 0.0  # seconds since the first epoch began
        self._requests = 0.0

    def epoch(self, cached: float = 0.0) -> Epoch:
        """Emulate one epoch of which the share `cached` of the row groups is on this machine."""
        began, requests_before = self.now, self._requests
        self._begin(cached)
        while self._events:
            self.now, _, act, argument = heapq.heappop(self._events)
            act(argument)
        assert self._step == self._setup.steps, "every step is done, or the emulation is wrong"
        self.now = self._gpu_free
        seconds, requests = self.now - began, self._requests - requests_before
        setup = self._setup
        bytes_read = setup.row_groups * setup.row_group_bytes
        remote = self._fetched_remotely / max(self._fetched, 1)
        return Epoch(seconds, requests, {
            "GPUs": setup.steps * setup.step_seconds / seconds,
            "CPU": self._decoding_seconds / setup.readers / seconds,
            "requests": requests * self._limit.seconds / self._limit.requests / seconds,
            "network": bytes_read * remote / setup.network / seconds,
            "disk": bytes_read * (1 - remote) / setup.disk / seconds,
        })  # fmt: skip

    # ------------------------------------------------------------------ the state of one epoch

    def _begin(self, cached: float) -> None:
        setup = self._setup
        self._cached = cached
        self._ahead = LOCAL_AHEAD if cached == 1 else REMOTE_AHEAD
        self._events: list[tuple[float, int, Callable[[int], None], int]] = []
        self._number = count()
        self._step, self._gpu_free = 0, self.now
        self._fetched = self._fetched_remotely = 0
        self._decoding_seconds = 0.0
        self._taken = [0] * setup.gpus  # batches that each GPU's process took from its loader
        per_gpu = setup.readers // setup.gpus
        self._missing = [[per_gpu] * setup.steps for _ in range(setup.gpus)]
        self._ready = np.zeros(setup.steps, np.int64)  # GPUs that took a batch
        self._readers = [self._reader(number, number // per_gpu) for number in range(setup.readers)]
        for number in range(setup.readers):
            self._fetch_ahead(number)

    def _reader(self, number: int, rank: int) -> _Reader:
        """Return a reader with its share of each batch: whole rows, consecutive places."""
        setup = self._setup
        rows = setup.batch_size // setup.repeats
        mine = -(-rows * (number + 1) // setup.readers) + (-rows * number // setup.readers)
        mean, spread = mine * setup.repeats * setup.cpu_seconds_per_image, setup.cpu_spread
        seconds = np.full(setup.steps, mean)
        if spread and mine:  # a sum of independent times: the mean and the variance of a gamma distribution
            shape = mine / spread**2
            seconds = self._random.gamma(shape, mean / shape, setup.steps)
        ends = np.arange(1, setup.steps + 1) * mine
        return _Reader(rank, ends, seconds, -(-int(ends[-1]) // setup.row_group_rows))

    def _at(self, when: float, act: Callable[[int], None], argument: int) -> None:
        heapq.heappush(self._events, (when, next(self._number), act, argument))

    # ------------------------------------------------------------------ fetching

    def _fetch_ahead(self, number: int) -> None:
        """Ask for the row groups up to `ahead` after the one that the next batch ends in."""
        reader = self._readers[number]
        if reader.next_batch < self._setup.steps:
            needed = -(-int(reader.ends[reader.next_batch]) // self._setup.row_group_rows)
            while reader.submitted < min(needed + self._ahead, reader.groups):
                reader.waiting.append(reader.submitted)
                reader.submitted += 1
        while reader.waiting and reader.fetching < self._ahead:
            reader.fetching += 1
            self._request(number, reader.waiting.popleft())

    def _request(self, number: int, group: int) -> None:
        setup = self._setup
        self._fetched += 1
        argument = group * setup.readers + number
        if self._random.random() < self._cached:
            self._at(self._disk.take(setup.row_group_bytes, self.now), self._arrived, argument)
            return
        self._fetched_remotely += 1
        requests = setup.requests_a_row_group
        if setup.address_holders:
            key = number * setup.address_holders // setup.readers, int(self._random.integers(setup.files))
            if self._addresses.get(key, -np.inf) + setup.address_seconds <= self.now:
                self._addresses[key] = self.now
                requests += 1
        self._requests += requests
        allowed = self._limit.take(requests, self.now) if requests else self.now
        self._at(allowed + (requests + 1) * setup.seconds_a_request, self._transfer, argument)

    def _transfer(self, argument: int) -> None:
        self._at(self._network.take(self._setup.row_group_bytes, self.now), self._arrived, argument)

    def _arrived(self, argument: int) -> None:
        group, number = divmod(argument, self._setup.readers)
        reader = self._readers[number]
        reader.fetching -= 1
        reader.arrived.add(group)
        self._fetch_ahead(number)
        self._decode(number)

    # ------------------------------------------------------------------ decoding, and the steps

    def _decode(self, number: int) -> None:
        """Begin with the next batch where its rows are here and the loader has asked for it."""
        reader = self._readers[number]
        batch = reader.next_batch
        if (
            reader.decoding
            or batch >= self._setup.steps
            or batch >= self._taken[reader.rank] + self._setup.batches_ahead
        ):
            return
        first = int(reader.ends[batch - 1]) // self._setup.row_group_rows if batch else 0
        last = (int(reader.ends[batch]) - 1) // self._setup.row_group_rows
        if any(group not in reader.arrived for group in range(first, last + 1)):
            return
        reader.arrived.difference_update(range(first))
        reader.decoding = True
        self._decoding_seconds += reader.seconds[batch]
        self._at(self.now + reader.seconds[batch], self._decoded, number)

    def _decoded(self, number: int) -> None:
        reader = self._readers[number]
        reader.decoding = False
        self._missing[reader.rank][reader.next_batch] -= 1
        reader.next_batch += 1
        self._fetch_ahead(number)
        self._take(reader.rank)
        self._decode(number)

    def _take(self, rank: int) -> None:
        """Let a GPU's process take its batches that are whole, at most one before the GPU needs it."""
        batch = self._taken[rank]
        if batch >= self._setup.steps or self._missing[rank][batch] or batch > self._step + ON_DEVICE - 1:
            return
        self._taken[rank] += 1
        self._ready[batch] += 1
        per_gpu = self._setup.readers // self._setup.gpus
        for number in range(rank * per_gpu, (rank + 1) * per_gpu):
            self._decode(number)
        if batch == self._step and self._ready[batch] == self._setup.gpus:
            self._at(max(self.now, self._gpu_free), self._begin_step, batch)

    def _begin_step(self, batch: int) -> None:
        self._gpu_free = self.now + self._setup.step_seconds
        self._step = batch + 1
        for rank in range(self._setup.gpus):
            self._take(rank)


def epoch_seconds(setup: Setup, limit: Limit, cached: float = 0.0) -> float:
    """Return what an epoch takes where nothing but the slowest resource counts: the formula beside the emulation."""
    images = setup.steps * setup.batch_size
    remote, size = setup.row_groups * (1 - cached), setup.row_groups * setup.row_group_bytes
    addresses = setup.address_holders * setup.files if remote else 0
    return max(
        setup.steps * setup.step_seconds,
        images * setup.cpu_seconds_per_image / setup.readers,
        (remote * setup.requests_a_row_group + addresses) * limit.seconds / limit.requests,
        size * (1 - cached) / setup.network,
        size * cached / setup.disk,
    )
