"""Parquet files of embeddings as `predict --features` writes them, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet


def write_index(
    path: Path,
    features: np.ndarray,
    *,
    images: Sequence[str | None] | None = None,
    labels: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    predicted: Sequence[str] | None = None,
    missing: Collection[int] = (),
    facts: Mapping[str, Any] | None = None,
    column: str = "features",
    group: int = 1000,
) -> Path:
    """Write embeddings; the rows `missing` have an error in their place. Returns the path."""
    rows = len(features)
    there = [row not in missing for row in range(rows)]
    columns: dict[str, Any] = {
        "row": pyarrow.array(range(rows), pyarrow.int64()),
        "image": pyarrow.array(images or [f"{row}.png" for row in range(rows)], pyarrow.string()),
        "error": pyarrow.array([None if one else "not an image" for one in there], pyarrow.string()),
    }
    if labels is not None:
        columns["label"] = pyarrow.array(labels, mask=labels < 0)
    if labels is not None and names is not None:
        columns["label_name"] = [None if label < 0 else names[label] for label in labels]
    if predicted is not None:
        columns["name_1"] = [name if one else None for name, one in zip(predicted, there, strict=True)]
    kind = pyarrow.list_(pyarrow.float32(), features.shape[1])
    lists = [vector if one else None for vector, one in zip(features.astype(np.float32), there, strict=True)]
    columns[column] = pyarrow.array(lists, kind)
    table = pyarrow.table(columns)
    if facts is not None:
        table = table.replace_schema_metadata({"seresnet_hub": json.dumps(facts)})
    parquet.write_table(table, path, row_group_size=group)
    return path
