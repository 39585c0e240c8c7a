"""A data set on the Hub must give the same batches as one on disk, on a bad network too, and cost no needless bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import WriteSplit, numbered_picture
from hub_faults import Action, Halve, Status, Truncate
from hub_server import HubServer
from warm_python import run_python

REPO = "someone/pictures"

READ = """
import hashlib, logging, sys
logging.basicConfig(level=logging.WARNING)
from dataclasses import replace
import seresnet_hub.data.read_retries as retrying
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.loader import loader
from seresnet_hub.recipes.recipe import get_recipe
retrying.FIRST_DELAY = 0.05
source, workers = sys.argv[1], int(sys.argv[2])
recipe = replace(get_recipe("digits"), input_size=8, crop_padding=2, batch_size=16, shuffle_window=20)
split = open_split(source, "train", cache_gb=0)
digest = hashlib.sha256()
for epoch in range(3):
    for batch in loader(split, None, recipe, rank=0, world_size=1, workers=workers, epoch=epoch):
        digest.update(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes())
print(digest.hexdigest())
"""


def environment(hub: HubServer, cache: Path) -> dict[str, str]:
    """Return the environment of a process that asks the double, and keeps what it learns in `cache`."""
    return {**hub.environment(cache), "HF_HUB_OFFLINE": "0", "SERESNET_HUB_CACHE": str(cache)}


def read(source: str, environment: dict[str, str], *, workers: int = 0) -> str:
    """Read a source in a process of its own; return the digest of its batches."""
    command = [sys.executable, "-c", READ, source, str(workers)]
    done = run_python(command, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_faults_of_the_network_change_no_batch(write_split: WriteSplit, tmp_path: Path, workers: int) -> None:
    """503 three times, 429, a dropped connection, truncated answers: the same batches as from disk, with a token."""
    root = write_split([[9, 8], [16], [5, 5]])
    too_many = Status(429, headers={"Retry-After": "1"})
    faults: dict[int, Action] = {2: Truncate(1), 12: Truncate(1), 14: too_many, 15: Halve(), 17: Halve()}
    faults |= dict.fromkeys((8, 9, 10), Status(503))
    with HubServer(tmp_path / "hub") as hub:
        files = {f"data/{path.name}": path for path in root.glob("*.parquet")}
        hub.create("dataset", REPO, files, private=True)
        due = [hub.fault("GET", r"^/cdn/.*\.parquet$", action, after=after) for after, action in faults.items()]
        streamed = read(REPO, environment(hub, tmp_path / "a"), workers=workers)
        assert all(fault.seen > fault.after for fault in due)
        assert streamed == read(str(root), environment(hub, tmp_path / "b"))


COUNT = """
import json, sys
from seresnet_hub.data.loader import loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.recipes.recipe import get_recipe
split = open_split(sys.argv[1], "train", cache_gb=0)
batches = loader(split, None, get_recipe("digits"), rank=int(sys.argv[2]), world_size=8, workers=1)
rows = sum(int(batch.mask.sum()) for batch in batches)
print(json.dumps([rows, split.rows]))
"""


@pytest.mark.slow
def test_eight_ranks_read_their_share_of_294_shards(tmp_path: Path) -> None:
    """Bytes of files counted by the server: at most 1.02 of an eighth for a rank, its look at the data set included.

    The first process on a machine reads all footers once and keeps what they say; it is not one of the ranks here.
    """
    padding = np.random.default_rng(0)  # bytes after a picture's end, which no decoder looks at
    rows = [{"bytes": numbered_picture(k) + padding.bytes(1_250_000), "path": None} for k in range(16)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    table = pyarrow.table({"image": rows, "label": [0] * 16}, features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "shard", row_group_size=8, compression="none")
    names = [f"data/train-{k:05d}-of-00294.parquet" for k in range(294)]
    with HubServer(tmp_path / "hub") as hub:
        hub.create("dataset", REPO, {names[0]: tmp_path / "shard"})
        shard = hub.files(REPO, kind="dataset")[names[0]]
        repository = hub.repositories["dataset", REPO]
        repository.commit("main", dict.fromkeys(names, shard), title="The same shard, 294 times", author="someone")
        total = len(names) * shard.size

        def sent() -> int:
            return sum(request.sent for request in hub.asked("GET", r"^/cdn/"))

        def sent_to(rank: int) -> int:
            before = sent()
            command = [sys.executable, "-c", COUNT, REPO, str(rank)]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=500, check=False,
                env=environment(hub, tmp_path / "cache"),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            rows, all_rows = json.loads(done.stdout)
            assert abs(rows - all_rows / 8) <= 64
            return sent() - before

        sent_to(0)
        shares = [sent_to(rank) / (total / 8) for rank in (0, 1, 6)]
        print("bytes read over a rank's share:", shares)
        assert all(0.97 < share <= 1.02 for share in shares)
