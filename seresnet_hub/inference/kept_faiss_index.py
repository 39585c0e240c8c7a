"""Find rows that may be nearest in a large index without reading all of it: by faiss, whose own index is kept beside.

faiss compares a query with the rows of those lists (of about as many rows as there are lists) whose centres are nearest
to it. What it proposes is read from the index and compared exactly, so that only a neighbour that lies in another list
can be missed.
"""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from seresnet_hub.errors import InputError, message_of
from seresnet_hub.files.atomic_writing import replacing
from seresnet_hub.inference.embedding_index import EmbeddingIndex
from seresnet_hub.inference.nearest_rows import with_progress

# Rows that are compared exactly in seconds, which needs nothing beside the index.
FEW_ROWS = 1_000_000
TRAINED_ON = 40  # rows a list, the least that faiss asks for
# The lists that are looked at, and how many rows are proposed for each that is asked for.
LOOKED_AT, PROPOSED = 1 / 16, 4


def is_worth_it(index: EmbeddingIndex) -> bool:
    """Return whether an index has so many rows that faiss is used, where it is installed."""
    return index.rows > FEW_ROWS and find_spec("faiss") is not None


def proposed_rows(index: EmbeddingIndex, queries: torch.Tensor, top: int) -> list[int]:
    """Return the rows that may be among the nearest to any of the queries `(queries, channels)`, in order.

    The first call builds faiss's index from one pass over the rows, with two bytes a value in memory; it is kept in a
    file beside theirs, and built anew when they are newer. Errors: `InputError` where that file cannot be written.
    """
    faiss = _faiss()
    path = index.path.with_name(f"{index.path.name}.{index.column}.faiss")
    found = _kept(faiss, path, index)
    if found is None:
        found = _built(faiss, index)
        with replacing(path) as temporary:
            faiss.write_index(found, str(temporary))
    found.nprobe = max(round(found.nlist * LOOKED_AT), 1)
    _, rows = found.search(normalize(queries.cpu().float(), dim=1).numpy(), PROPOSED * top)
    return sorted({int(row) for row in rows.ravel() if row >= 0})


def _kept(faiss: Any, path: Path, index: EmbeddingIndex) -> Any:
    """Return what was kept of these rows, `None` where there is nothing or it is of other rows."""
    if not path.is_file() or path.stat().st_mtime_ns < max(file.stat().st_mtime_ns for file in index.files):
        return None
    try:
        found = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise InputError(f"{path} is damaged, remove it ({message_of(error)})") from error
    return found if found.d == index.channels and 0 < found.ntotal <= index.rows else None


def _built(faiss: Any, index: EmbeddingIndex) -> Any:
    lists = max(math.isqrt(index.rows), 1)
    found = faiss.index_factory(index.channels, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    # Rows at even distances, since neighbours in a file are often alike.
    chosen = range(0, index.rows, max(index.rows // (TRAINED_ON * lists), 1))
    found.train(torch.cat([normalize(block.vectors, dim=1) for block in index.blocks(among=chosen)]).numpy())
    for positions, vectors in with_progress(index.blocks(), index.rows):
        found.add_with_ids(normalize(vectors, dim=1).numpy(), positions.numpy())
    return found


def _faiss() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the types that its generated code makes
        import faiss
    return faiss
