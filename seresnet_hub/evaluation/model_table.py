"""A table of several measured models, written anew after each, so that a killed run goes on at the next model."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seresnet_hub.cards.markdown import code, plain, table
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import errors_named, replacing, write_text

# The columns of texts; others hold numbers.
TEXTS = frozenset({"model", "weights", "data", "split", "precision", "tta", "options", "error"})
FIRST, LAST = ("model", "top1", "top5", "loss"), ("error", "weights", "options")
# What the Markdown table shows, as far as there is any of it; the CSV file has all.
SHOWN = (
    "model", "top1", "top5", "loss", "f1_macro", "balanced_accuracy", "ece", "knn_top1", "input_size", "crop_pct",
    "tta", "precision", "classes", "images_per_second", "batch_size", "error",
)  # fmt: skip

Row = dict[str, Any]


class ModelTable:
    """The rows of a CSV file, a model each; beside a `path` that ends in `.md` the CSV file has the rows too.

    Its column `options` says by which options they were measured, as `options` does, and `batch_size` how many images
    at a time were asked for. Errors: `InputError` where the file is none of these tables, was measured by other
    options, or `path` has another ending.
    """

    def __init__(self, path: Path, options: str, batch_size: int | None = None) -> None:
        if path.suffix.lower() not in (".csv", ".md"):
            raise InputError(f"{path}: a table of models ends in .csv or .md")
        self.file, self.markdown = path.with_suffix(".csv"), path if path.suffix.lower() == ".md" else None
        self.options, self.batch_size = options, batch_size
        if self.markdown is not None and self.markdown.exists() and not self.file.exists():
            raise InputError(f"{path} is there, and no {self.file.name} beside it: choose another name")
        self.rows = self._there()

    def _there(self) -> list[Row]:
        """Return the rows that the file has now."""
        rows = _read(self.file) if self.file.exists() else []
        for row in rows:
            if row["options"] != self.options:
                raise InputError(
                    f"{self.file} was measured with {row['options']}, and this is to be with {self.options}: "
                    "choose another table"
                )
        return rows

    def measured(self, model: str, weights: str | None) -> Row | None:
        """Return the row of a model that was measured with these weights, `None` where it failed or is not there."""
        found = [row for row in self.rows if row["model"] == model and row["weights"] == weights and not row["error"]]
        return found[-1] if found else None

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, or replace the one of the same model, and write the table."""
        self.rows = self._there()  # another call may have added the rows of other models meanwhile
        new = {"weights": None, "error": None, **row, "options": self.options}
        places = [number for number, old in enumerate(self.rows) if old["model"] == new["model"]]
        if places:
            self.rows[places[0]] = new
        else:
            self.rows.append(new)
        with replacing(self.file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in self.rows)
        if self.markdown is not None:
            write_text(self.markdown, self.as_markdown())

    @property
    def columns(self) -> list[str]:
        """The names of the columns: those that any row has."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [*FIRST, *(name for name in names if name not in FIRST + LAST), *LAST]

    def as_markdown(self) -> str:
        """Return the table with the best model first, and those that failed last; without what is as ever in all."""
        usual = {"precision": "no", "batch_size": self.batch_size}
        columns = [name for name in SHOWN if any(row.get(name) not in (None, usual.get(name)) for row in self.rows)]
        rows = sorted(self.rows, key=lambda row: -1.0 if row.get("top1") is None else row["top1"], reverse=True)
        cells = [[plain(_cell(row.get(name))) for name in columns] for row in rows]
        by = code(f"seresnet-hub validate MODEL… {self.options}")
        return f"Measured by {by}; all columns are in {code(self.file.name)}.\n\n{table(columns, cells)}\n"


def _read(path: Path) -> list[Row]:
    try:
        with errors_named(path, "read"), path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {*FIRST, *LAST} <= {*(reader.fieldnames or ())}:
                raise InputError(f"{path} is no table of models: choose another name")
            return [{name: _value(name, text) for name, text in row.items()} for row in reader]
    except (csv.Error, ValueError, TypeError) as error:
        raise InputError(f"{path} is no table of models ({error}): choose another name") from error


def _value(name: str, text: str) -> Any:
    if text == "" or name in TEXTS:
        return text or None
    try:
        return json.loads(text)
    except ValueError:  # as "32x48" is an input size
        return text


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
