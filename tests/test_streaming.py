"""A data set on the Hub must give the same batches as one on disk, on a bad network too, and cost no needless bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import WriteSplit, numbered_picture
from data_server import REPO, DataServer

READ = """
import hashlib, json, logging, sys
logging.basicConfig(level=logging.WARNING)
from dataclasses import replace
import seresnet_hub.data.retry as retrying
import seresnet_hub.data.splits as splits
from seresnet_hub.data.loader import loader
from seresnet_hub.recipes.recipe import get_recipe
retrying.FIRST_DELAY = 0.05
source, workers, world_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
recipe = replace(get_recipe("digits"), input_size=8, crop_padding=2, batch_size=16, shuffle_window=20)
split = splits.open_split(source, "train")
for rank in range(world_size):
    digest = hashlib.sha256()
    for batch in loader(split, None, recipe, rank=rank, world_size=world_size, workers=workers, epoch=1):
        digest.update(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes())
    print(json.dumps(digest.hexdigest()))
"""


def read(source: str, url: str, cache: Path, *, workers: int = 0, world_size: int = 1, token: str = "") -> list[str]:
    """Read a source in a process whose Hub is at `url`; return each rank's digest of its batches."""
    environment = {
        **os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_TOKEN": token,
        "SERESNET_HUB_CACHE": str(cache),
    }  # fmt: skip
    command = [sys.executable, "-c", READ, source, str(workers), str(world_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def files_of(root: Path) -> dict[str, bytes]:
    return {f"data/{path.name}": path.read_bytes() for path in sorted(root.glob("*.parquet"))}


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_faults_of_the_network_change_no_batch(write_split: WriteSplit, tmp_path: Path, workers: int) -> None:
    """503 three times, 429, a dropped connection, truncated answers: the same batches as from disk, with a token."""
    root = write_split([[9, 8], [16], [5, 5]])
    with DataServer(files_of(root), token="hf_secret") as server:
        server.faults.extend([*[""] * 8, "503", "503", "503", "", "drop", "", "429", "truncate", "", "truncate"])
        streamed = read(REPO, server.url, tmp_path / "a", workers=workers, token="hf_secret")
        assert set(server.injected) == {"503", "drop", "truncate", "429"}
        assert streamed == read(str(root), server.url, tmp_path / "b")
        assert not server.faults


COUNT = """
import json, sys
from seresnet_hub.data.loader import loader, open_split
from seresnet_hub.recipes.recipe import get_recipe
split = open_split(sys.argv[1], "train")
batches = loader(split, None, get_recipe("digits"), rank=int(sys.argv[2]), world_size=8, workers=1)
rows = sum(int(batch.mask.sum()) for batch in batches)
print(json.dumps([rows, split.rows]))
"""


@pytest.mark.slow
def test_eight_ranks_read_their_share_of_294_shards(tmp_path: Path) -> None:
    """Bytes counted by the server: at most 1.02 of an eighth for a rank, its look at the data set included.

    The first process on a machine reads all footers once and keeps what they say; it is not one of the ranks here.
    """
    padding = np.random.default_rng(0)  # bytes after a picture's end, which no decoder looks at
    rows = [{"bytes": numbered_picture(k) + padding.bytes(1_250_000), "path": None} for k in range(16)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    table = pyarrow.table({"image": rows, "label": [0] * 16}, features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "shard", row_group_size=8, compression="none")
    shard = (tmp_path / "shard").read_bytes()
    total = 294 * len(shard)
    with DataServer({f"data/train-{k:05d}-of-00294.parquet": shard for k in range(294)}) as server:

        def sent_to(rank: int) -> int:
            before = server.sent.total()
            environment = {
                **os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"),
                "SERESNET_HUB_CACHE": str(tmp_path / "cache"),
            }  # fmt: skip
            command = [sys.executable, "-c", COUNT, REPO, str(rank)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
            assert done.returncode == 0, done.stderr[-3000:]
            rows, all_rows = json.loads(done.stdout)
            assert abs(rows - all_rows / 8) <= 64
            return server.sent.total() - before

        sent_to(0)
        shares = [sent_to(rank) / (total / 8) for rank in (0, 1, 6)]
        print("bytes read over a rank's share:", shares)
        assert all(0.97 < share <= 1.02 for share in shares)
