"""Find the pictures of an index of embeddings that look most like others: nearest neighbours by cosine similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from seresnet_hub.data.picture_list import ImageInput
from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError
from seresnet_hub.inference.embedding_index import EmbeddingIndex, open_index
from seresnet_hub.inference.image_inputs import listed
from seresnet_hub.inference.kept_faiss_index import is_worth_it, proposed_rows
from seresnet_hub.inference.model_identity import preparation_of, tensors_sha256
from seresnet_hub.inference.nearest_rows import Nearest, nearest, with_progress
from seresnet_hub.inference.run_batches import BATCH_SIZE, run_batches
from seresnet_hub.inference.sources import named_error, open_sources
from seresnet_hub.models.load import load


class Query(NamedTuple):
    """A picture that others are looked for: its name, its row among the queries, why it could not be read, and what
    was found.

    `neighbours` are best first, each `{row, image, similarity}` and, where the index has them, `label`, `label_name`
    and `name_1`, the class that the model names first.
    """

    image: str | None
    row: int
    error: str | None
    neighbours: list[dict[str, Any]]


def search(
    index: str | Path | EmbeddingIndex,
    images: ImageInput | Sequence[ImageInput],
    top: int = 10,
    *,
    model: nn.Module | str | Path | None = None,
    stage: int | None = None,
    exact: bool = False,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    unreadable: Callable[[int, InputError], None] | None = None,
) -> list[list[dict[str, Any]]]:
    """Return the `top` pictures of an index that are most similar to each image, best first.

    `index` is a parquet file, or a folder of such shards, that `write_predictions` wrote with features. A neighbour is
    `{row, image, similarity}` and, where the index has them, `label`, `label_name` and `name_1`; `row` is its number in
    the table, `similarity` the cosine in [-1, 1]. Of equally similar rows the lower number comes first. All rows are
    compared, in blocks: the memory does not grow with the index. Of more than a million rows, where faiss is installed,
    only those that it proposes are compared, unless `exact` (see `kept_faiss_index.proposed_rows`). `images`,
    `batch_size`, `workers` and `unreadable` are those of `predict`. The model is the one that the index names; `model`
    gives it where that name is of another machine. `stage` takes the features of that stage. Errors: `InputError` where
    the index cannot be used, it was made by other weights, or a picture cannot be read.
    """
    opened = index if isinstance(index, EmbeddingIndex) else open_index(index, stage)
    network = model_of(opened, model)
    split = open_sources(listed(images), missing_are_rows=True)
    queries = queries_of(opened, network, split, top, exact=exact, batch_size=batch_size, workers=workers)
    for query in queries:
        if query.error is not None:
            error = InputError(named_error(query.image, query.error))
            if unreadable is None:
                raise error
            unreadable(query.row, error)
    return [query.neighbours for query in queries]


def model_of(index: EmbeddingIndex, given: nn.Module | str | Path | None = None) -> nn.Module:
    """Return the model that made an index: the given one, or the one that it names.

    Errors: `InputError` where the index names none, or it was made by other weights or from pictures prepared
    otherwise.
    """
    name = index.facts.get("model") if given is None else given
    if not name:
        raise InputError(f"{index.path} does not say which model made it: name that model (--model)")
    try:
        model = name if isinstance(name, nn.Module) else load(name)
    except InputError as error:
        hint = (
            ""
            if given is not None
            else f" (the model that {index.path} names; give it with --model where it is elsewhere)"
        )
        raise InputError(f"{error}{hint}") from error
    require_same_model(index, model, name)
    return model


def require_same_model(index: EmbeddingIndex, model: nn.Module, name: object = None) -> None:
    """Raise `InputError` where an index was made by other weights, or from pictures prepared otherwise."""
    shown = str(name) if isinstance(name, (str, Path)) else "the model"
    index.require_weights(tensors_sha256(model), shown)
    for key, now in preparation_of(model).items():
        if index.facts.get(key, now) != now:
            raise InputError(
                f"{index.path} was made with {key} {index.facts[key]}, and {shown} has {now}: make it anew"
            )


def queries_of(
    index: EmbeddingIndex,
    model: nn.Module,
    split: Split,
    top: int = 10,
    *,
    exact: bool = False,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
) -> list[Query]:
    """Return the pictures of the split with their neighbours in the index, computed on the model's device.

    Errors: `InputError` where `top` is below 1, or the model's features are not of the index's length.
    """
    if top < 1:
        raise InputError(f"top={top}: must be at least 1")
    device = next(model.parameters()).device
    names: list[tuple[str | None, str | None]] = []
    parts: list[torch.Tensor] = []
    for answers in run_batches(
        model, split, batch_size=batch_size, workers=workers, logits=False, features=[index.stage],
        precision=index.facts.get("precision", "no"), decoder=index.facts.get("decoder", "pil"),
    ):  # fmt: skip
        names += zip(answers.images, answers.errors, strict=True)
        (features,) = answers.features.values()
        parts.append(features[[error is None for error in answers.errors]])
    vectors = torch.cat(parts).to(device)
    if vectors.shape[1] != index.channels:
        raise InputError(f"{index.path}: its features have {index.channels} channels, the model's {vectors.shape[1]}")
    neighbours = iter(_neighbours(index, vectors, top, exact) if len(vectors) else ())
    return [
        Query(image, row, error, next(neighbours) if error is None else []) for row, (image, error) in enumerate(names)
    ]


def _neighbours(index: EmbeddingIndex, vectors: torch.Tensor, top: int, exact: bool) -> list[list[dict[str, Any]]]:
    if exact or not is_worth_it(index):
        return _told(index, nearest(vectors, with_progress(index.blocks(), index.rows), top))
    return _told(index, nearest(vectors, index.blocks(among=proposed_rows(index, vectors, top)), top))


def _told(index: EmbeddingIndex, found: Nearest) -> list[list[dict[str, Any]]]:
    positions = found.positions.tolist()
    records = index.records([position for row in positions for position in row])
    return [
        [
            {"row": records[position]["row"], "image": records[position].get("image"), "similarity": similarity}
            | {name: value for name, value in records[position].items() if name not in ("row", "image")}
            for position, similarity in zip(*row, strict=True)
        ]
        for row in zip(positions, found.similarities.tolist(), strict=True)
    ]
