"""What a loader worker does: decode the rows that stand in its own places of each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from seresnet_hub.data.decoding import DecodedImage, TransformError
from seresnet_hub.data.files_ahead import FilesAhead
from seresnet_hub.data.loader_spec import LoaderSpec
from seresnet_hub.data.picture_list import as_rgb
from seresnet_hub.data.plan import Reader
from seresnet_hub.data.read_image import OutOfResourcesError, UnavailableError
from seresnet_hub.data.row_reader import RowReader
from seresnet_hub.data.shared_batches import SharedBatches
from seresnet_hub.data.transforms import reseed, streams_kept
from seresnet_hub.data.units import Row, picture_bytes
from seresnet_hub.errors import InputError


class PassKey(NamedTuple):
    """How workers know a pass over a split: its number, which of their specs it has, its epoch and its batches."""

    number: int
    spec: int
    epoch: int
    start: int
    stop: int


class Request(NamedTuple):
    """What a worker is asked for: a reader's rows of a batch, written into a slot of the shared batches or returned.

    `upcoming` is the pass that comes after this one, as far as that is known.
    """

    current: PassKey
    batch: int
    reader: int
    slot: int | None
    upcoming: PassKey | None


class Undecodable(NamedTuple):
    """An image that cannot be read: its row within the split, what it is called, and why."""

    row: int
    name: str
    reason: str


class WorkerRows(NamedTuple):
    """A worker's rows of a batch, small enough for one write to a pipe: the images are in `slot`, or else here.

    As an array they go through the pipe, where a tensor would need room in /dev/shm. `undecodable` has the images that
    are left out, and `paths` how pictures are called where the rows of a data set say it, by the numbers of the rows.
    """

    slot: int | None
    images: np.ndarray | None
    labels: np.ndarray
    mask: np.ndarray
    mirror: np.ndarray
    indices: np.ndarray
    undecodable: list[Undecodable]
    paths: dict[int, str]


class RowDecoder(Dataset[WorkerRows | InputError | None]):
    """Answers the requests of a loader. A failure travels as a value, to keep its text.

    When all units of a pass are read or being read, those that the upcoming one needs first are read as well.
    """

    def __init__(self, specs: Sequence[LoaderSpec], shared: SharedBatches | None) -> None:
        self._specs, self._shared = specs, shared
        self._specs_of: dict[int, LoaderSpec] = {}  # by the numbers of passes, as the next
        self._readers: dict[int, RowReader | FilesAhead] = {}

    def __getitem__(self, request: Request | None) -> WorkerRows | InputError | None:
        """Return what was asked for, `None` where that is nothing."""
        if request is None:
            return None
        for earlier in [number for number in self._specs_of if number < request.current.number]:
            del self._specs_of[earlier]
            self._readers.pop(earlier, None)
        spec = self._spec(request.current)
        try:
            reader = self._reader(request.current, request.reader, request.batch)
            rows = reader.next_rows() if reader is not None else []
            if request.upcoming is not None and (reader is None or reader.has_begun_all):
                upcoming = self._reader(request.upcoming, request.reader, request.upcoming.start)
                if upcoming is not None:
                    upcoming.read_ahead()
            if reader is None:
                return None
            with streams_kept():
                return self._decoded(spec, request, rows)
        except InputError as error:
            return error
        except MemoryError:
            return InputError(f"not enough memory to prepare the images of {spec.split.source}")

    def _spec(self, key: PassKey) -> LoaderSpec:
        if key.number not in self._specs_of:
            self._specs_of[key.number] = self._specs[key.spec].of_epoch(key.epoch)
        return self._specs_of[key.number]

    def _reader(self, key: PassKey, number: int, batch: int) -> RowReader | FilesAhead | None:
        """Return a reader of a pass, at a batch; `None` where the pass has fewer readers."""
        spec, reader = self._spec(key), self._readers.get(key.number)
        if number >= spec.readers:
            return None
        if reader is None or reader.next_batch != batch:
            reader = RowReader(spec.split, spec.plan, spec.reader(number), batch)
            if (spec.split.class_folders is not None or spec.split.pictures is not None) and spec.split.is_far:
                reader = FilesAhead(reader, spec.split, key.stop)
            self._readers[key.number] = reader
        return reader

    def _decoded(self, spec: LoaderSpec, request: Request, rows: list[tuple[int, Row]]) -> WorkerRows:
        repeats, order = spec.repeats, spec.plan.order
        low, high = spec.plan.places(request.batch, spec.reader(request.reader))
        count = (high - low) * repeats
        if self._shared is not None and request.slot is not None:
            first = (low - spec.plan.places(request.batch, Reader(spec.rank, spec.world_size))[0]) * repeats
            images = self._shared.batch(request.slot, spec.shape)[first : first + count]
        else:
            images = torch.empty((count, *spec.size, 3), dtype=torch.uint8)
        done = WorkerRows(
            request.slot, images.numpy() if request.slot is None else None,
            np.zeros(count, np.int64), np.zeros(count, bool), np.zeros(count, bool), np.full(count, -1, np.int64),
            [], {},
        )  # fmt: skip
        for place, row in rows:
            copies = slice((place - low) * repeats, (place - low + 1) * repeats)
            done.indices[copies], label = row.number, _label(spec, row)
            if spec.reports_errors:
                done.labels[copies] = label
            says_paths = spec.split.dataset is not None and (spec.reports_errors or spec.reports_paths)
            if says_paths and row.image and row.image.get("path"):
                done.paths[row.number] = row.image["path"]
            try:
                picture = _picture(spec, row)  # decoded once, augmented several times
                for repeat in range(repeats):
                    at = copies.start + repeat
                    if order is not None:  # each copy has draws of its own
                        reseed(order.seed, order.epoch, row.number, *([repeat] if repeat else []))
                    done.mirror[at] = spec.decoder.apply(picture, images[at].permute(2, 0, 1))
            except UnavailableError as error:
                if spec.split.pictures is None or isinstance(error, OutOfResourcesError):
                    raise InputError(f"{_name(spec, row)}: {error}") from error
                done.undecodable.append(_left_out(spec, row, error, images[copies]))
            except TransformError as error:
                raise InputError(f"{_name(spec, row)}: {error}; the picture itself is whole") from error
            except InputError as error:
                done.mirror[copies] = False
                done.undecodable.append(_left_out(spec, row, error, images[copies]))
            else:
                done.labels[copies], done.mask[copies] = label, True
        return done


def _picture(spec: LoaderSpec, row: Row) -> DecodedImage:
    """Read and decode. Errors: `InputError`, and its kind `UnavailableError` where it is out of reach."""
    image = row.image or {}
    try:
        if image.get("picture") is not None and image["bytes"] is None:
            return as_rgb(image["picture"])
        return spec.decoder.decode(picture_bytes(spec.split, image))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(error) from error


def _left_out(spec: LoaderSpec, row: Row, error: InputError, images: torch.Tensor) -> Undecodable:
    images.zero_()  # masked, but batch statistics see them
    return Undecodable(row.number, _name(spec, row), str(error))


def _name(spec: LoaderSpec, row: Row) -> str:
    path = row.image.get("path") if row.image and spec.split.pictures is None else None
    return spec.split.place(row.number) + (f" ({path})" if path else "")


def _label(spec: LoaderSpec, row: Row) -> int:
    label, num_classes = row.label, spec.num_classes
    if spec.reports_errors and (not isinstance(label, int) or label < 0):
        return -1
    if not isinstance(label, int) or label < 0 or (num_classes is not None and label >= num_classes):
        expected = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise InputError(f"{spec.split.place(row.number)}: label {label!r}, expected {expected}")
    return label
