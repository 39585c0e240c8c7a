"""What a loader is asked for: the record that its process and its workers share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seresnet_hub.data.decoding import Decoder
from seresnet_hub.data.plan import Plan, Reader
from seresnet_hub.data.split import Split

# What workers prepare ahead of the batch in use: at least so many batches, and so many images of each worker.
LEAST_AHEAD, MOST_AHEAD, IMAGES_AHEAD = 2, 32, 32
# Bytes of the batches that are prepared ahead, where these are more than the least.
MOST_BYTES_AHEAD = 64 * 2**20


def batches_ahead(rows: int, readers: int) -> int:
    """Return how many batches to prepare ahead, whose `rows` so many readers divide: more where each has few of them.

    Otherwise each batch waits for the images that take longest, while most workers have nothing to do.
    """
    return min(max(-(-IMAGES_AHEAD * readers // max(rows, 1)), LEAST_AHEAD), MOST_AHEAD)


def fitting_ahead(batches: int, batch_bytes: int) -> int:
    """Return how many of the batches to prepare ahead, of so many bytes each, have room in memory."""
    return min(batches, max(MOST_BYTES_AHEAD // max(batch_bytes, 1), LEAST_AHEAD))


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """The batches of one epoch on one rank: of which rows, how decoded, and by how many workers.

    `size` is height and width in pixels. Labels must be below `num_classes`, where it is known. Each image is augmented
    `repeats` times. `corrupt_share` of the images may be undecodable (see `most_damaged`). `workers=0` works in the
    loader's own process. With `reports_errors`, any image may be undecodable and any label missing: batches then say
    which rows are, and why, and how pictures are called (`Batch.errors`, `Batch.paths`); with `reports_paths` they say
    the latter alone.
    """

    split: Split
    plan: Plan
    decoder: Decoder
    size: tuple[int, int]
    num_classes: int | None
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    repeats: int = 1
    corrupt_share: float = 0.0
    reports_errors: bool = False
    reports_paths: bool = False

    @property
    def readers(self) -> int:
        """The readers among which this rank divides its places of a batch: its workers, or its own process."""
        return max(self.workers, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of this rank's part of the largest batch: rows, height, width, channels."""
        return (self.rows(0), *self.size, 3)

    @property
    def ahead(self) -> int:
        """The batches to prepare ahead (see `batches_ahead`)."""
        return batches_ahead(self.rows(0), self.readers)

    def of_epoch(self, epoch: int) -> LoaderSpec:
        """Return what is asked for in another epoch; without an order all epochs are the same."""
        order = self.plan.order
        if order is None or order.epoch == epoch:
            return self
        return replace(self, plan=replace(self.plan, order=order._replace(epoch=epoch)))

    def reader(self, number: int) -> Reader:
        """Return one of this rank's readers as one among those of all ranks."""
        return Reader(self.rank, self.world_size, number, self.readers)

    def rows(self, batch: int) -> int:
        """Return the length of every rank's part of a batch, padding included."""
        return self.plan.share(batch, self.world_size) * self.repeats
