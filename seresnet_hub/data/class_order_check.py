"""Notice from the footers of parquet shards that their rows are sorted by class, so that a window holds few classes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow.parquet

from seresnet_hub.data.plan import Plan
from seresnet_hub.data.read_retries import reading
from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError

# A window of fewer than this share of the classes is named. Of shuffled rows one holds nearly all of them.
LEAST_SHARE = 0.25
MOST_CLASSES = 10**7  # more than this between two labels are no numbers of classes


def few_classes(split: Split, plan: Plan) -> str | None:
    """Return a line that says so where the rows that are shuffled together can be of few classes only, else `None`.

    Footers say the smallest and the largest label of each row group. Where they do not, and in other formats, nothing
    is known.
    """
    ranges = _label_ranges(split)
    if ranges is None or plan.order is None or not len(ranges):
        return None
    units = len(ranges)
    rows = max(plan.order.window, plan.lanes * plan.rows // units)  # at least one unit a lane
    drawn = min(rows * units / max(plan.rows, 1), units)
    least = ranges.min()
    span = int(ranges.max()) - int(least)
    if span >= MOST_CLASSES:
        return None
    ends = np.zeros(span + 2, np.int64)
    np.add.at(ends, ranges[:, 0] - least, 1)
    np.add.at(ends, ranges[:, 1] - least + 1, -1)
    holders = np.cumsum(ends)[:-1]  # of each class, the units that may have rows of it
    classes = int((holders > 0).sum())
    expected = float((1 - (1 - drawn / units) ** holders).sum())
    if expected >= LEAST_SHARE * classes:
        return None
    return (
        f"the rows of {split.source} are sorted by class: the {min(rows, plan.rows):,} that are shuffled together are "
        f"of about {expected:.0f} of {classes:,} classes, which harms training; shuffle the rows when the data set is "
        "written, or set a larger shuffle_window, which takes more memory"
    )


def _label_ranges(split: Split) -> np.ndarray | None:
    """Return the smallest and the largest label of each unit with rows, `(units, 2)`; `None` where it is unknown."""
    parquet = split.parquet
    if parquet is None:
        return None
    ranges: list[tuple[int, int]] = []
    try:
        for number, shard in enumerate(split.shards):
            footer = reading(f"read the footer of {shard.name}", partial(parquet.footer, number), remote=split.remote)
            ranges += _ranges_of(footer.metadata, split.label_column)
        return np.array(ranges, np.int64).reshape(-1, 2)
    except (InputError, OverflowError, TypeError):  # without it the run is as good as with it
        return None


def _ranges_of(metadata: pyarrow.parquet.FileMetaData, column: str) -> list[tuple[int, int]]:
    """Return a column's smallest and largest value in each row group. Errors: `TypeError` where one is unknown."""
    paths = [metadata.schema.column(k).path for k in range(metadata.num_columns)]
    if column not in paths:
        raise TypeError(f"{column} is a nested column")
    index, ranges = paths.index(column), []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not group.num_rows:
            continue
        statistics = group.column(index).statistics
        if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, int):
            raise TypeError(f"the footer does not say which values of {column} are in row group {number}")
        ranges.append((statistics.min, statistics.max))
    return ranges
