"""Write what a model says of many pictures into a table, part by part, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn
from tqdm import tqdm

from seresnet_hub.data.class_names import class_names, class_numbers
from seresnet_hub.data.decoding import DecoderName
from seresnet_hub.data.loader_workers import LoaderWorkers
from seresnet_hub.data.picture_list import ImageInput
from seresnet_hub.data.split import Split
from seresnet_hub.environment import package_version
from seresnet_hub.errors import InputError
from seresnet_hub.inference.full_disk import way_out_of_a_full_disk
from seresnet_hub.inference.image_inputs import listed
from seresnet_hub.inference.model_identity import ModelIdentity, engine_of, model_identity, preparation_of
from seresnet_hub.inference.parts import Parts, PartWriter, Rows, share
from seresnet_hub.inference.prediction_table import PredictionTable, accuracy, count, for_datasets
from seresnet_hub.inference.run_batches import BatchAnswers, checked_stage, run_batches
from seresnet_hub.inference.sources import open_sources, require_apart
from seresnet_hub.inference.table_files import (
    COUNTS,
    METADATA,
    description,
    format_of,
    require_place,
    require_replaceable,
    write_table,
)
from seresnet_hub.models.load import load
from seresnet_hub.torch_settings import Precision

# What may differ between two runs whose rows are the same: where the model lies, and which version wrote.
MAY_DIFFER = ("model", "sha256", "commit", "sources", "version")
Answer = TypeVar("Answer")


class Together(Protocol):
    """The processes of one launch, seen from one of them, as `training.processes.Processes` are."""

    rank: int
    count: int
    main: bool

    def from_main(self, ask: Callable[[], Any]) -> Any: ...

    def wait_for_all(self) -> None: ...


class Alone:
    """One process, which no launcher has started with others."""

    rank, count, main = 0, 1, True

    def from_main(self, ask: Callable[[], Answer]) -> Answer:
        return ask()

    def wait_for_all(self) -> None:
        pass


def write_predictions(
    model: nn.Module | str | Path,
    sources: ImageInput | Sequence[ImageInput] | Split,
    output: str | Path,
    *,
    topk: int = 5,
    scores: bool = False,
    features: Sequence[int | None] = (),
    labels_from_folder: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    precision: Precision = "no",
    decoder: DecoderName = "pil",
    split: str | None = None,
    label_column: str | None = None,
    force: bool = False,
    identity: ModelIdentity | None = None,
    prepared_as: Mapping[str, Any] | None = None,
    processes: Together | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write a row for each picture of the sources to `output`, in order, and return what was counted.

    `model` and `sources` are those of `predict`; a data set is a source as well. `output` ends in `.parquet`, `.csv` or
    `.jsonl`, or is a folder, for parquet shards. Rows have the `topk` classes, with `scores` the probabilities of all,
    and pooled features: of each stage in `features`, where None is what the classifier sees (see
    `prediction_table.PredictionTable`). A picture that cannot be read is a row with its error. With
    `labels_from_folder`, the label is the name of a picture's folder. `identity` says which model it is, where it is no
    name, and `prepared_as` what was done to it then. The work is kept in parts beside `output`; the same call goes on
    after a kill, with any number of `workers` and `processes`, and makes the same file bit for bit. Where `output` is
    finished, nothing is done; `force` makes it anew, and replaces that of another call. Errors: `InputError`, before
    any work where the arguments cannot be used, another run writes there, or another call's work is there.
    """
    together: Together = processes or Alone()
    output, text = Path(output), str(output)
    format_of(text)
    together.from_main(lambda: require_place(output))
    if isinstance(model, (str, Path)):
        name, model = model, load(model)
        identity = identity or model_identity(model, name)
    identity = identity or model_identity(model)
    num_classes: int = getattr(model, "num_classes", 0)
    stages = [None if stage is None else checked_stage(model, stage) for stage in features]
    _require_options(num_classes, scores, stages, batch_size, workers)
    images = (
        sources if isinstance(sources, Split) else open_sources(listed(sources), split=split, label_column=label_column)
    )
    require_apart(output, images)
    table = table_for(model, images, topk=topk, scores=scores, labels_from_folder=labels_from_folder)
    metadata = {
        **asdict(identity), "fused": False, "compiled": None, **(prepared_as or {}), "precision": precision,
        "device": next(model.parameters()).device.type, "decoder": decoder, "batch_size": batch_size,
        **preparation_of(model), **engine_of(model), "num_classes": num_classes,
        "class_names": table.class_names, "topk": table.topk, "scores": scores,
        "features": ["features" if stage is None else f"features_stage{stage}" for stage in stages],
        "labels": table.labels, "label_names": table.label_names, "sources": images.source, "split": images.name,
        "label_column": images.label_column,
        "rows": images.rows, "source_fingerprint": images.fingerprint,
        "file_sizes": None if images.pictures is None else images.pictures.sizes_fingerprint(),
        "version": package_version(),
    }  # fmt: skip
    parts, began = Parts(output), time.monotonic()
    with ExitStack() as on_exit:
        missing = together.from_main(lambda: _begin(parts, metadata, force=force, say=say, on_exit=on_exit))
        if missing is not None:
            if not parts.folder.is_dir():
                raise InputError(
                    f"{parts.folder}: process {together.rank} does not see it; use a folder that all share"
                )
            answers = partial(
                run_batches, model, images, batch_size=batch_size, workers=workers, logits=bool(table.topk),
                features=stages, precision=precision, decoder=decoder,
                loader_workers=on_exit.enter_context(LoaderWorkers()) if workers else None,
            )  # fmt: skip
            _write_parts(parts, missing, table, answers, batch_size=batch_size, rows=images.rows, together=together)
            if together.main:
                with way_out_of_a_full_disk(output):
                    write_table(
                        output, parts.batches(images.rows), rows=images.rows, metadata=metadata,
                        schema_metadata=partial(for_datasets, table.names_of_labels), count=partial(count, table),
                    )  # fmt: skip
        if together.main:
            parts.remove()
        together.wait_for_all()  # whoever ends alone is taken for lost
    written = sum(rows.stop - rows.first for rows in missing or ())
    seconds = time.monotonic() - began
    return together.from_main(lambda: _result(output, identity, written, seconds))  # others may not see the file yet


def table_for(
    model: nn.Module, images: Split, *, topk: int = 5, scores: bool = False, labels_from_folder: bool = False
) -> PredictionTable:
    """Return the table of what a model says of the images. Errors: `InputError` where `topk` is below 1."""
    if topk < 1:
        raise InputError(f"topk={topk}: must be at least 1")
    names, num_classes = class_names(model), getattr(model, "num_classes", 0)
    return PredictionTable(
        num_classes=num_classes, class_names=tuple(names) if names else None, class_numbers=class_numbers(model),
        topk=min(topk, num_classes), scores=scores,
        labels="folder" if labels_from_folder else "data" if images.label_column else "",
        label_names=images.class_names,
    )  # fmt: skip


def _begin(
    parts: Parts, metadata: Mapping[str, Any], *, force: bool, say: Callable[[str], None], on_exit: ExitStack
) -> list[Rows] | None:
    """Return which rows are missing, None where the output is finished; nobody else writes there until `on_exit`."""
    output = parts.output
    with way_out_of_a_full_disk(output):
        on_exit.callback(parts.lock(say).release)
    begun, finished = parts.record(), description(output)
    if begun is not None and not (differences := _differences(begun, metadata)):
        # Also with `force`, with which it was begun perhaps.
        if finished is not None and not _differences(finished[METADATA], metadata):
            return None  # a kill came between the file and the removal of its parts
        missing = parts.missing(metadata["rows"])
        done = metadata["rows"] - sum(rows.stop - rows.first for rows in missing)
        say(f"{output}: {done:,} of {metadata['rows']:,} rows are there already: going on")
        return missing
    if not force:
        if begun is not None:
            raise InputError(
                f"{parts.folder} holds the beginning of another table: {differences}; finish that one, choose another "
                "output, or begin anew (--force)"
            )
        if finished is not None and not (differences := _differences(finished[METADATA], metadata)):
            say(f"{output} is finished: nothing is left to do (where pictures have changed, --force makes it anew)")
            return None
        if finished is None and output.is_dir():
            require_replaceable(output)  # --force would not help
        if os.path.lexists(output) and not _is_empty_folder(output):
            what = f"is another table: {differences}" if finished is not None else "is there, and no table of ours"
            raise InputError(f"{output} {what}; choose another output, or replace it (--force)")
    if output.is_dir():
        require_replaceable(output)
    with way_out_of_a_full_disk(output):
        parts.begin(metadata)
    return parts.missing(metadata["rows"])


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in what two tables differ, "" where their rows are the same."""
    names = [name for name in now if name not in MAY_DIFFER and then.get(name) != json.loads(json.dumps(now[name]))]
    if {"architecture", "tensors_sha256"} & {*names}:
        return f"its model was {_model(then)}, and is {_model(now)} now"
    if {"rows", "source_fingerprint"} & {*names}:
        return f"its pictures were {_source(then)}, and are others now, {_source(now)}"
    if "file_sizes" in names:
        return f"files among its pictures, {_source(now)}, had other sizes"
    return "; ".join(f"{name} was {_short(then.get(name))}, and is {_short(now[name])} now" for name in names)


def _model(metadata: Mapping[str, Any]) -> str:
    return f"{metadata.get('model')} (tensors {str(metadata.get('tensors_sha256'))[:12]}…)"


def _source(metadata: Mapping[str, Any]) -> str:
    return f"{metadata.get('rows'):,} of {metadata.get('sources')}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not os.listdir(path)


def _write_parts(
    parts: Parts, missing: Sequence[Rows], table: PredictionTable, answers: Callable[..., Iterator[BatchAnswers]], *,
    batch_size: int, rows: int, together: Together,
) -> None:  # fmt: skip
    """Write this process's share of what is missing, and wait for the others; the main one shows what all have done."""
    mine = share(missing, batch_size=batch_size, rank=together.rank, world_size=together.count)
    done = rows - sum(stretch.stop - stretch.first for stretch in missing)
    with (
        closing(PartWriter(parts)) as writer,
        tqdm(
            total=rows, initial=done, desc="predicting", unit="images", file=sys.stderr, disable=not together.main,
        ) as bar,
    ):  # fmt: skip
        for stretch in mine:
            batches = answers(start=stretch.first // batch_size, stop=-(-stretch.stop // batch_size))
            with closing(batches):  # type: ignore[type-var]
                for batch in batches:
                    completed = writer.write(batch.first, table.rows(batch))
                    bar.update(len(batch.images))
                    if completed and together.count > 1:
                        bar.update(max(0, rows - sum(one.stop - one.first for one in parts.missing(rows)) - bar.n))
        writer.close()
        together.wait_for_all()
        bar.update(rows - bar.n)


def _result(output: Path, identity: ModelIdentity, written: int, seconds: float) -> dict[str, Any]:
    """Return what a finished table holds, and how long this call took for what it wrote of it."""
    finished = description(output)
    assert finished is not None
    counts = finished[COUNTS]
    result = {
        "model": identity.model, "sha256": identity.sha256, "tensors_sha256": identity.tensors_sha256,
        "output": str(output), "rows": counts["rows"], "failed": counts["failed"],
    }  # fmt: skip
    speed = round(written / seconds, 1) if written else None
    return {**result, **accuracy(counts), "written": written, "seconds": round(seconds, 3), "images_per_second": speed}


def _require_options(
    num_classes: int, scores: bool, features: Sequence[int | None], batch_size: int, workers: int
) -> None:
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: must be at least 1")
    if workers < 0:
        raise InputError(f"workers={workers}: must be at least 0")
    if not num_classes and (scores or not features):
        raise InputError("the model has no classifier, so it gives features alone: ask for them (--features)")
    if len(set(features)) < len(features):
        raise InputError(f"features={list(features)}: each stage once")
