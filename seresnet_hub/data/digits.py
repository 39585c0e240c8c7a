"""The embedded data set: scikit-learn's handwritten digits, written once as parquet shards into a cache folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from sklearn.datasets import load_digits

from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import cache_folder, replacing

SHARDS = {"train": 4, "validation": 1}
ROWS_PER_GROUP = 100


def digits_folder() -> Path:
    """Return the folder of the digits as parquet shards, written on first use.

    1,797 grey 8 x 8 images (the UCI optical digits test set): every fifth is in `validation` (360), the rest in
    `train` (1,437). Ten validation pictures, one a class, lie in `samples/CLASS/` as PNG files. Errors: `InputError`
    where the cache cannot be written.
    """
    folder = cache_folder() / "digits"
    if folder.is_dir():
        return folder
    try:
        with replacing(folder) as temporary:
            _write(temporary)
    except InputError as error:
        if not folder.is_dir():  # else another process has written it meanwhile
            raise InputError(f"{error}; set SERESNET_HUB_CACHE to a folder that can be written") from error
    return folder


def _write(folder: Path) -> None:
    digits = load_digits()
    # The data set stores 17 grey levels, 0 (paper) to 16 (ink).
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    held_out = np.arange(len(pictures)) % 5 == 0
    (folder / "data").mkdir(parents=True)
    for split, chosen in (("train", ~held_out), ("validation", held_out)):
        for shard, indices in enumerate(np.array_split(np.flatnonzero(chosen), SHARDS[split])):
            images: list[dict[str, Any]] = [{"bytes": _png(pictures[k]), "path": f"{k:04d}.png"} for k in indices]
            rows = Dataset.from_dict({"image": images, "label": digits.target[indices].tolist()}, features=features)
            name = f"{split}-{shard:05d}-of-{SHARDS[split]:05d}.parquet"
            pyarrow.parquet.write_table(
                rows.with_format("arrow")[:], folder / "data" / name, row_group_size=ROWS_PER_GROUP
            )
    for digit in range(10):
        index = int(np.flatnonzero(held_out & (digits.target == digit))[0])
        (folder / "samples" / str(digit)).mkdir(parents=True)
        (folder / "samples" / str(digit) / f"{index:04d}.png").write_bytes(_png(pictures[index]))


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
