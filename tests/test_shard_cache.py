"""A remote shard is fetched once on a machine, and nothing that was kept wrongly is ever read, whatever happened."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections import namedtuple
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import numbered_picture
from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache

from seresnet_hub.data import open_split, shard_cache
from seresnet_hub.data.parquet_shards import ParquetShards
from seresnet_hub.data.partial_file import RECORD, PartialFile
from seresnet_hub.data.shard_cache import ShardCache
from seresnet_hub.data.shards import Shard
from seresnet_hub.errors import InputError
from seresnet_hub.files import locks
from seresnet_hub.hub.client import hash_like

COMMIT = "0123456789" * 4
FEATURES = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])})


def parquet_bytes(groups: int, *, rows: int = 2, seed: int = 0, other: int = 0) -> bytes:
    """Return a shard; each row has a picture of 50 kB, and `other` bytes in a column that nobody reads."""
    random = np.random.default_rng(seed)
    count = groups * rows
    table = pyarrow.table(
        {
            "image": [{"bytes": numbered_picture(k) + random.bytes(50_000), "path": None} for k in range(count)],
            "label": [k % 2 for k in range(count)],
        },
        FEATURES.arrow_schema,
    )
    if other:
        table = table.append_column("other", pyarrow.array([random.bytes(other) for _ in range(count)]))
    buffer = BytesIO()
    pyarrow.parquet.write_table(table, buffer, row_group_size=rows, compression="none")
    return buffer.getvalue()


class Remote:
    """Shards at an address of the Hub, and the requests for their bytes."""

    def __init__(self, contents: list[bytes]) -> None:
        self.files = [f"hf://datasets/someone/pictures@{COMMIT}/data/train-{k}.parquet" for k in range(len(contents))]
        self.contents = dict(zip(self.files, contents, strict=True))
        self.shards = [
            Shard(file, len(content), hashlib.sha256(content).hexdigest()) for file, content in self.contents.items()
        ]
        self.requests: list[tuple[str, int, int]] = []

    def fetch_range(self, address: str, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= len(self.contents[address])
        self.requests.append((address, start, stop))
        return self.contents[address][start:stop]

    def opened(self, cache_gb: float | None = None) -> ParquetShards:
        return ParquetShards(self.files, self.shards, cache_gb)

    @property
    def bytes(self) -> int:
        return sum(stop - start for _, start, stop in self.requests)


Serve = Callable[..., Remote]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Return a function that serves shards, in place of the Hub; the caches are empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "own"))

    def start(*contents: bytes) -> Remote:
        remote = Remote(list(contents))
        monkeypatch.setattr(shard_cache, "fetch_range", remote.fetch_range)
        return remote

    return start


def read_all(opened: ParquetShards, remote: Remote, *, joined: bool = False) -> None:
    """Read every row group, and compare it with what pyarrow reads from the whole file."""
    for number, file in enumerate(remote.files):
        whole = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(remote.contents[file]))
        for group in range(whole.num_row_groups):
            table = opened.read(number, group, FEATURES, needed=lambda _: joined)
            assert table.equals(whole.read_row_group(group, columns=["image", "label"]))


# ---------------------------------------------------------------------- the partial file


def test_ranges_come_back_as_they_were_written(tmp_path: Path) -> None:
    kept = PartialFile(tmp_path / "a.incomplete", "a")
    content = np.random.default_rng(0).bytes(1000)
    kept.write(100, memoryview(content)[100:300], [50, 150, 200])
    PartialFile(tmp_path / "a.incomplete", "a").write(300, memoryview(content)[300:400], ())
    for one in (kept, PartialFile(tmp_path / "a.incomplete", "a")):
        assert one.read(100, 400) == content[100:400]
        assert one.read(160, 190) == content[160:190]
        assert one.read(99, 101) is None
        assert one.read(390, 401) is None
        assert one.missing(0, 1000) == [(0, 100), (400, 1000)]
        assert not one.is_sound(1000)
    kept.write(0, memoryview(content)[:120], ())
    kept.write(390, memoryview(content)[390:], ())
    assert kept.read(0, 1000) == content
    assert kept.is_sound(1000)


def test_records_of_another_content_are_none(tmp_path: Path) -> None:
    PartialFile(tmp_path / "a.incomplete", "a").write(0, memoryview(b"12345"), ())
    assert PartialFile(tmp_path / "a.incomplete", "b").read(0, 5) is None


@pytest.mark.parametrize("at", range(2 * RECORD.size + 1))
def test_an_index_that_ends_anywhere_is_believed_up_to_there(tmp_path: Path, at: int) -> None:
    """And what is written later is found, although the last record is torn."""
    kept = PartialFile(tmp_path / "a.incomplete", "a")
    kept.write(0, memoryview(b"0123456789"), [5])
    os.truncate(kept.index, at)
    again = PartialFile(tmp_path / "a.incomplete", "a")
    assert again.missing(0, 10) == ([(0, 10)], [(5, 10)], [])[at // RECORD.size]
    again.write(10, memoryview(b"abcde"), ())
    assert again.read(10, 15) == b"abcde"
    assert PartialFile(tmp_path / "a.incomplete", "a").read(10, 15) == b"abcde"


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    for name, size in (("a.incomplete", 40), ("a.ranges.incomplete", 2 * RECORD.size)):
        for at in range(size):
            shutil.rmtree(tmp_path / "d", ignore_errors=True)
            (tmp_path / "d").mkdir()
            content = bytes(range(40))
            PartialFile(tmp_path / "d" / "a.incomplete", "a").write(0, memoryview(content), [20])
            damaged = bytearray((tmp_path / "d" / name).read_bytes())
            damaged[at] ^= 1 << at % 8
            (tmp_path / "d" / name).write_bytes(damaged)
            kept = PartialFile(tmp_path / "d" / "a.incomplete", "a")
            parts = [kept.read(0, 20), kept.read(20, 40)]
            assert [part == right for part, right in zip(parts, (content[:20], content[20:]), strict=True)].count(
                False
            ) == 1
            assert None in parts
            first, last = (0, 20) if parts[0] is None else (20, 40)
            assert kept.missing(0, 40) == [(first, last)]
            kept.write(first, memoryview(content)[first:last], ())
            assert kept.read(0, 40) == content


def test_bytes_that_are_gone_are_missing(tmp_path: Path) -> None:
    """As after a loss of power, or when somebody has cleared the cache."""
    kept = PartialFile(tmp_path / "a.incomplete", "a")
    kept.write(0, memoryview(b"0123456789"), [5])
    os.truncate(kept.path, 7)
    assert (kept.read(0, 5), kept.read(5, 10)) == (b"01234", None)
    kept.path.unlink()
    assert kept.read(0, 5) is None
    kept.index.unlink()
    assert kept.missing(0, 10) == [(0, 10)]


# ---------------------------------------------------------------------- row groups


def test_a_shard_is_fetched_once_and_becomes_a_file_of_the_hubs_cache(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    remote = serve(parquet_bytes(6), parquet_bytes(3, seed=1))
    opened = remote.opened()
    assert opened.row_groups() == [[2] * 6, [2] * 3]
    read_all(opened, remote)
    assert remote.bytes == sum(shard.size for shard in remote.shards)
    assert len(remote.requests) <= 6 + 3 + 2
    fetched = len(remote.requests)
    for again in (opened, remote.opened(), remote.opened(0)):
        read_all(again, remote)
        assert again.row_groups() == [[2] * 6, [2] * 3]
    assert len(remote.requests) == fetched
    for file, content in remote.contents.items():
        name = file.partition(f"{COMMIT}/")[2]
        found = try_to_load_from_cache("someone/pictures", name, constants.HF_HUB_CACHE, COMMIT, "dataset")
        assert isinstance(found, str)
        assert Path(found).read_bytes() == content
        assert Path(found).resolve().name == hashlib.sha256(content).hexdigest()
    (repository,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert (repository.repo_id, repository.nb_files) == ("someone/pictures", 2)
    assert not scan_cache_dir(constants.HF_HUB_CACHE).warnings
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert not caplog.records


def test_a_half_filled_cache_is_no_trouble_to_the_hubs_client(serve: Serve) -> None:
    remote = serve(parquet_bytes(6))
    remote.opened().read(0, 0, FEATURES)
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert not scan_cache_dir(constants.HF_HUB_CACHE).warnings


def test_what_hf_download_has_fetched_is_read(serve: Serve) -> None:
    remote = serve(parquet_bytes(6))
    folder = Path(constants.HF_HUB_CACHE, "datasets--someone--pictures")
    pointer = folder / "snapshots" / COMMIT / "data" / "train-0.parquet"
    for file in (folder / "blobs" / remote.shards[0].etag, pointer):
        file.parent.mkdir(parents=True)
        file.write_bytes(remote.contents[remote.files[0]])
        read_all(remote.opened(), remote)
        assert not remote.requests
        shutil.rmtree(folder)


def test_the_next_run_goes_on_where_one_was_ended(serve: Serve) -> None:
    remote = serve(parquet_bytes(6))
    for group in (4, 1):
        remote.opened().read(0, group, FEATURES)
    read_all(remote.opened(), remote)
    assert remote.bytes == remote.shards[0].size


def test_a_run_that_ended_before_a_shard_took_its_place_is_made_good(serve: Serve) -> None:
    remote = serve(parquet_bytes(3))
    opened = remote.opened()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardCache, "complete", lambda *_: None)
        read_all(opened, remote)
    fetched = len(remote.requests)
    assert remote.opened().cache.whole(0) is None
    opened = remote.opened()
    read_all(opened, remote)
    assert opened.cache.whole(0) is not None
    assert len(remote.requests) == fetched


def test_neighbours_that_are_needed_come_with_one_request(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = serve(parquet_bytes(20))
    monkeypatch.setattr(shard_cache, "LARGEST_REQUEST", 450_000)  # four row groups
    read_all(remote.opened(), remote, joined=True)
    assert len(remote.requests) <= 20 / 4 + 2
    assert remote.bytes == remote.shards[0].size


def test_labels_alone_are_a_few_bytes(serve: Serve) -> None:
    remote = serve(parquet_bytes(12))
    opened = remote.opened()
    features = datasets.Features({"label": FEATURES["label"]})
    opened.row_groups()
    remote.requests.clear()
    labels = [opened.read(0, group, features).column("label").to_pylist() for group in range(12)]
    assert labels == [[0, 1]] * 12
    assert remote.bytes < 12 * 2000
    requests = len(remote.requests)
    read_all(opened, remote)
    assert len(remote.requests) <= requests + 12
    assert remote.bytes <= 1.02 * remote.shards[0].size
    remote.requests.clear()
    opened.read(0, 3, features)
    assert not remote.requests


def test_large_columns_that_nobody_reads_are_not_fetched(serve: Serve) -> None:
    content = parquet_bytes(4, other=40_000)
    remote = serve(content)
    opened = remote.opened()
    for _ in range(2):
        read_all(opened, remote)
    assert remote.bytes < 0.75 * len(content)
    small = serve(parquet_bytes(4, other=1000))
    read_all(small.opened(), small)
    assert small.bytes == small.shards[0].size


def test_a_shard_of_other_types_is_cast_to_what_is_declared(serve: Serve) -> None:
    pictures = [numbered_picture(k) for k in range(4)]
    table = pyarrow.table({"image": pyarrow.array(pictures), "label": pyarrow.array(list("abab"))})
    buffer = BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    remote = serve(buffer.getvalue())
    found = remote.opened().read(0, 0, FEATURES)
    assert found.schema.types == FEATURES.arrow_schema.types
    assert found.column("image").to_pylist() == [{"bytes": picture, "path": None} for picture in pictures]
    assert found.column("label").to_pylist() == [0, 1, 0, 1]


# ---------------------------------------------------------------------- what goes wrong


def test_bytes_that_are_not_the_hubs_are_thrown_away(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    remote = serve(parquet_bytes(3))
    remote.shards = [remote.shards[0]._replace(etag="0" * 64)]
    opened = remote.opened()
    read_all(opened, remote)
    assert opened.cache.whole(0) is None
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    fetched = len(remote.requests)
    read_all(opened, remote)
    assert len(remote.requests) == fetched + 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "arrived with other bytes than the Hub says" in caplog.text


def test_damage_on_the_disk_is_fetched_again(serve: Serve) -> None:
    remote = serve(parquet_bytes(5))
    opened = remote.opened()
    for group in range(3):
        opened.read(0, group, FEATURES)
    (partial,) = (path for path in Path(constants.HF_HUB_CACHE).rglob("*.incomplete") if "ranges" not in path.name)
    with partial.open("r+b") as file:
        file.seek(150_000)
        file.write(b"damaged")
    for once in (remote.opened(), opened):
        read_all(once, remote)
        assert once.cache.whole(0) is not None
    assert remote.bytes <= remote.shards[0].size + 110_000


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_ends_the_keeping_and_not_the_run(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = serve(parquet_bytes(6))
    opened = remote.opened()
    opened.read(0, 0, FEATURES)
    real, left = PartialFile.write, iter([True])

    def write(*arguments: object) -> None:
        if not next(left, False):
            raise OSError(28, "No space left on device")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PartialFile, "write", write)
    read_all(opened, remote)
    fetched = len(remote.requests)
    read_all(opened, remote)
    assert len(remote.requests) == fetched + 3  # the first two and the last, which its footer came with, are kept
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("free", [9e9, 24e9])
def test_a_tenth_of_the_disk_and_ten_gigabytes_stay_free(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, free: float
) -> None:
    remote = serve(parquet_bytes(2))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(25 * free / 2.4, 0, free))
    read_all(remote.opened(), remote)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert "no more is kept" in remote.opened().cache.summary()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(8 * free, 0, free + 11e9))
    opened = remote.opened()
    assert opened.cache.summary().endswith("; the rest is kept there as it is read")
    read_all(opened, remote)
    assert opened.cache.is_whole
    assert re.fullmatch(r"all \S+ MB are in .*datasets--someone--pictures already", opened.cache.summary())


def test_a_place_that_cannot_be_written_is_named_once(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = serve(parquet_bytes(3))
    (tmp_path / "hub").write_text("no folder")
    opened = remote.opened()
    for _ in range(2):
        read_all(opened, remote)
    assert len(caplog.records) == 1
    assert "no more of the data set is kept" in caplog.text


def test_a_folder_that_is_not_ours_to_write_is_said_where_the_run_begins(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And is no warning of each split; as the tests may run as root, `os.access` says so here."""
    remote = serve(parquet_bytes(3))
    monkeypatch.setattr(os, "access", lambda *_: False)
    opened = remote.opened()
    assert ", which cannot be written: the rest is fetched in each epoch" in opened.cache.summary()
    assert not opened.cache.keeps_all
    read_all(opened, remote)
    assert not caplog.records


def test_the_limit_holds_and_the_rest_is_fetched(serve: Serve, tmp_path: Path) -> None:
    contents = [parquet_bytes(4, seed=k) for k in range(3)]
    remote = serve(*contents)
    opened = remote.opened(2.5 * len(contents[0]) / 1e9)
    assert re.search(r"; \S+ MB are kept there as they are read, \S+ MB are fetched", opened.cache.summary())
    read_all(opened, remote)
    assert [opened.cache.whole(k) is not None for k in range(3)] == [True, True, False]
    assert sum(file.stat().st_size for file in (tmp_path / "hub").rglob("blobs/*")) <= 2.5 * len(contents[0])
    fetched = remote.bytes
    read_all(remote.opened(2.5 * len(contents[0]) / 1e9), remote)
    assert remote.bytes - fetched <= len(contents[0])


def test_nothing_is_kept_where_nothing_shall(serve: Serve) -> None:
    remote = serve(parquet_bytes(4))
    read_all(remote.opened(0), remote)
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_two_splits_share_the_room(serve: Serve) -> None:
    contents = [parquet_bytes(2, seed=k) for k in range(3)]
    remote = serve(*contents)
    limit = 2.5 * len(contents[0]) / 1e9
    first = ShardCache(remote.files[:2], remote.shards[:2], limit)
    first.share_room_with(ShardCache(remote.files[2:], remote.shards[2:], limit))
    for k in range(2):
        first.read(k, (0, len(contents[k])))
    assert [first.whole(k) is not None for k in range(2)] == [True, False]


def test_a_limit_beyond_the_disk_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = serve(parquet_bytes(4))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 1000))
    with pytest.raises(InputError, match=r"^cache_gb=150: .* has 0\.0 GB free"):
        remote.opened(150)


def test_the_same_name_of_another_content_is_another_file(serve: Serve) -> None:
    remote = serve(parquet_bytes(3))
    remote.opened().read(0, 0, FEATURES)
    other = serve(parquet_bytes(3, seed=5))
    read_all(other.opened(), other)
    assert other.bytes == other.shards[0].size


@pytest.mark.parametrize("address", ["https://example.org/a.parquet", "s3://bucket/a.parquet"])
def test_other_addresses_are_kept_in_the_own_cache(serve: Serve, tmp_path: Path, address: str) -> None:
    content = parquet_bytes(4)
    remote = serve(content)
    remote.files, remote.contents = [address], {address: content}
    for etag, again in (("v1", False), ("v1", True), ("v2", False), ("", False), ("", False)):
        remote.requests.clear()
        remote.shards = [Shard("a.parquet", len(content), etag)]
        read_all(remote.opened(), remote)
        assert bool(remote.requests) is not again
    assert not Path(constants.HF_HUB_CACHE).exists()
    assert list((tmp_path / "own" / "shards" / "files").glob("*.incomplete"))


@pytest.mark.parametrize("path", ["../../../x.parquet", "a/../../x.parquet", "/x.parquet"])
def test_a_name_that_leads_elsewhere_is_not_put_into_the_hubs_cache(serve: Serve, path: str) -> None:
    content = parquet_bytes(2)
    remote = serve(content)
    remote.files = [f"hf://datasets/someone/pictures@{COMMIT}/{path}"]
    remote.contents = dict.fromkeys(remote.files, content)
    read_all(remote.opened(), remote)
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_how_far_it_is_is_said_until_all_is_there(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = serve(parquet_bytes(4))
    monkeypatch.setattr(shard_cache, "SECONDS_BETWEEN", 0.0)
    opened = remote.opened()
    for group in (0, 1, 2, 3, 3):
        opened.read(0, group, FEATURES)
        opened.cache.say_now_and_then()
    assert (
        capsys.readouterr().err.count("of the data set are on this machine") == 3
    )  # the last group came with the footer
    remote.opened().cache.say_now_and_then()
    assert not capsys.readouterr().err


def test_a_footer_of_more_rows_than_can_be_there_is_refused(tmp_path: Path) -> None:
    """It is written by whoever made the data set, and a plan takes memory for each row that it announces."""
    path = str(tmp_path / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.nulls(10**6)}), path)
    with pytest.raises(InputError, match=r"train\.parquet: its footer says that a row group has 1,000,000 rows"):
        ParquetShards([path], [Shard("train.parquet", os.path.getsize(path), "a")]).row_groups()


def test_users_who_share_a_cache_share_its_locks(serve: Serve, tmp_path: Path) -> None:
    """The Hub's client has its own locks in the same folder; one that is private would keep all others from it."""
    remote = serve(parquet_bytes(2))
    before = os.umask(0o002)
    try:
        read_all(remote.opened(), remote)
    finally:
        os.umask(before)
    found = list((tmp_path / "hub" / ".locks").rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o775, 0o664}


def test_what_never_becomes_whole_is_not_said_for_ever(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a column that nobody reads is not fetched, or the address is none of the Hub's."""
    remote = serve(parquet_bytes(4, other=100_000))
    monkeypatch.setattr(shard_cache, "SECONDS_BETWEEN", 0.0)
    opened = remote.opened()
    for said in (1, 0, 0):
        read_all(opened, remote)
        assert not opened.cache.is_whole
        opened.cache.say_now_and_then()
        assert capsys.readouterr().err.count("of the data set are on this machine") == said


def test_without_locks_two_processes_may_finish_a_shard(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on Lustre that is mounted without flock: the slower one goes on keeping other shards."""
    remote = serve(parquet_bytes(4), parquet_bytes(3, seed=1))
    opened, other = remote.opened(), remote.opened()
    monkeypatch.setattr(locks, "_lock", lambda *_: False)
    others_turn = iter([True])

    def slow_hash(path: Path, etag: str) -> str:
        found = hash_like(path, etag)
        if next(others_turn, False):
            other.cache.complete(0)
        return found

    monkeypatch.setattr(shard_cache, "hash_like", slow_hash)
    read_all(opened, remote)
    assert opened.cache.is_whole
    assert not caplog.records


def test_local_shards_are_neither_kept_nor_counted(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = parquet_bytes(4)
    remote = serve(content)
    monkeypatch.setattr(shard_cache, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 0))
    (tmp_path / "a.parquet").write_bytes(content)
    remote.files, remote.contents = [str(tmp_path / "a.parquet")], {str(tmp_path / "a.parquet"): content}
    opened = remote.opened(500)
    read_all(opened, remote)
    opened.cache.say_now_and_then()
    assert opened.cache.is_whole
    assert not remote.requests
    assert not capsys.readouterr().err


def test_a_worker_that_waits_for_another_is_not_held_up_for_ever(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the one that fetches was stopped: after a while it fetches for itself."""
    remote = serve(parquet_bytes(4))
    opened = remote.opened()
    group = opened.footer(0).chunks[0]
    place = opened.cache._place(0)
    assert place is not None
    monkeypatch.setattr(shard_cache, "PATIENCE", 0.4)
    with shard_cache.one_at_a_time(shard_cache._lock_of(place, (group[0].start, group[-1].stop))) as is_free:
        assert is_free
        read_all(opened, remote)
    assert remote.bytes == remote.shards[0].size


def test_offline_the_folder_in_the_cache_is_named(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` streams nothing by the Hub's id then; the folder that is named has what was fetched."""
    remote = serve(parquet_bytes(2))
    opened = remote.opened()
    read_all(opened, remote)
    snapshot = next((tmp_path / "hub").glob("datasets--*/snapshots/*"))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(open_split, "_open", lambda *_: (_ for _ in ()).throw(RuntimeError("offline")))
    with pytest.raises(InputError, match="HF_HUB_OFFLINE=1 is set") as refusal:
        open_split.open_split("someone/pictures", "train")
    folder = str(refusal.value).rpartition(": ")[2]
    assert Path(folder) == snapshot
    with pytest.raises(InputError, match="nobody/nothing is no folder here$"):
        open_split.open_split("nobody/nothing", "train")
