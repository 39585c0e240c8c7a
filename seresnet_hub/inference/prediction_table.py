"""What a table of predictions holds: its columns, how a batch of answers becomes rows, and what is counted in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Features

from seresnet_hub.errors import InputError
from seresnet_hub.inference.run_batches import BatchAnswers


@dataclass(frozen=True, kw_only=True)
class PredictionTable:
    """Which columns a table has.

    `class_names` are the model's, None where it does not name them; `class_numbers` says which of its classes a label's
    name may mean. `topk` is 0 where the model has no classifier. `labels` is where labels come from: "" (there are
    none), "data" (the data set, whose names for them are `label_names`) or "folder" (the name of the picture's folder).
    """

    num_classes: int
    class_names: tuple[str, ...] | None = None
    class_numbers: Mapping[str, frozenset[int]] = field(default_factory=dict)
    topk: int = 5
    scores: bool = False
    labels: str = ""
    label_names: tuple[str, ...] | None = None

    def rows(self, answers: BatchAnswers) -> pa.RecordBatch:
        """Return the rows of a batch.

        Columns: `row` and `image`; `label` and `label_name` where there are labels; `error`; `class_k`, `name_k` and
        `score_k`, best first; `scores`, all probabilities; `features…`, pooled. What the model says is null where there
        is an error. Errors: `InputError` where the model's outputs are no finite numbers.
        """
        failed = np.array([error is not None for error in answers.errors], bool)
        columns: dict[str, pa.Array] = {
            "row": pa.array(np.arange(answers.first, answers.first + len(failed)), pa.int64()),
            "image": pa.array([_as_text(name) for name in answers.images], pa.string()),
        }
        if self.labels:
            columns |= self._label_columns(answers)
        columns["error"] = pa.array([_as_text(error) for error in answers.errors], pa.string())
        if answers.logits is not None and self.topk:
            columns |= self._score_columns(answers.logits, failed)
        for name, values in answers.features.items():
            columns[name] = _lists(values, failed)
        return pa.record_batch(columns)

    def _label_columns(self, answers: BatchAnswers) -> dict[str, pa.Array]:
        if self.labels == "folder":
            folders = [PurePosixPath(image).parent.name if image else "" for image in answers.images]
            names = [_as_text(name or None) for name in folders]
            numbers = [min(self.class_numbers.get(name or "", ()), default=None) for name in names]
            return {"label": pa.array(numbers, pa.int64()), "label_name": pa.array(names, pa.string())}
        labels = pa.array(answers.labels, pa.int64(), mask=np.asarray(answers.labels) < 0)
        return {"label": labels, "label_name": named(labels, name_column(self.label_names))}

    @cached_property
    def _names(self) -> pa.Array | None:
        return name_column(self.class_names)

    def _score_columns(self, logits: torch.Tensor, failed: np.ndarray) -> dict[str, pa.Array]:
        probabilities = logits.softmax(dim=-1)
        best, classes = probabilities.topk(self.topk)
        columns = best_columns(classes.numpy(), best.numpy(), self._names, failed)
        if self.scores:
            columns["scores"] = _lists(probabilities, failed)
        return columns

    @property
    def names_of_labels(self) -> tuple[str, ...] | None:
        """The names of the numbers in the column `label`, as far as they are known."""
        return {"folder": self.class_names, "data": self.label_names}.get(self.labels)

    def meant_classes(self, label: int | None, label_name: str | None) -> frozenset[int]:
        """Return which of the model's classes a row's label means, none where the model does not know it."""
        if self.labels == "data" and self.label_names is None:  # nothing but numbers: they are the model's
            return frozenset({label}) if label is not None and label < self.num_classes else frozenset()
        return self.class_numbers.get(label_name or "", frozenset())


def count(table: PredictionTable, batch: pa.RecordBatch) -> Counter[str]:
    """Return how many rows there are, `failed` ones among them, and `labelled` ones, of which the model is `right`.

    Labelled is a row whose picture was read and whose label the model knows.
    """
    counts = failures(batch)
    counts.update(labelled=0, right=0)
    if table.labels and table.topk:
        columns = (batch.column(name).to_pylist() for name in ("label", "label_name", "class_1"))
        for label, name, best in zip(*columns, strict=True):
            if best is not None and (meant := table.meant_classes(label, name)):
                counts["labelled"] += 1
                counts["right"] += best in meant
    return counts


def for_datasets(names_of_labels: Sequence[str] | None, schema: pa.Schema) -> dict[bytes, bytes]:
    """Return the metadata by which `datasets` knows what the columns are, labels with their names."""
    features = Features.from_arrow_schema(schema)
    if names_of_labels and len(set(names_of_labels)) == len(names_of_labels):  # which it requires
        features["label"] = ClassLabel(names=list(names_of_labels))
    return dict(features.arrow_schema.metadata)


def accuracy(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return how many rows have a label that the model knows, and in how many percent of them it is right."""
    labelled = counts["labelled"]
    return {"labelled": labelled, "top1": round(100 * counts["right"] / labelled, 4)} if labelled else {}


def name_column(names: Sequence[str] | None) -> pa.Array | None:
    """Return names of classes as a column, `None` where there are none."""
    return None if names is None else pa.array([_as_text(name) for name in names], pa.string())


def named(numbers: pa.Array, names: pa.Array | None) -> pa.Array:
    """Return the names of a column of classes; their numbers as texts where there are no names."""
    return numbers.cast(pa.string()) if names is None else names.take(numbers)


def best_columns(
    classes: np.ndarray, scores: np.ndarray, names: pa.Array | None, missing: np.ndarray
) -> dict[str, pa.Array]:
    """Return the columns `class_k`, `name_k` and `score_k` of the best classes, `(rows, k)`, null where `missing`."""
    columns: dict[str, pa.Array] = {}
    for k in range(classes.shape[1]):
        numbers = pa.array(classes[:, k].astype(np.int32), mask=missing)
        columns[f"class_{k + 1}"] = numbers
        columns[f"name_{k + 1}"] = named(numbers, names)
        columns[f"score_{k + 1}"] = pa.array(scores[:, k], pa.float32(), mask=missing)
    return columns


def failures(batch: pa.RecordBatch) -> Counter[str]:
    """Return how many rows there are, and how many `failed` ones among them."""
    return Counter(rows=batch.num_rows, failed=batch.num_rows - batch.column("error").null_count)


def _as_text(name: str | None) -> str | None:
    r"""Return a text as UTF-8: what cannot be written so becomes an escape (`\udcff`), in all formats alike."""
    return None if name is None else name.encode("utf-8", "backslashreplace").decode()


def _lists(values: torch.Tensor, failed: np.ndarray) -> pa.FixedSizeListArray:
    """Return a column of lists of as many float32 as `values`, `(rows, n)`, has columns."""
    if not bool(values[torch.from_numpy(~failed)].isfinite().all()):
        raise InputError("the model's features are not finite numbers: its weights are damaged or were never trained")
    flat = pa.array(values.float().contiguous().numpy().reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(failed))
