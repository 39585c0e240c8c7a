"""What is kept of shards in the cache folder must be right or made anew, and never end a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import WriteSplit, encode
from PIL import Image

from seresnet_hub.data.loader import loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.shards import Shard, counted_once, kept_file, kept_shards, read_record, write_record
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe

RECIPE = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, batch_size=4, shuffle_window=9
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERESNET_HUB_CACHE", str(tmp_path / "cache"))


DAMAGED = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"row_groups": [[2000000000]]}', b"[" * 100_000,
           json.dumps({"shards": [], "row_groups": [[2_000_000_000]]}).encode(),
           json.dumps({"sha256": "0" * 64, "facts": '{"row_groups": [[5]]}'}).encode()]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_entries_are_made_anew(write_split: WriteSplit, tmp_path: Path, content: bytes) -> None:
    parquet = str(write_split([[5, 5]]))
    pictures = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (pictures / name).mkdir(parents=True)
        (pictures / name / "1.png").write_bytes(encode(Image.new("RGB", (9, 9))))
    for source, units in ((parquet, (5, 5)), (str(pictures), (2,))):
        split = open_split(source, "train")
        kept = kept_file(split.fingerprint)
        assert kept.is_file()
        kept.write_bytes(content)
        again = open_split(source, "train")
        assert again.unit_rows == units
        assert sum(int(batch.mask.sum()) for batch in loader(again, None, RECIPE)) == sum(units)
        assert (read_record(kept) or {})["row_groups"] == [list(units)]


def test_an_entry_that_is_no_file_is_passed_over(write_split: WriteSplit) -> None:
    source = str(write_split([[5]]))
    kept = kept_file(open_split(source, "train").fingerprint)
    kept.unlink()
    kept.mkdir()
    assert open_split(source, "train").unit_rows == (5,)


@pytest.mark.parametrize("groups", [[[-1]], [[True]], [[5.0]], [5], [["5"]], [[5], [5]], {"0": [5]}, None])
def test_implausible_numbers_of_rows_are_counted_again(groups: object) -> None:
    shards = (Shard("a", 1, "x"),)
    counted_once(shards, 1, lambda: [[7]])
    (kept,) = kept_file(0).parent.glob("*.json")
    write_record(kept, {"shards": shards, "row_groups": groups})
    assert counted_once(shards, 1, lambda: [[7]]) == [[7]]


def test_a_wrong_number_is_believed_at_most_once(tmp_path: Path) -> None:
    """An entry may be whole and still wrong; reading shows it, and then it is counted anew."""
    for name in ("cat", "dog"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "1.png").write_bytes(encode(Image.new("RGB", (9, 9))))
    (tmp_path / "d" / "README.md").write_text("---\nlicense: mit\n---\n")  # which `datasets` reads
    source = str(tmp_path / "d")
    split = open_split(source, "train")
    write_record(kept_file(split.fingerprint), {"shards": split.shards, "row_groups": [[9]]})
    with pytest.raises(InputError, match="it gave 2 rows, not the 9 it announced"):
        list(loader(source, "train", RECIPE))
    assert open_split(source, "train").rows == 2


def test_shards_that_were_kept_come_back(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[5], [3]])), "train")
    assert kept_shards(split.fingerprint) == list(split.shards)
    write_record(kept_file(split.fingerprint), {"shards": [["a"]], "row_groups": []})
    assert kept_shards(split.fingerprint) == []
