"""A table must hold each picture once, in order, as `predict` sees it, whatever was killed and whoever wrote it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import WriteSplit, encode, numbered_picture
from PIL import Image
from torch import nn

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.inference import parts, table_files
from seresnet_hub.inference.predict import extract_features, predict
from seresnet_hub.inference.write_predictions import write_predictions

PICTURES, BAD = 23, 9


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("seresnet20_cifar", num_classes=6).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": [f"class {k}" for k in range(6)]}
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise in two folders; one of them is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (PICTURES, 20, 24, 3), dtype=np.uint8)
    for number in range(PICTURES):
        path = folder / ("class 1" if number < 12 else "elsewhere") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture" if number == BAD else encode(Image.fromarray(noise[number])))
    return folder


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.PartWriter.__init__, "__kwdefaults__", {"rows": 8, "seconds": 1e9})


def write(model: nn.Module, photos: Path, output: Path, **options: Any) -> dict[str, Any]:
    return write_predictions(model, str(photos), output, **{"batch_size": 4, **options})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Threads:
    """Two processes of a launch, as threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, said: list[Any]) -> None:
        self.rank, self.count, self.main, self._barrier, self._said = rank, barrier.parties, rank == 0, barrier, said

    def from_main(self, ask: Callable[[], Any]) -> Any:
        if self.main:
            self._said.append(ask())
        self._barrier.wait(60)
        answer = self._said[-1]
        self._barrier.wait(60)
        return answer

    def wait_for_all(self) -> None:
        self._barrier.wait(60)


def test_rows_are_those_of_predict_for_any_number_of_workers_and_processes(
    model: nn.Module, photos: Path, tmp_path: Path
) -> None:
    options = {"topk": 3, "scores": True, "features": (None, 1)}
    result = write(model, photos, tmp_path / "0.parquet", **options)
    assert (result["rows"], result["failed"], result["written"]) == (PICTURES, 1, PICTURES)
    write(model, photos, tmp_path / "1.parquet", workers=1, **options)
    write(model, photos, tmp_path / "3.parquet", workers=3, **options)
    barrier, said = threading.Barrier(2), list[Any]()
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(
            lambda process: write(model, photos, tmp_path / "two.parquet", processes=process, **options),
            [Threads(rank, barrier, said) for rank in range(2)],
        )
    assert next(results)["rows"] == PICTURES
    first = (tmp_path / "0.parquet").read_bytes()
    assert all((tmp_path / f"{name}.parquet").read_bytes() == first for name in ("1", "3", "two"))
    assert names(tmp_path) == {"0.parquet", "1.parquet", "3.parquet", "two.parquet"}

    files = sorted(photos.rglob("*.png"))
    rows = pq.read_table(tmp_path / "0.parquet").to_pylist()
    assert [row["image"] for row in rows] == list(map(str, files))
    said = predict(model, files, topk=3, batch_size=4, unreadable=lambda *_: None)
    for row, classes in zip(rows, said, strict=True):
        found = [{"index": row[f"class_{k}"], "name": row[f"name_{k}"], "score": row[f"score_{k}"]} for k in (1, 2, 3)]
        assert found == (classes or [{"index": None, "name": None, "score": None}] * 3)
    assert (rows[BAD]["error"], rows[BAD]["features"], rows[BAD]["scores"]) != (None, None, None)
    features = extract_features(model, files[:8], batch_size=4), extract_features(model, files[:8], 1, batch_size=4)
    assert [row["features"] for row in rows[:8]] == features[0].tolist()
    assert [row["features_stage1"] for row in rows[:8]] == features[1].mean((2, 3)).tolist()


def test_parquet_names_the_model_and_is_read_by_datasets_and_pandas(
    model: nn.Module, photos: Path, tmp_path: Path
) -> None:
    result = write(model, photos, tmp_path / "t.parquet", labels_from_folder=True, features=(None,))
    said = json.loads(pq.read_schema(tmp_path / "t.parquet").metadata[b"seresnet_hub"])
    assert said["class_names"] == [f"class {k}" for k in range(6)]
    assert (said["architecture"], said["features"], said["input_size"]) == (
        "seresnet20_cifar",
        ["features"],
        [3, 32, 32],
    )
    assert said["tensors_sha256"] == result["tensors_sha256"]
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "cache"))
    rows = loaded["train"]
    assert rows.features["label"].names == said["class_names"]
    assert rows.features["features"].length == 64
    assert (rows[0]["label"], rows[0]["label_name"], rows[-1]["label"], rows[-1]["label_name"]) == (
        1, "class 1", None, "elsewhere",
    )  # fmt: skip
    assert pandas.read_parquet(tmp_path / "t.parquet").error.notna().sum() == 1
    right = [row["class_1"] == 1 for row in rows if row["label"] is not None and row["error"] is None]
    assert (result["labelled"], result["top1"]) == (11, round(100 * sum(right) / 11, 4))


def test_a_data_set_has_its_labels_and_what_the_model_knows_is_counted(
    model: nn.Module, write_split: WriteSplit, tmp_path: Path
) -> None:
    source = write_split([[5, 4], [6]], split="test", classes=8)
    result = write(model, source, tmp_path / "t.csv", split="test")
    table = pandas.read_csv(tmp_path / "t.csv")
    assert table.label.tolist() == [k % 8 for k in range(15)]
    assert table.label_name.tolist() == [f"class {k % 8}" for k in range(15)]
    known = table[table.label < 6]
    assert (result["labelled"], result["top1"]) == (len(known), round(100 * (known.label == known.class_1).mean(), 4))
    with pytest.raises(InputError, match="lies in the data set that is read"):
        write(model, source, source / "t.csv", split="test")


def test_the_same_call_finishes_and_another_is_refused(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for name in ("t.parquet", "t.csv", "t.jsonl", "t"):
        path = tmp_path / name
        first = write(model, photos, path)
        before = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
        again = write(model, photos, path, workers=1, say=said.append)
        assert (again["rows"], again["failed"], again["written"]) == (first["rows"], first["failed"], 0)
        assert said.pop().startswith(f"{path} is finished: nothing is left to do (")
        for options, message in (
            ({"topk": 2}, r"is another table: topk was 5, and is 2 now; choose another output, or replace it"),
            ({"scores": True}, "scores was false, and is true now"),
            ({"batch_size": 5}, "batch_size was 4, and is 5 now"),
        ):
            with pytest.raises(InputError, match=message):
                write(model, photos, path, **options)
        before_and_now = f"its pictures were {PICTURES} of {re.escape(str(photos))}, and are others now, 12 of"
        with pytest.raises(InputError, match=before_and_now):
            write(model, photos / "class 1", path)
        other = timm.create_model("seresnet20_cifar", num_classes=6).eval()
        with pytest.raises(InputError, match="its model was seresnet20_cifar"):
            write(other, photos, path)
        assert before == {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
        assert write(model, photos, path, topk=2, force=True)["written"] == PICTURES
    assert names(tmp_path) == {"t.parquet", "t.csv", "t.csv.json", "t.jsonl", "t.jsonl.json", "t"}


def test_a_picture_that_was_replaced_under_its_name_is_noticed(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "nowhere.png").symlink_to("gone.png")
    first = write(model, folder, tmp_path / "t.parquet")
    assert write(model, folder, tmp_path / "t.parquet")["written"] == 0
    picture = next(iter(sorted(folder.glob("*/*.png"))))
    with picture.open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match=f"files among its pictures, {first['rows']} of .*photos, had other sizes"):
        write(model, folder, tmp_path / "t.parquet")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
@pytest.mark.parametrize("place", [(parts, "partial_of"), (table_files, "replacing")])
def test_a_full_disk_is_told_with_the_way_out(
    name: str, place: tuple[Any, str], model: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a part is written, and while the table is."""
    output = tmp_path / name
    with monkeypatch.context() as patched:
        patched.setattr(*place, lambda path: nullcontext(Path("/dev/full")))
        with pytest.raises(InputError) as refused:
            write(model, photos, output)
    assert str(refused.value) == (
        f"cannot write {output}: No space left on device; make room, and run the same command again: it goes on"
    )
    assert names(tmp_path) == {f"{name}.parts"}
    written = write(model, photos, output)["written"]
    assert written == (PICTURES if place[0] is parts else 0)
    assert pq.read_table(output).num_rows == PICTURES if name == "t.parquet" else output.stat().st_size


def test_what_is_no_table_of_ours_is_not_replaced_by_chance(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("mine")
    with pytest.raises(InputError, match=r"t\.csv is there, and no table of ours"):
        write(model, photos, tmp_path / "t.csv")
    assert write(model, photos, tmp_path / "t.csv", force=True)["rows"] == PICTURES
    (tmp_path / "mine").mkdir()
    assert write(model, photos, tmp_path / "mine")["rows"] == PICTURES
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    for force in (False, True):
        with pytest.raises(
            InputError, match="other holds what is no shard of a table .notes.txt.: choose another folder"
        ):
            write(model, photos, tmp_path / "other", force=force)
    assert names(tmp_path) == {"t.csv", "t.csv.json", "mine", "other"}


def test_other_work_that_was_begun_is_not_lost_by_chance(
    model: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(parts.PartWriter, "write", _interrupted_after(parts.PartWriter.write, 3))
        with pytest.raises(KeyboardInterrupt):
            write(model, photos, tmp_path / "t.csv")
    assert {name[:31] for name in names(tmp_path / "t.csv.parts")} >= {"work.json", "rows-000000000000-000000000008-"}
    with pytest.raises(InputError, match=r"t\.csv\.parts holds the beginning of another table: topk was 5, and is 2"):
        write(model, photos, tmp_path / "t.csv", topk=2)
    said: list[str] = []
    assert write(model, photos, tmp_path / "t.csv", say=said.append)["written"] == PICTURES - 12
    assert said == [f"{tmp_path / 't.csv'}: 12 of {PICTURES} rows are there already: going on"]
    assert names(tmp_path) == {"t.csv", "t.csv.json"}


def _interrupted_after(write: Callable[..., bool], calls: int) -> Callable[..., bool]:
    left = [calls]

    def interrupted(*arguments: Any) -> bool:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(*arguments)

    return interrupted


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "folder"])
def test_killed_at_any_event_and_called_again_it_writes_the_same(
    name: str, every: int, model: nn.Module, photos: Path, tmp_path: Path
) -> None:
    """Each child is killed `every` openings, renamings, makings and removals later than the one before."""
    (tmp_path / "whole").mkdir()
    write(model, photos / "elsewhere", tmp_path / "whole" / name, batch_size=8)
    wanted, event, killed = _contents(tmp_path / "whole"), 0, True
    while killed:
        event += every
        place = tmp_path / str(event)
        place.mkdir()
        child = os.fork()
        if child == 0:
            _be_killed(place, event)
            write(model, photos / "elsewhere", place / name, batch_size=8)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if killed:
            write(model, photos / "elsewhere", place / name, batch_size=8)
        assert _contents(place) == wanted, event
    assert event > 12


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _be_killed(place: Path, event: int) -> None:
    left = [event]

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(str(place)):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.addaudithook(hook)


# The command, with parts so small that there are many.
COMMAND = """
import sys
from seresnet_hub.inference.parts import PartWriter
PartWriter.__init__.__kwdefaults__.update(rows=64, seconds=1e9)
from seresnet_hub.commands import predict
from seresnet_hub.commands.result_or_error import start
start(predict.parser(), predict.main, sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_at_ten_moments_it_goes_on_with_other_workers_and_processes(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(1600):
        (tmp_path / "photos" / f"{number:05}.png").write_bytes(numbered_picture(number * 9973, 12))
    (tmp_path / "command.py").write_text(COMMAND)
    seresnet_hub.write_predictions(
        "seresnet20_cifar.c10", tmp_path / "photos", tmp_path / "whole.parquet", features=[None], batch_size=16
    )
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    parts_folder, moments, kills, starts = tmp_path / "t.parquet.parts", random.Random(0), 0, 0
    code: int | None = None
    while code is None:
        several, workers = starts % 2, starts % 3
        command = [
            sys.executable, *(launch if several else []), str(tmp_path / "command.py"), str(tmp_path / "photos"),
            "--output", str(tmp_path / "t.parquet"), "--features", "--batch-size=16", f"--workers={workers}",
        ]  # fmt: skip
        starts += 1
        wanted = len(list(parts_folder.glob("rows-*"))) + moments.randint(1, 2)
        with open(tmp_path / "said", "ab") as said, subprocess.Popen(
            command, stdout=said, stderr=said, start_new_session=True, cwd=tmp_path
        ) as process:  # fmt: skip
            while (code := process.poll()) is None:
                time.sleep(0.01)
                if kills < 10 and len(list(parts_folder.glob("rows-*"))) >= wanted:
                    time.sleep(moments.uniform(0, 0.2))
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    kills += 1
                    break
    assert code == 0, (tmp_path / "said").read_text()[-3000:]
    assert kills == 10
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert names(tmp_path) == {"photos", "command.py", "said", "t.parquet", "whole.parquet"}


# Writes as many rows as its first argument says, of 1,000 scores and 2,048 features, and tells its most memory in MB.
MEMORY = """
import resource, sys
from functools import partial
from pathlib import Path
import numpy as np, torch
from seresnet_hub.inference.parts import Parts, PartWriter
from seresnet_hub.inference.prediction_table import PredictionTable, count
from seresnet_hub.inference.run_batches import BatchAnswers
from seresnet_hub.inference.table_files import write_table
rows, output = int(sys.argv[1]), Path(sys.argv[2])
table, parts = PredictionTable(num_classes=1000, scores=True), Parts(output)
parts.begin({})
writer = PartWriter(parts)
for first in range(0, rows, 50):
    names = [f"photos/{row}.jpg" for row in range(first, first + 50)]
    features = {"features": torch.rand(50, 2048)}
    writer.write(first, table.rows(
        BatchAnswers(first, names, np.full(50, -1), [None] * 50, torch.randn(50, 1000), features)
    ))
writer.close()
read = parts.batches(rows)
write_table(output, read, rows=rows, metadata={}, schema_metadata=lambda _: {}, count=partial(count, table))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "folder"])
def test_ten_thousand_rows_need_no_more_memory_than_a_thousand(name: str, tmp_path: Path) -> None:
    most = []
    for rows in (1_000, 10_000):
        command = [sys.executable, "-c", MEMORY, str(rows), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        most.append(float(done.stdout))
    print(f"{name}: {most[0]:.0f} MB for 1,000 rows, {most[1]:.0f} MB for 10,000")
    assert most[1] < most[0] + 40  # the values of the other rows alone are 105 MB


def test_options_that_cannot_be_are_refused_before_any_work(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    headless = timm.create_model("seresnet20_cifar", num_classes=0).eval()
    for network, options, message in (
        (model, {"topk": 0}, "topk=0"),
        (model, {"features": (4,)}, "stage=4: the model has stages 0 to 3"),
        (model, {"features": (3, -1)}, "each stage once"),
        (model, {"batch_size": 0}, "batch size 0"),
        (model, {"workers": -1}, "workers=-1: must be at least 0"),
        (headless, {}, "no classifier"),
        (headless, {"features": (None,), "scores": True}, "no classifier"),
    ):
        with pytest.raises(InputError, match=message):
            write(network, photos, tmp_path / "t.csv", **options)
    with pytest.raises(InputError, match="there is no folder"):
        write(model, photos, tmp_path / "missing" / "t.csv")
    assert not names(tmp_path)
    write(headless, photos, tmp_path / "t.parquet", features=(None,))
    assert pq.read_schema(tmp_path / "t.parquet").names == ["row", "image", "error", "features"]


def test_it_is_a_public_name() -> None:
    assert seresnet_hub.write_predictions is write_predictions
    assert table_files.METADATA == "seresnet_hub"
