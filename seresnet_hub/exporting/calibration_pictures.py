"""Choose the pictures that int8 is calibrated on: they show it how large the values within the network become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from seresnet_hub.data.held_out import without_held_out
from seresnet_hub.data.open_split import NoSplitError, open_split, public_name
from seresnet_hub.data.split import Split
from seresnet_hub.data.transforms import model_transform, normalize
from seresnet_hub.data.units import Row, picture_of, rows_of, unit_labels
from seresnet_hub.errors import InputError, PrintableLog, printable
from seresnet_hub.inference.sources import open_sources

COUNT, LEAST = 300, 10
MOST_FETCHED = 16  # of a remote data set's units, as a whole one is fetched for one picture of it
SPARE = 2  # pictures chosen for each that is wanted, where some may be unreadable

log = PrintableLog(__name__)


@dataclass(frozen=True, kw_only=True)
class CalibrationPictures:
    """Pictures as batches for the network, of one unless it takes a fixed number, and where they come from.

    `inputs` are float32 `(1, 3, height, width)`, normalised; unprepared they are uint8 `(1, height, width, 3)`, each of
    its own size. `classes` counts the classes that they show, None where labels are not known. The last batch may be
    filled up with pictures that are there already, `repeated` of them.
    """

    inputs: tuple[np.ndarray, ...]
    source: str
    split: str
    classes: int | None
    repeated: int = 0

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return sum(map(len, self.inputs)) - self.repeated

    def record(self) -> dict[str, object]:
        """Return what the record of an export says of them."""
        source = public_name(self.source)
        return {"data": source, "split": self.split, "pictures": self.count, "classes": self.classes}


def calibration_pictures(
    source: str,
    model: nn.Module,
    *,
    count: int = COUNT,
    split: str | None = None,
    prepared: bool = True,
    input_size: tuple[int, int] | None = None,
) -> CalibrationPictures:
    """Return pictures of a data set, prepared as `model` takes them; the same ones each time.

    They are spread evenly over the classes where labels are known, else over the rows; unreadable ones are left out.
    `split=None` is the one called train, else the one to measure on. Images that were held out when the model was
    trained are left out. `input_size` is height and width, None for the
    model's own. Warns where they show one class, or less than half of the model's. Errors: `InputError` where `source`
    is no data set, has fewer than 10 readable pictures, or pictures that are all the same.
    """
    opened = without_held_out(model, _opened(source, split))
    units = _units(opened)
    labels = _labels(opened, units)
    rows, classes = _chosen(opened, units, labels, min(SPARE * count, opened.rows))
    wanted = min(count, len(rows))
    chosen: dict[int, np.ndarray] = {}
    # In two passes, as pictures are read in the order of their rows: a second one only where some could not be read.
    for some in (rows[:wanted], rows[wanted:]):
        missing = wanted - len(chosen)
        if missing:
            chosen.update(list(_prepared(opened, some[: SPARE * missing], model, prepared, input_size))[:missing])
    if len(chosen) < LEAST:
        raise InputError(
            f"{source} has {len(chosen)} pictures that can be read{_of(opened)}: int8 is calibrated on at least "
            f"{LEAST}, better {COUNT}, like those it will see"
        )
    inputs = tuple(chosen[row] for row in sorted(chosen))
    if all(np.array_equal(inputs[0], other) for other in inputs[1:]):
        raise InputError(f"the {len(inputs)} pictures of {source}{_of(opened)} are all the same: calibrate on others")
    shown = None if classes is None else len({classes[row] for row in chosen})
    _warn(opened, shown, max(len(opened.class_names or ()), getattr(model, "num_classes", 0)))
    return CalibrationPictures(inputs=inputs, source=source, split=opened.name, classes=shown)


def require_calibration(precision: str, calibrate: str | None, data: str | None) -> str | None:
    """Return the data set to calibrate on, None where nothing is calibrated.

    Without `calibrate` it is `data`, what the accuracy is measured on. Errors: `InputError` where there is none, or
    the precision needs none.
    """
    if precision != "int8":
        if calibrate:
            raise InputError(f"--calibrate is for --precision int8, not {precision}: leave it out")
        return None
    if not (calibrate or data):
        raise InputError(
            "int8 needs pictures to calibrate on: --calibrate with a folder or a data set of the Hub, best what "
            f"the network was trained on ({COUNT} pictures of it are read)"
        )
    return calibrate or data


def _opened(source: str, split: str | None) -> Split:
    """Open what the pictures are of: a data set, or a folder of pictures without labels."""
    try:
        try:
            return open_split(source, split or "train", needs_labels=False)
        except NoSplitError:
            if split is not None:
                raise
            return open_split(source, None, needs_labels=False)
    except NoSplitError:
        raise
    except InputError as no_data_set:
        if split is not None:
            raise
        try:
            return open_sources([source])
        except InputError:
            raise no_data_set from None


def _units(split: Split) -> list[int]:
    """Return the units to read of, evenly spread: all of them where they are on this machine."""
    units = [unit for unit, rows in enumerate(split.unit_rows) if rows]
    return [units[place] for place in _spread(len(units), MOST_FETCHED if split.streamed else len(units))]


def _labels(split: Split, units: list[int]) -> dict[int, np.ndarray] | None:
    if not split.label_column or split.right_classes is not None or split.pictures is not None:
        return None
    if split.subset is not None:
        return {unit: split.subset.labels[unit][split.subset.rows[unit]] for unit in units}
    try:
        return {unit: unit_labels(split, unit) for unit in units}
    except InputError:  # some rows have none
        return None


def _chosen(
    split: Split, units: list[int], labels: dict[int, np.ndarray] | None, count: int
) -> tuple[list[int], dict[int, int] | None]:
    """Return rows, the more important first, and their labels.

    Whatever part of them is taken from the beginning is spread over classes and rows.
    """
    starts = np.cumsum([0, *split.unit_rows])
    rows = np.concatenate([np.arange(starts[unit], starts[unit + 1]) for unit in units]) if units else np.array([], int)
    if labels is None:
        return rows[_order(len(rows))[:count]].tolist(), None
    given = np.concatenate([labels[unit] for unit in units]) if units else np.array([], int)
    by_class = [rows[given == label] for label in np.unique(given)]
    ranked = sorted(
        (rank, place, int(some[position]))
        for place, some in enumerate(by_class) for rank, position in enumerate(_order(len(some)))
    )  # fmt: skip
    label_of = dict(zip(rows.tolist(), given.tolist(), strict=True))
    chosen = [row for _, _, row in ranked[:count]]
    return chosen, {row: label_of[row] for row in chosen}


def _order(count: int) -> list[int]:
    """Return the numbers below `count` so that any first part of them is spread evenly: by the golden ratio."""
    places = np.modf(np.arange(count) * ((5**0.5 - 1) / 2))[0]
    return np.argsort(np.argsort(places, kind="stable"), kind="stable").tolist()


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most))}) if count else []


def _prepared(
    split: Split, rows: list[int], model: nn.Module, prepared: bool, input_size: tuple[int, int] | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows whose pictures can be read, with what the network takes."""
    overrides = {"input_size": (3, *input_size)} if input_size is not None else {}
    transform, config = model_transform(model, **overrides)
    title = f"reading pictures of {printable(split.source)}"
    for number, row in tqdm(rows_of(split, rows), desc=title, total=len(rows), leave=False, delay=1.0):
        try:
            picture = picture_of(split, row) if isinstance(row, Row) else None
        except InputError:
            continue
        if picture is None:
            continue
        if not prepared:
            yield number, np.asarray(picture)[None]
            continue
        image = torch.as_tensor(np.asarray(transform(picture)))[None]
        yield number, normalize(image, mean=config["mean"], std=config["std"]).contiguous().numpy()


def _of(split: Split) -> str:
    return f" (split {split.name!r})" if split.name else ""


def _warn(split: Split, shown: int | None, classes: int) -> None:
    if shown is None or classes < 2:
        return
    if shown == 1:
        log.warning(
            "the pictures of %s are all of one class: int8 calibrated on them may be wrong on others", split.source
        )
    elif 2 * shown < min(classes, COUNT):
        log.warning(
            "the pictures of %s show %s of %s classes: int8 calibrated on them may be wrong on others",
            split.source, shown, classes,
        )  # fmt: skip
