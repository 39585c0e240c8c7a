"""`predict` must write what its options ask for, and refuse before any work what it cannot write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import numbered_picture

from seresnet_hub.commands import predict
from seresnet_hub.errors import InputError

MODEL = "seresnet20_cifar.c10"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "elsewhere"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            picture = numbered_picture(number * 99_991, 12)
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(picture if number else b"no picture")
    return tmp_path / "photos"


def written(*arguments: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the command; return its result and the metadata of the parquet file that it wrote."""
    result = predict.main([str(argument) for argument in arguments])
    return result, json.loads(pq.read_schema(result["output"]).metadata[b"seresnet_hub"])


def test_each_option_reaches_the_table(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--topk", 2, "--scores", "--features", "final", 1, "--labels-from-folder", "--batch-size", 3, "--fuse"]
    result, metadata = written(MODEL, photos, "--output", tmp_path / "t.parquet", *options)
    assert list(result) == [
        "model", "sha256", "tensors_sha256", "output", "rows", "failed", "labelled", "top1", "written", "seconds",
        "images_per_second",
    ]  # fmt: skip
    assert (result["rows"], result["failed"], result["labelled"]) == (10, 2, 4)
    expected = {
        "model": MODEL, "topk": 2, "scores": True, "features": ["features", "features_stage1"], "labels": "folder",
        "batch_size": 3, "fused": True, "compiled": None, "precision": "no", "decoder": "pil",
    }  # fmt: skip
    assert {key: metadata[key] for key in expected} == expected
    assert pq.read_schema(tmp_path / "t.parquet").names == [
        "row", "image", "label", "label_name", "error", "class_1", "name_1", "score_1", "class_2", "name_2", "score_2",
        "scores", "features_stage1", "features",
    ]  # fmt: skip
    assert "predicting: 100%" in capfd.readouterr().err


def test_patterns_and_data_sets_are_sources(photos: Path, tmp_path: Path) -> None:
    result, metadata = written(f"{photos}/*/[12].png", "--output", tmp_path / "t.parquet", "--features")
    assert (result["rows"], metadata["model"], metadata["features"]) == (4, MODEL, ["features"])
    for number, words in enumerate((["digits"], [MODEL, "digits"])):
        result, metadata = written(*words, "--output", tmp_path / f"digits{number}.parquet", "--amp", "bf16")
        assert (result["rows"], metadata["split"], metadata["precision"]) == (360, "validation", "bf16")
        assert "labelled" not in result  # the model knows no digits


def test_what_the_table_lacks_is_said(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written(photos, "--labels-from-folder", "--output", tmp_path / "t.parquet")
    said = f"2 of 10 pictures cannot be read: see 'error' in {tmp_path}/t.parquet\n"
    err = capfd.readouterr().err
    assert said in err
    assert "so none of the pictures has a label" not in err
    written(photos / "elsewhere", "--labels-from-folder", "--output", tmp_path / "e.parquet")
    assert f"no folder is called as a class of {MODEL}, so none of the pictures has a label\n" in capfd.readouterr().err


def test_a_folders_name_is_counted_without_a_table_too(photos: Path) -> None:
    result = predict.main([str(photos), "--labels-from-folder"])
    right = sum(
        one["classes"][0]["name"] == "cat" for one in result["predictions"] if Path(one["image"]).parent.name == "cat"
    )
    assert (result["failed"], result["labelled"], result["top1"]) == (2, 4, 25.0 * right)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scores"], "name it with --output"),
        (["--features"], "name it with --output"),
        (["--force"], "name it with --output"),
        (["--output", "t.txt"], r"t\.txt: a table is written as \.parquet, \.csv, \.jsonl"),
        (["--output", "missing/t.csv"], "there is no folder missing"),
        (["--output", "photos"], "photos holds what is no shard of a table .*: choose another folder"),
        (["--output", "t.csv", "--features", "9"], "stage=9: the model has stages 0 to 3"),
        (["--output", "t.csv", "--topk", "0"], "topk=0"),
    ],
)
def test_what_cannot_be_written_is_refused(
    options: list[str], message: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    with pytest.raises(InputError, match=message):
        predict.main(["photos", *options])
    assert [path.name for path in photos.parent.iterdir()] == ["photos"]


def test_a_picture_after_features_is_no_stage(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict.parser().parse_args(["photos", "--features", "more"])
    assert "'more' is no stage: a stage is a number or final" in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(photos: Path, tmp_path: Path) -> None:
    written(photos, "--output", tmp_path / "one.parquet", "--batch-size", 2)
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    words = ["-m", "seresnet_hub", "predict", str(photos), "--output", str(tmp_path / "two.parquet"), "--batch-size=2"]
    for rows in (10, 0):  # the second time, it is there
        done = subprocess.run([sys.executable, "-m", *launch, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads(done.stdout)
        assert (result["rows"], result["failed"], result["written"]) == (10, 2, rows)
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    refused = subprocess.run(
        [sys.executable, "-m", *launch, *words, "--topk=1"], capture_output=True, text=True, timeout=300
    )
    assert "error:" in refused.stderr
    assert "topk was 5, and is 1 now" in refused.stderr
    assert refused.returncode != 0
