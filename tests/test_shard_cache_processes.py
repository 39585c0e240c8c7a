"""The processes of a machine fetch a remote data set once among them, and a killed one spoils nothing for the next."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import HubServer
from hub_traffic import counts
from test_shard_cache import parquet_bytes
from warm_python import run_python

from seresnet_hub.data.partial_file import PartialFile

REPO = "someone/pictures"
GROUPS, ROWS = 44, 4  # row groups in a shard, as ImageNet's have on the Hub, and rows in each

# As the Hub's data sets have it; without it, `datasets` asks the first shard for its columns in each process.
README = b"""---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': a
          '1': b
---
"""

READ = """
import hashlib, json, os, sys, time
from dataclasses import replace
import seresnet_hub.data.read_retries as read_retries
from seresnet_hub.data.loader import loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.recipes.recipe import get_recipe
read_retries.FIRST_DELAY = 0.05
source, rank, world_size, workers, epochs = sys.argv[1], *map(int, sys.argv[2:6])
recipe = replace(get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, batch_size=16,
                 shuffle_window=60)
split = open_split(source, "train")
found = []
for epoch in range(epochs):
    digest = hashlib.sha256()
    rows = 0
    for batch in loader(split, None, recipe, rank=rank, world_size=world_size, workers=workers, epoch=epoch):
        digest.update(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes())
        rows += int(batch.mask.sum())
        print("batch", file=sys.stderr, flush=True)
    found.append([rows, digest.hexdigest()])
print(json.dumps(found))
"""


def environment(hub: HubServer, home: Path) -> dict[str, str]:
    return {**hub.environment(home), "HF_HUB_OFFLINE": "0", "SERESNET_HUB_CACHE": str(home / "own")}


def read(
    source: str, home: dict[str, str], *, rank: int = 0, world_size: int = 1, workers: int = 0, epochs: int = 1
) -> list[tuple[int, str]]:
    """Read epochs in a process of its own; return how many rows each had, and the digest of its batches."""
    numbers = map(str, (rank, world_size, workers, epochs))
    done = run_python([sys.executable, "-c", READ, source, *numbers], env=home, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [(rows, digest) for rows, digest in json.loads(done.stdout)]


def served(hub: HubServer, shards: int) -> int:
    """Put a data set on the double; return its bytes."""
    contents = [parquet_bytes(GROUPS, rows=ROWS, seed=k) for k in range(shards)]
    files = {f"data/train-{k:05d}-of-{shards:05d}.parquet": content for k, content in enumerate(contents)}
    hub.create("dataset", REPO, {"README.md": README, **files})
    return sum(map(len, contents))


def asked(hub: HubServer) -> tuple[int, int]:
    """Return how many requests for shards there were so far, those to the resolver included, and the bytes sent."""
    found = counts([*hub.asked("GET", r"\.parquet$"), *hub.asked("HEAD", r"\.parquet$")])
    return tuple(found["resolver"][key] + found["storage"][key] for key in ("requests", "bytes"))  # type: ignore[return-value]


def folder_of(hub: HubServer, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, file in hub.files(REPO, kind="dataset").items():
        if name.endswith(".parquet"):
            (folder / Path(name).name).write_bytes(file.read())
    return folder


@pytest.mark.slow
def test_a_data_set_is_fetched_once_by_eight_processes(tmp_path: Path) -> None:
    """Counted by the double: requests a row group, bytes of the first epoch and of the second, and of the next run."""
    with HubServer(tmp_path / "hub") as hub:
        total = served(hub, 3)
        home = environment(hub, tmp_path / "home")

        def rank(number: int) -> list[tuple[int, str]]:
            return read(REPO, home, rank=number, world_size=8, workers=1)

        with ThreadPoolExecutor(8) as pool:
            first = list(pool.map(rank, range(8)))
        requests, size = asked(hub)
        print("requests a row group:", requests / (3 * GROUPS), "bytes over those of the data set:", size / total)
        assert sum(rows for ((rows, _),) in first) == 3 * ROWS * GROUPS
        assert requests / (3 * GROUPS) <= 1.05
        assert total <= size <= 1.02 * total
        both = read(REPO, home, workers=2, epochs=2)
        assert asked(hub)[1] - size <= 0.01 * total
        assert both == read(str(folder_of(hub, tmp_path)), environment(hub, tmp_path / "other"), epochs=2)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_second_epoch_is_read_locally(tmp_path: Path, workers: int) -> None:
    with HubServer(tmp_path / "hub") as hub:
        total = served(hub, 2)
        one, two = environment(hub, tmp_path / "one"), environment(hub, tmp_path / "two")
        read(REPO, one, workers=workers)
        requests, size = asked(hub)
        assert requests / (2 * GROUPS) <= 1.05
        assert size <= 1.02 * total
        both = read(REPO, two, workers=workers, epochs=2)
        assert asked(hub)[1] - size <= 1.01 * asked(hub)[1] / 2 + 0.01 * total
        assert both == read(str(folder_of(hub, tmp_path)), one, epochs=2)


DOWNLOAD = """
import sys
from huggingface_hub import scan_cache_dir, snapshot_download
print(snapshot_download(sys.argv[1], repo_type="dataset"))
found = scan_cache_dir()
assert not found.warnings, found.warnings
"""


@pytest.mark.parametrize("before", [True, False])
def test_the_hubs_client_and_the_loader_share_one_cache(tmp_path: Path, before: bool) -> None:
    """What `hf download` has fetched is not fetched again, and what an epoch has fetched `hf download` does not."""
    with HubServer(tmp_path / "hub") as hub:
        total = served(hub, 1)
        home = environment(hub, tmp_path / "home")
        for is_download in (before, not before):
            if is_download:
                run_python([sys.executable, "-c", DOWNLOAD, REPO], env=home, check=True)
            else:
                read(REPO, home)
        assert asked(hub)[1] <= 1.02 * total


def missing(hub: HubServer, home: Path) -> int:
    """Return how many bytes of the data set are not in the cache."""
    blobs = home / "hub" / "datasets--someone--pictures" / "blobs"
    found = 0
    for name, file in hub.files(REPO, kind="dataset").items():
        if name.endswith(".parquet") and not (blobs / file.sha256).exists():
            partial = PartialFile(blobs / f"{file.sha256}.seresnet-hub.incomplete", file.sha256)
            found += sum(stop - start for start, stop in partial.missing(0, file.size))
    return found


def kill_and_go_on(tmp_path: Path, moments: Sequence[float], *, workers: int) -> None:
    """Fill the cache with processes that are killed once such shares of the data set are kept; then read all of it.

    The last run fetches what the killed ones have not kept, and nothing else, and all that it reads is right.
    """
    with HubServer(tmp_path / "hub") as hub:
        total = served(hub, 2)
        home = environment(hub, tmp_path / "home")
        command = [sys.executable, "-c", READ, REPO, "0", "1", str(workers), "1"]
        for moment in moments:
            process = subprocess.Popen(
                command, env=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            while total - missing(hub, tmp_path / "home") < moment * total and process.poll() is None:
                time.sleep(0.002)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() in (-signal.SIGKILL, 0)
        left, already = missing(hub, tmp_path / "home"), asked(hub)[1]
        print("of", total, "bytes", left, "are missing")
        assert read(REPO, home, workers=workers, epochs=2) == read(
            str(folder_of(hub, tmp_path)), environment(hub, tmp_path / "other"), epochs=2
        )
        assert asked(hub)[1] - already == left
        blobs = [blob for blob in sorted((tmp_path / "home").rglob("blobs/*")) if blob.stat().st_size > 1000]
        assert [hashlib.sha256(blob.read_bytes()).hexdigest() for blob in blobs] == [blob.name for blob in blobs]
        assert len(blobs) == 2


def test_a_killed_run_spoils_nothing(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, [0.5], workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_killed_runs_spoil_nothing(tmp_path: Path, workers: int) -> None:
    kill_and_go_on(tmp_path, [0.001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.95], workers=workers)
