"""Models measured by one command must be a table that survives a kill, whatever one of them does, and any processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import timm
import torch
from conftest import WriteSplit, numbered_picture
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from warm_python import run_python

from seresnet_hub.commands import measured_model, validate
from seresnet_hub.commands.measured_models import named_models
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.data.open_split import open_split
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.evaluate import evaluate
from seresnet_hub.evaluation.model_table import ModelTable
from seresnet_hub.inference.predict import extract_features
from seresnet_hub.inference.write_predictions import write_predictions
from seresnet_hub.models.load import load

IMAGES = 47


@pytest.fixture
def data(write_split: WriteSplit) -> Path:
    return write_split([[20, 9], [1], [17]], split="test")


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Three model folders, the second with another number of classes than the data."""
    folders = []
    for number, classes in enumerate((10, 7, 10)):
        torch.manual_seed(number)
        folders.append(tmp_path / f"model{number}")
        save(timm.create_model("seresnet20_cifar", num_classes=classes), folders[-1])
    return [str(folder) for folder in folders]


def save(model: Any, folder: Path) -> None:
    names = [f"class {number}" for number in range(model.num_classes)]
    timm.models.save_for_hf(model, folder, model_config={"label_names": names}, safe_serialization=True)


def call(*words: object, capfd: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    """Run the command here; return its exit code, its result and what it said."""
    arguments = [str(word) for word in words]
    options = validate.parser().parse_args(arguments)
    code = run(validate.main, arguments, exit_code=lambda result: validate.exit_code(options, result))
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else None, err


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_model_that_fails_is_a_row_and_the_others_are_measured(
    data: Path, models: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.md"
    command = [*models, "--data", data, "--workers", 0, "--output", table]
    code, result, err = call(*command, capfd=capfd)
    assert (code, result["measured"], result["failed"]) == (1, 2, 1)
    assert [row["model"] for row in result["models"]] == models
    assert "has 10 classes, the model 7" in result["models"][1]["error"]
    assert "top1" not in result["models"][1]
    split = open_split(str(data), "test")
    rows = rows_of(tmp_path / "table.csv")
    for number in (0, 2):
        found = evaluate(load(models[number]), split, workers=0)
        assert float(rows[number]["top1"]) == result["models"][number]["top1"] == round(found.top1, 4)
        assert float(rows[number]["loss"]) == round(found.loss or 0, 6)
    assert rows[1]["top1"] == ""
    lines = table.read_text().splitlines()
    assert lines[0] == f"Measured by `seresnet-hub validate MODEL… --data {data}`; all columns are in `table.csv`."
    assert lines[2] == (
        "| model | top1 | top5 | loss | f1_macro | balanced_accuracy | ece | input_size | crop_pct | images_per_second "
        "| error |"
    )
    best = max((0, 2), key=lambda number: result["models"][number]["top1"])
    shown = [line.split(" | ")[0] for line in lines[4:]]
    assert models[best] in shown[0]
    assert len(shown) == 3
    # Again: what was measured is kept, what failed is tried again.
    before = (tmp_path / "table.csv").read_text()
    code, again, err = call(*command, capfd=capfd)
    assert (code, again["failed"]) == (1, 1)
    assert [line.endswith(", measured before") for line in err.splitlines() if line.startswith("model ")] == [
        True, False, True,
    ]  # fmt: skip
    assert again["models"][0] == result["models"][0]
    assert (tmp_path / "table.csv").read_text() == before
    # Another training of the same folder is measured again.
    torch.manual_seed(9)
    save(timm.create_model("seresnet20_cifar", num_classes=10), Path(models[0]))
    _, other, _ = call(*command, capfd=capfd)
    assert other["models"][0]["loss"] != result["models"][0]["loss"]
    assert len(rows_of(tmp_path / "table.csv")) == 3


def test_other_options_and_other_files_are_refused(
    data: Path, models: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [models[0], "--data", data, "--workers", 0, "--output", tmp_path / "table.csv"]
    assert call(*command, capfd=capfd)[0] == 0
    code, _, err = call(*command, "--tta", "flip", capfd=capfd)
    assert code == 2
    assert f"was measured with --data {data}, and this is to be with --data {data} --tta flip" in err
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "README.md").write_text("# mine\n")
    for name, message in (
        ("other.csv", "is no table of models"), ("README.md", "no README.csv beside it"),
        ("table.txt", "ends in .csv or .md"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            ModelTable(tmp_path / name, "")
    code, _, err = call(*models, "--data", data, "--report", tmp_path / "report", capfd=capfd)
    assert (code, err) == (2, "error: --report is of one model, and these are 3\n")
    code, _, err = call(*models, "--data", "./nowhere", "--output", tmp_path / "new.csv", capfd=capfd)
    assert (code, (tmp_path / "new.csv").exists()) == (2, False)
    assert "no data at ./nowhere" in err


def test_cells_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        {"model": "1e5", "top1": 12.5, "top5": 80.0, "loss": None, "tta": "flip", "input_size": "32x48", "ece": 0.1},
        {"model": 'a "b", c\n|d', "error": "=1+1"},
        {"model": "inf", "top1": 1, "weights": "12345678", "seen": 7},
    ]
    table = ModelTable(tmp_path / "table.md", "--data 'a b'")
    for row in rows:
        table.add(row)
    again = ModelTable(tmp_path / "table.md", "--data 'a b'")
    for row, read in zip(rows, again.rows, strict=True):
        assert {name: value for name, value in read.items() if value is not None} == {
            **{name: value for name, value in row.items() if value is not None}, "options": "--data 'a b'",
        }  # fmt: skip
    assert again.measured("1e5", None) is not None
    assert again.measured("inf", None) is None
    assert again.measured(str(rows[1]["model"]), None) is None
    again.add({"model": "inf", "top1": 2, "weights": "12345678"})
    assert [row["model"] for row in again.rows] == [row["model"] for row in rows]


def test_a_table_for_a_person_shows_what_is_not_as_ever(tmp_path: Path) -> None:
    def header(**row: object) -> list[str]:
        table = ModelTable(tmp_path / "t.csv", "--data d", 128)
        table.add({"model": "a", "top1": 1.0, "workers": 2, "processes": 1, "precision": "no", "batch_size": 128})
        table.add({"model": "b", **row})
        return table.as_markdown().splitlines()[2].strip("| ").split(" | ")

    assert header() == ["model", "top1"]
    assert header(precision="bf16", seen=7) == ["model", "top1", "precision"]
    assert header(batch_size=64, knn_top1=3.0, knn_k=20) == ["model", "top1", "knn_top1", "batch_size"]


def test_two_calls_fill_one_table(tmp_path: Path) -> None:
    first, second = (ModelTable(tmp_path / "t.csv", "--data d") for _ in range(2))
    first.add({"model": "a", "top1": 1.0})
    second.add({"model": "b", "top1": 2.0})
    first.add({"model": "c", "top1": 3.0})
    assert [row["model"] for row in rows_of(tmp_path / "t.csv")] == ["a", "b", "c"]


def test_patterns_are_names_that_have_weights(models: list[str], tmp_path: Path) -> None:
    assert named_models(["seresnet50.mm*", "x"]) == ["seresnet50.mm_in1k", "x"]
    assert named_models(["seresnet20_cif*"]) == ["seresnet20_cifar.c10"]
    assert named_models([f"{tmp_path}/model*"]) == models
    with pytest.raises(InputError, match=r"nothing\*: neither a name of timm's that has weights nor a model folder"):
        named_models(["nothing*"])
    with pytest.raises(InputError, match="seresnet20_cifar.c10 is named twice"):
        named_models(["seresnet20_cif*", "seresnet20_cifar.c10"])


# The command, with a model that ends the process when it is asked for the K-th time.
KILLED = """
import os, signal, sys
from seresnet_hub.commands import measured_models, validate
from seresnet_hub.commands.result_or_error import run
measured, asked = measured_models.measured, []
def dying(*arguments):
    asked.append(1)
    if len(asked) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return measured(*arguments)
measured_models.measured = dying
sys.exit(run(validate.main, sys.argv[2:]))
"""


def test_a_killed_run_goes_on_at_the_next_model(data: Path, models: list[str], tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    words = [models[0], models[2], "--data", str(data), "--workers", "0", "--output", str(tmp_path / "table.csv")]
    done = run_python([sys.executable, tmp_path / "killed.py", "2", *words])
    assert done.returncode == -signal.SIGKILL
    (first,) = rows_of(tmp_path / "table.csv")
    done = run_python([sys.executable, tmp_path / "killed.py", "9", *words])
    assert done.returncode == 0, done.stderr
    assert f"model 1 of 2: {models[0]}, measured before\n" in done.stderr
    assert [row["model"] for row in rows_of(tmp_path / "table.csv")] == [models[0], models[2]]
    assert rows_of(tmp_path / "table.csv")[0] == first


def test_a_row_for_each_image(data: Path, models: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "images.parquet"
    code, result, _ = call(
        models[0], "--data", data, "--workers", 0, "--predictions", file, "--knn", capfd=capfd
    )  # fmt: skip
    assert (code, result["predictions"]) == (0, str(file))
    table = pd.read_parquet(file)
    assert list(table) == [
        "row", "image", "label", "label_name", "error",
        *[f"{name}_{k}" for k in range(1, 6) for name in ("class", "name", "score")], "loss",
    ]  # fmt: skip
    assert table["row"].tolist() == list(range(IMAGES))
    assert table["label"].tolist() == [row % 10 for row in range(IMAGES)]
    assert result["top1"] == round(100 * (table["class_1"] == table["label"]).mean(), 4)
    assert result["loss"] == pytest.approx(table["loss"].mean(), abs=1e-5)
    assert result["f1_macro"] == pytest.approx(f1_score(table["label"], table["class_1"], average="macro"), abs=1e-6)
    assert datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path)).features["label"].num_classes == 10
    metadata = json.loads(pyarrow.parquet.read_metadata(file).metadata[b"seresnet_hub"])
    assert (metadata["architecture"], metadata["data"], metadata["rows"]) == ("seresnet20_cifar", str(data), IMAGES)
    # The nearest neighbours, by scikit-learn: of each image among all others, with votes by similarity.
    features = torch.nn.functional.normalize(torch.stack(pictures_features(data, models[0])))
    labels = torch.arange(IMAGES) % 10
    right = 0
    for row in range(IMAGES):
        others = torch.arange(IMAGES) != row
        votes = KNeighborsClassifier(
            20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(features[others], labels[others])
        right += int(votes.predict(features[row : row + 1])[0] == labels[row])
    assert result["knn_top1"] == round(100 * right / IMAGES, 4)
    (tmp_path / "mine.csv").write_text("mine")
    code, _, err = call(models[0], "--data", data, "--predictions", tmp_path / "mine.csv", capfd=capfd)
    assert (code, err) == (2, f"error: {tmp_path}/mine.csv is there, and no table of ours: choose another name\n")
    code, _, err = call(models[0], "--data", data, "--knn", "--crop-pct", 0.9, capfd=capfd)
    assert (code, err) == (2, "error: --knn goes with neither --input-size, --crop-pct nor --real\n")


def test_an_index_is_looked_at_before_anything_is_measured(
    data: Path, models: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", data, "--workers", 0, "--knn"]
    write_predictions(models[0], str(data), tmp_path / "own.parquet", features=[None])
    code, result, err = call(models[0], *words, tmp_path / "own.parquet", capfd=capfd)
    assert (code, result["knn_k"]) == (0, 20)
    assert f"{IMAGES} of {IMAGES} images have the features of a row of {tmp_path}/own.parquet: if" in err
    write_predictions(models[0], str(data), tmp_path / "bare.parquet")
    monkeypatch.setattr(measured_model, "evaluate", None)
    for model, file, problem in (
        (models[0], "bare.parquet", "has no column 'features'"),
        (models[2], "own.parquet", "was made by other weights"),
    ):
        code, _, err = call(model, *words, tmp_path / file, capfd=capfd)
        assert code == 2
        assert f"error: {tmp_path}/{file} {problem}" in err


def test_classes_that_only_the_data_names_have_their_names_in_the_rows(
    write_split: WriteSplit, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model has more classes, and names none of them."""
    data = write_split([[12]], split="test", classes=3)
    torch.manual_seed(0)
    model = timm.create_model("seresnet20_cifar", num_classes=12)
    timm.models.save_for_hf(model, tmp_path / "m", safe_serialization=True)
    (tmp_path / "classes.txt").write_text("7\n11\n9\n")
    file = tmp_path / "rows.parquet"
    options = [tmp_path / "m", "--data", data, "--classes", tmp_path / "classes.txt", "--workers", 0]
    assert call(*options, "--predictions", file, capfd=capfd)[0] == 0
    table = pd.read_parquet(file)
    assert table["label"].tolist() == [7, 11, 9] * 4
    assert table["label_name"].tolist() == ["class 0", "class 1", "class 2"] * 4
    names = {7: "class 0", 11: "class 1", 9: "class 2"}
    assert table["name_1"].tolist() == [names[number] for number in table["class_1"]]
    code, _, err = call(*options, "--predictions", data / "rows.parquet", capfd=capfd)
    assert (code, f"error: {data}/rows.parquet lies in the data set that is read, {data}" in err) == (2, True)


def pictures_features(data: Path, model: str) -> list[torch.Tensor]:
    loaded = load(model)
    return [extract_features(loaded, numbered_picture(row)).flatten() for row in range(IMAGES)]


@pytest.mark.slow
def test_several_processes_say_the_same(data: Path, models: list[str], tmp_path: Path) -> None:
    """Also where one of the models fails, and where there are more processes than batches."""
    said: list[tuple[Any, str, str]] = []
    for count in (1, 2, 3):
        folder = tmp_path / f"by{count}"
        folder.mkdir()
        launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(count), "--main_process_port", "0"]
        command = [
            sys.executable, *launcher, *(["--multi_gpu"] if count > 1 else []), "-m", "seresnet_hub", "validate",
        ]  # fmt: skip
        options = ["--data", str(data), "--workers", "1", "--batch-size", "16"]
        one, several = (
            subprocess.run(
                [*command, *names, *options, *more], capture_output=True, text=True, timeout=200, check=False,
                env=dict(os.environ),
            )
            for names, more in (
                (models[:1], ["--predictions", str(folder / "images.csv"), "--knn"]),
                (models, ["--output", str(folder / "table.csv")]),
            )
        )  # fmt: skip
        assert one.returncode == 0, one.stderr
        result = json.loads(one.stdout)
        assert result.pop("processes") == count
        varying = {"images_per_second", "predictions"}
        rows = [
            {name: value for name, value in row.items() if name not in {"images_per_second", "processes"}}
            for row in rows_of(folder / "table.csv")
        ]
        assert json.loads(several.stdout)["failed"] == 1
        assert (
            "Traceback"
            not in several.stderr.split("ChildFailedError")[0].split("CalledProcessError")[0][:0] + one.stderr
        )
        kept = {name: value for name, value in result.items() if name not in varying}
        said.append((kept, (folder / "images.csv").read_text(), json.dumps(rows)))
    assert said[0] == said[1] == said[2]
