"""Find the rows of largest cosine similarity, block by block, so that their number does not count for the memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from tqdm import tqdm

from seresnet_hub.torch_settings import float32_arithmetic

# Values of a block of vectors, and similarities that are computed at a time: 64 MB in float32.
BLOCK_VALUES = 2**24
# More than float32 errs in a similarity of vectors of some thousand channels.
SLACK = 1e-4
MOST_ROWS = 2**32


class Block(NamedTuple):
    """Some vectors, float32 `(rows, channels)`, and their positions among all, int64 `(rows,)`, in ascending order."""

    positions: torch.Tensor
    vectors: torch.Tensor


class Nearest(NamedTuple):
    """The best rows of each query, best first: cosine similarities, float32, and positions, int64 `(queries, k)`."""

    similarities: torch.Tensor
    positions: torch.Tensor


def blocks_of(vectors: torch.Tensor) -> Iterator[Block]:
    """Yield vectors `(rows, channels)` in blocks, in order."""
    rows = block_rows(vectors.shape[1])
    for first in range(0, len(vectors), rows):
        part = vectors[first : first + rows]
        yield Block(torch.arange(first, first + len(part)), part)


def block_rows(channels: int) -> int:
    return max(BLOCK_VALUES // max(channels, 1), 1)


def with_progress(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """Yield the blocks, and show how many of the rows they have had so far, where that takes more than two seconds."""
    with tqdm(total=rows, desc="nearest neighbours", unit=" rows", file=sys.stderr, delay=2.0) as bar:
        for block in blocks:
            yield block
            if len(block.positions):  # some rows before its last have no vector
                bar.update(int(block.positions[-1]) + 1 - bar.n)


def nearest(
    queries: torch.Tensor, blocks: Iterable[Block], k: int, *, refined: bool = True, own: int | None = None
) -> Nearest:
    """Return the `k` rows nearest to each of the queries `(queries, channels)`, of equal ones that of lower position.

    Of fewer rows all are returned. The similarity to a vector of zeros is 0. `refined` computes those that may be
    among the best in float64, so that equal rows have equal similarities wherever they lie; without it all is float32.
    With `own`, the queries are themselves the rows from that position on, and none finds itself: where no other row
    is left, the similarity is -inf. Computed on the device of the queries.
    """
    device = queries.device
    best = torch.empty((len(queries), 0), dtype=torch.int64, device=device)  # keys
    with float32_arithmetic(device.type, "exact"):
        for block in blocks:
            at_once = max(BLOCK_VALUES // max(len(block.positions), 1), 1)
            block = Block(*(part.to(device) for part in block))
            parts = zip(
                torch.split(queries, at_once), torch.split(best, at_once), range(0, len(queries), at_once), strict=True
            )
            best = torch.cat([
                _better(part, keys, block, k, refined, None if own is None else own + first)
                for part, keys, first in parts
            ])  # fmt: skip
    return Nearest(_similarities(best), MOST_ROWS - 1 - (best & (MOST_ROWS - 1)))


def _better(
    queries: torch.Tensor, keys: torch.Tensor, block: Block, k: int, refined: bool, own: int | None
) -> torch.Tensor:
    """Return the keys of each query's best rows so far and in the block, best first."""
    positions, vectors = block
    similarities = (queries @ vectors.T) / (_norms(queries)[:, None] * _norms(vectors))
    similarities = _without_own(similarities, positions, own)
    if refined:
        both = torch.cat([_similarities(keys), similarities], dim=1)
        least = both.topk(min(k, both.shape[1]), dim=1).values.amin(dim=1, keepdim=True) if both.numel() else both
        kept = (similarities >= least - SLACK).any(dim=0).nonzero()[:, 0]
        positions = positions[kept]
        similarities = _without_own(_in_float64(queries, vectors[kept]), positions, own)
    keys = torch.cat([keys, _keys(similarities, positions)], dim=1)
    return keys.topk(min(k, keys.shape[1]), dim=1).values


def _without_own(similarities: torch.Tensor, positions: torch.Tensor, own: int | None) -> torch.Tensor:
    if own is not None:
        queries = torch.arange(own, own + len(similarities), device=positions.device)
        similarities[positions == queries[:, None]] = -torch.inf
    return similarities


def _norms(vectors: torch.Tensor) -> torch.Tensor:
    """Return the lengths of vectors, 1 for those of zeros."""
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    return torch.where(lengths == 0, 1.0, lengths)


def _in_float64(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    queries, vectors = queries.double(), vectors.double()
    return ((queries / _norms(queries)[:, None]) @ (vectors / _norms(vectors)[:, None]).T).float()


def _keys(similarities: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return whole numbers in the order of the similarities, and of equal ones against that of the positions."""
    bits = (similarities + 0.0).view(torch.int32).long()  # the sum makes 0 of -0
    return (_turned(bits) << 32) | (MOST_ROWS - 1 - positions)


def _similarities(keys: torch.Tensor) -> torch.Tensor:
    return _turned(keys >> 32).int().view(torch.float32)


def _turned(bits: torch.Tensor) -> torch.Tensor:
    """Return the bits of floating-point numbers as whole numbers of the same order, and back."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
