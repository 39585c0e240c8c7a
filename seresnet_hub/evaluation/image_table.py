"""Write what an evaluation says of each image as a table, a row an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.image_records import ImageRecords
from seresnet_hub.inference.prediction_table import best_columns, failures, for_datasets, name_column, named
from seresnet_hub.inference.sources import picture_name
from seresnet_hub.inference.table_files import GROUP_ROWS, description, format_of, require_place, write_table

UNREADABLE = "it could not be decoded"


def require_image_table(output: Path) -> None:
    """Raise `InputError` where the table cannot be written or would replace another file, before the work for it."""
    format_of(output)
    require_place(output)
    if output.exists() and description(output) is None:
        raise InputError(f"{output} is there, and no table of ours: choose another name")


def write_image_table(
    output: Path, records: ImageRecords, split: Split, *, names: Sequence[str] | None,
    classes: Sequence[int] | None = None, metadata: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write a row for each image of the split: to a parquet, CSV or JSON lines file, or a folder of parquet shards.

    Columns: `row`, `image`, `label`, `label_name`, `error`, then `class_k`, `name_k` and `score_k`, best first, and
    `loss` in nats. `names` are those of the model's classes, and `classes` which of them the records number, where
    these are not all. What is not known is null. Errors: `InputError` where it cannot be written.
    """
    numbers = None if classes is None else np.asarray(classes)
    write_table(
        output, _batches(records, split, numbers, name_column(names)), rows=split.rows, metadata=metadata,
        schema_metadata=partial(for_datasets, names), count=failures,
    )  # fmt: skip


def _batches(
    records: ImageRecords, split: Split, classes: np.ndarray | None, names: pa.Array | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in order, some thousands at a time."""
    for first in range(0, max(split.rows, 1), GROUP_ROWS):
        rows = np.arange(first, min(first + GROUP_ROWS, split.rows))
        places = np.minimum(np.searchsorted(records.rows, rows), max(len(records.rows) - 1, 0))
        missing = records.rows[places] != rows
        labels, best = records.labels[places], records.classes[places]
        if classes is not None:
            labels, best = np.where(labels < 0, -1, classes[labels]), classes[best]
        label = pa.array(labels, pa.int64(), mask=missing | (labels < 0))
        columns: dict[str, pa.Array] = {
            "row": pa.array(rows, pa.int64()),
            "image": pa.array([picture_name(split, row, records.paths.get(row)) for row in rows.tolist()], pa.string()),
            "label": label,
            "label_name": named(label, names),
            "error": pa.array([UNREADABLE if one else None for one in missing], pa.string()),
        }
        columns |= best_columns(best, records.scores[places], names, missing)
        losses = records.losses[places]
        columns["loss"] = pa.array(losses, pa.float32(), mask=missing | np.isnan(losses))
        yield pa.record_batch(columns)
