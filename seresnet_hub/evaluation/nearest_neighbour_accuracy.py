"""How often the nearest neighbours of an image's features have its class: k-NN accuracy, the measure of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from seresnet_hub.errors import InputError
from seresnet_hub.inference.embedding_index import EmbeddingIndex, open_index
from seresnet_hub.inference.nearest_rows import BLOCK_VALUES, Block, blocks_of, nearest, with_progress

# As in Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018), and in DINO.
K, TEMPERATURE = 20, 0.07
SAME = 1 - 1e-5  # the similarity of an image to itself, but for rounding


@dataclass(frozen=True, kw_only=True)
class NearestNeighbourAccuracy:
    """Accuracies in percent over `counted` images, by the votes of the `k` nearest of `neighbours` rows.

    In `top1` and `top5` each vote weighs `exp(similarity / temperature)`; in `unweighted_top1` all weigh the same. Of
    classes with equal votes the lower number wins. `duplicates` images have the features
    of a row of the index; 0 without one.
    """

    counted: int
    neighbours: int
    k: int
    temperature: float
    top1: float
    top5: float
    unweighted_top1: float
    duplicates: int


def nearest_neighbour_accuracy(
    features: torch.Tensor,
    labels: np.ndarray,
    index: EmbeddingIndex | str | Path | None = None,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
    class_names: Sequence[str] | None = None,
    tensors_sha256: str | None = None,
    device: str | torch.device | None = None,
) -> NearestNeighbourAccuracy:
    """Return how often the classes of the nearest rows tell an image's own, by cosine similarity.

    `features` are float `(images, channels)`, `labels` int `(images,)`; images with a negative label are left out.
    Without `index`, the neighbours of an image are all others of the set (leave-one-out); with one, its labelled rows.
    `class_names` and the model's `tensors_sha256` are compared with those of the index. Computed in blocks, on the GPU
    where there is one: the memory holds the set's features and all labels. Errors: `InputError` where nothing is
    labelled, `k` or `temperature` is not positive, or the index has other channels, classes or weights.
    """
    if k < 1 or not temperature > 0:
        raise InputError(f"k={k}, temperature={temperature}: both must be positive")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    labelled = torch.from_numpy(np.asarray(labels, np.int64) >= 0)
    features, known = features[labelled].float(), torch.from_numpy(np.asarray(labels, np.int64))[labelled]
    if not len(known):
        raise InputError("no image has a label: a k-NN accuracy needs some")
    if index is None:
        row_labels, stored = known, None
    else:
        stored = index_for(index, class_names=class_names, tensors_sha256=tensors_sha256)
        if stored.channels != features.shape[1]:
            raise InputError(f"{stored.path}: its features have {stored.channels} channels, not {features.shape[1]}")
        row_labels = torch.from_numpy(stored.labels())
    blocks = blocks_of(features) if stored is None else _labelled(stored.blocks(), row_labels)
    own = 0 if stored is None else None
    seen: list[int] = []
    blocks = with_progress(_counted(blocks, seen), len(row_labels))
    found = nearest(features.to(device), blocks, k, refined=False, own=own)
    neighbours = sum(seen) - (stored is None)
    if neighbours < 1:
        raise InputError(f"{stored.path if stored else 'the set'}: there is no other labelled row to compare with")
    right = torch.zeros(3, dtype=torch.int64)
    classes = int(max(known.max(), row_labels.max())) + 1
    at_once = max(BLOCK_VALUES // classes, 1)
    parts = (torch.split(whole, at_once) for whole in (found.similarities.cpu(), found.positions.cpu(), known))
    for similarities, positions, own_labels in zip(*parts, strict=True):
        right += _right(similarities, row_labels[positions], own_labels, classes, temperature)
    top1, top5, unweighted = (100 * right.double() / len(known)).tolist()
    return NearestNeighbourAccuracy(
        counted=len(known), neighbours=neighbours, k=k, temperature=temperature, top1=top1, top5=top5,
        unweighted_top1=unweighted,
        duplicates=0 if stored is None else int((found.similarities[:, 0] > SAME).sum()),
    )  # fmt: skip


def index_for(
    index: EmbeddingIndex | str | Path, *, class_names: Sequence[str] | None = None, tensors_sha256: str | None = None
) -> EmbeddingIndex:
    """Return an index opened. Errors: `InputError` where it has no labels, or other classes or weights."""
    opened = index if isinstance(index, EmbeddingIndex) else open_index(index)
    if tensors_sha256 is not None:
        opened.require_weights(tensors_sha256)
    opened.require_labels()
    _require_same_classes(opened, class_names)
    return opened


def _require_same_classes(index: EmbeddingIndex, class_names: Sequence[str] | None) -> None:
    """Raise `InputError` where the index calls one of the classes otherwise than the set does."""
    for label, name in index.label_names().items() if class_names else ():
        own = class_names[label] if class_names and 0 <= label < len(class_names) else None
        if name != own:
            raise InputError(
                f"{index.path}: its class {label} is {name!r}, the set's is {own!r}: both must have the same"
            )


def _labelled(blocks: Iterable[Block], labels: torch.Tensor) -> Iterator[Block]:
    for positions, vectors in blocks:
        there = labels[positions] >= 0
        yield Block(positions[there], vectors[there])


def _counted(blocks: Iterable[Block], seen: list[int]) -> Iterator[Block]:
    for block in blocks:
        seen.append(len(block.positions))
        yield block


def _right(
    similarities: torch.Tensor, votes: torch.Tensor, labels: torch.Tensor, classes: int, temperature: float
) -> torch.Tensor:
    """Return for how many images the own class is first, among the first five, and first without weights."""
    is_there = similarities > -torch.inf
    # Divided by the largest weight, so that no temperature makes them infinite.
    weights = ((similarities.double() - similarities.double()[:, :1]) / temperature).exp()

    def rank(weights: torch.Tensor) -> torch.Tensor:
        """Return before how many classes' votes those of the image's own class come, 0 for the first."""
        sums = torch.zeros((len(labels), classes), dtype=torch.float64).scatter_add_(1, votes, weights)
        own = sums.gather(1, labels[:, None])
        lower = torch.arange(classes) < labels[:, None]
        return ((sums > own) | ((sums == own) & lower)).sum(dim=1)

    weighted = rank(torch.where(is_there, weights, 0.0))
    return torch.stack([(weighted == 0).sum(), (weighted < 5).sum(), (rank(is_there.double()) == 0).sum()])
