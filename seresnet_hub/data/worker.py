"""What a loader worker does: decode the rows that stand in its own places of each batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from seresnet_hub.data.decoding import DecodedImage, TransformError
from seresnet_hub.data.files_ahead import FilesAhead
from seresnet_hub.data.loader_spec import LoaderSpec
from seresnet_hub.data.plan import Reader
from seresnet_hub.data.read_image import UnavailableError
from seresnet_hub.data.row_reader import RowReader
from seresnet_hub.data.shared_batches import SharedBatches
from seresnet_hub.data.transforms import reseed, streams_kept
from seresnet_hub.data.units import Row, picture_bytes
from seresnet_hub.errors import InputError


class Request(NamedTuple):
    """What a worker is asked for: a reader's rows of a batch, written into a slot of the shared batches or returned."""

    batch: int
    reader: int
    slot: int | None


class WorkerRows(NamedTuple):
    """A worker's rows of a batch, small enough for one write to a pipe: the images are in `slot`, or else here.

    As an array they go through the pipe, where a tensor would need room in /dev/shm. `undecodable` has a text for each
    image that is left out.
    """

    slot: int | None
    images: np.ndarray | None
    labels: np.ndarray
    mask: np.ndarray
    mirror: np.ndarray
    indices: np.ndarray
    undecodable: list[str]


class RowDecoder(Dataset[WorkerRows | InputError]):
    """Answers the requests of a loader. A failure travels as a value, to keep its text."""

    def __init__(self, spec: LoaderSpec, shared: SharedBatches | None) -> None:
        self._spec, self._shared = spec, shared
        self._readers: dict[int, RowReader | FilesAhead] = {}

    def __getitem__(self, request: Request) -> WorkerRows | InputError:
        spec = self._spec
        try:
            reader = self._readers.get(request.reader)
            if reader is None or reader.next_batch != request.batch:
                reader = RowReader(spec.split, spec.plan, spec.reader(request.reader), request.batch)
                if spec.split.class_folders is not None and spec.split.is_far:
                    reader = FilesAhead(reader, spec.split, spec.plan.steps)
                self._readers[request.reader] = reader
            with streams_kept():
                return self._decoded(request, reader.next_rows())
        except InputError as error:
            return error
        except MemoryError:
            return InputError(f"not enough memory to prepare the images of {spec.split.source}")

    def _decoded(self, request: Request, rows: list[tuple[int, Row]]) -> WorkerRows:
        spec, repeats, order = self._spec, self._spec.repeats, self._spec.plan.order
        low, high = spec.plan.places(request.batch, spec.reader(request.reader))
        count = (high - low) * repeats
        if self._shared is not None and request.slot is not None:
            first = (low - spec.plan.places(request.batch, Reader(spec.rank, spec.world_size))[0]) * repeats
            images = self._shared.batch(request.slot)[first : first + count]
        else:
            images = torch.empty((count, *spec.size, 3), dtype=torch.uint8)
        done = WorkerRows(
            request.slot, images.numpy() if request.slot is None else None,
            np.zeros(count, np.int64), np.zeros(count, bool), np.zeros(count, bool), np.full(count, -1, np.int64), [],
        )  # fmt: skip
        for place, row in rows:
            copies = slice((place - low) * repeats, (place - low + 1) * repeats)
            done.indices[copies], label = row.number, self._label(row)
            try:
                picture = self._picture(row)  # decoded once, augmented several times
                for repeat in range(repeats):
                    at = copies.start + repeat
                    if order is not None:  # each copy has draws of its own
                        reseed(order.seed, order.epoch, row.number, *([repeat] if repeat else []))
                    done.mirror[at] = spec.decoder.apply(picture, images[at].permute(2, 0, 1))
            except UnavailableError as error:
                raise InputError(f"{self._name(row)}: {error}") from error
            except TransformError as error:
                raise InputError(f"{self._name(row)}: {error}; the picture itself is whole") from error
            except InputError as error:
                images[copies] = 0  # masked, but batch statistics see them
                done.mirror[copies] = False
                done.undecodable.append(f"{self._name(row)}: {error}")
            else:
                done.labels[copies], done.mask[copies] = label, True
        return done

    def _picture(self, row: Row) -> DecodedImage:
        """Read and decode. Errors: `InputError`, and its kind `UnavailableError` where it is out of reach."""
        try:
            return self._spec.decoder.decode(picture_bytes(self._spec.split, row.image or {}))
        except (OSError, TypeError, ValueError) as error:
            raise InputError(error) from error

    def _name(self, row: Row) -> str:
        path = row.image.get("path") if row.image else None
        return self._spec.split.place(row.number) + (f" ({path})" if path else "")

    def _label(self, row: Row) -> int:
        label, num_classes = row.label, self._spec.num_classes
        if not isinstance(label, int) or label < 0 or (num_classes is not None and label >= num_classes):
            expected = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
            raise InputError(f"{self._spec.split.place(row.number)}: label {label!r}, expected {expected}")
        return label
