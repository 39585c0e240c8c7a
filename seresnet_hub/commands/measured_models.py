"""Measure several models, one after the other, into a table that a killed run continues."""

from __future__ import annotations

import argparse
import gc
import shlex
from collections.abc import Sequence
from glob import glob
from typing import TYPE_CHECKING, Any

import timm
import torch

from seresnet_hub.commands.launched import on_all, on_main
from seresnet_hub.commands.measured_model import measured
from seresnet_hub.commands.terminal import tell
from seresnet_hub.data.held_out import HELD_OUT
from seresnet_hub.data.open_split import open_split
from seresnet_hub.engines.exported_names import exported_name, found_export
from seresnet_hub.errors import InputError, LostProcessError, message_of
from seresnet_hub.evaluation.model_table import ModelTable, Row
from seresnet_hub.files.atomic_writing import sha256_of
from seresnet_hub.files.model_folder import WEIGHTS_NAME
from seresnet_hub.models.names import is_model_folder, parse_name
from seresnet_hub.training.lost_processes import is_of_a_lost_process

if TYPE_CHECKING:
    from seresnet_hub.training.processes import Processes

# The options that results depend on, in the order in which a table names them.
OPTIONS = (
    "data", "split", "label_column", "real", "input_size", "crop_pct", "tta", "classes", "knn", "amp", "fuse",
    "compile",
)  # fmt: skip


def named_models(given: Sequence[str]) -> list[str]:
    """Return the models' names, a pattern replaced by timm's names with weights, or the model folders, that it fits.

    Errors: `InputError` where a pattern fits none, or a model is there twice.
    """
    names: list[str] = []
    for one in given:
        if not {"*", "?"} & set(one):
            names.append(one)
            continue
        found = timm.list_models(one, pretrained=True) or sorted(filter(is_model_folder, glob(one)))
        if not found:
            raise InputError(f"{one}: neither a name of timm's that has weights nor a model folder is called so")
        names += found
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"model {name} is named twice")
    return names


def measured_models(options: argparse.Namespace, models: Sequence[str], processes: Processes | None) -> dict[str, Any]:
    """Return the row of each model; one that cannot be measured is a row with its error, and counted as `failed`.

    With `--output`, the rows of models that are in the table already are taken from there. Errors: `InputError` where
    the table or the data set cannot be used.
    """
    main = processes is None or processes.main
    table = None if options.output is None else on_main(processes, lambda: ModelTable(
        options.output, _text(options), options.batch_size
    ))  # fmt: skip
    if options.split != HELD_OUT:  # once and now, rather than an error for each model
        on_all(processes, lambda: open_split(
            options.data, options.split, label_column=options.label_column, label_lists=True
        ))  # fmt: skip
    rows: list[Row] = []
    for number, name in enumerate(models, 1):
        weights = on_main(processes, lambda name=name: _weights(name))  # type: ignore[misc]
        row = None if table is None else table.measured(name, weights)
        if main:
            tell(f"model {number} of {len(models)}: {name}" + ("" if row is None else ", measured before"))
        if row is None:
            try:
                row = {"weights": weights, **_flat(measured(options, name, processes))}
            except Exception as error:
                if isinstance(error, LostProcessError) or is_of_a_lost_process(error):
                    raise
                row = {"model": name, "weights": weights, "error": message_of(error)}
                if main:
                    tell(f"{name}: {row['error']}")
            if table is not None:
                on_main(processes, lambda row=row: table.add(row))  # type: ignore[misc]
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        rows.append(row)
    failed = sum(row.get("error") is not None for row in rows)
    shown = [{key: value for key, value in row.items() if value is not None and key != "options"} for row in rows]
    result: dict[str, Any] = {"models": shown, "measured": len(rows) - failed, "failed": failed}
    if table is not None:
        result["output"] = str(options.output)
    return result


def _text(options: argparse.Namespace) -> str:
    """Return the options that results depend on, as on a command line."""
    words: list[str] = []
    for name in OPTIONS:
        value = getattr(options, name)
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value in (True, "") else [str(value)])]
    return shlex.join(words)


def _weights(name: str) -> str | None:
    """Return the beginning of the hash of a folder's weights or an export's record, which may be replaced."""
    try:
        if exported_name(name) is not None:
            return sha256_of(found_export(name).record.path)[:16]  # which has the hashes of all its files
        folder = parse_name(name).folder
        return None if folder is None else sha256_of(folder / WEIGHTS_NAME)[:16]
    except (InputError, OSError):  # measuring it says what is wrong
        return None


def _flat(result: dict[str, Any]) -> Row:
    """Return a result with a number or a text for each key."""
    height, width = result["input_size"]
    return {**result, "input_size": height if height == width else f"{height}x{width}"}
