"""A report must say what was counted, appear whole, and show strangers' names as text and never as code."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import WriteSplit
from image_records import made_up
from PIL import Image
from sklearn.metrics import confusion_matrix

from seresnet_hub.data.open_split import open_split
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.metrics import metrics_of
from seresnet_hub.evaluation.report import require_report, worst_classes, write_report
from seresnet_hub.evaluation.report_page import Measured
from seresnet_hub.files.locks import only_writer


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_report_says_what_was_counted(tmp_path: Path) -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [2, 4, 0]])
    names = ["cat, felis", 'the "dog"', "Ünke"]
    write_report(tmp_path / "deep" / "report", confusion, names)
    assert sorted(path.name for path in (tmp_path / "deep").rglob("*")) == [
        "confusion.csv", "confusion.png", "per_class.csv", "report",
    ]  # fmt: skip
    assert read_csv(tmp_path / "deep" / "report" / "per_class.csv") == [
        [
            "class",
            "name",
            "images",
            "correct",
            "top1",
            "mistaken_for",
            "mistaken",
            "precision",
            "recall",
            "f1",
        ],
        ["0", names[0], "4", "3", "75.0000", names[1], "1", "0.600000", "0.750000", "0.666667"],
        ["1", names[1], "0", "0", "", "", "0", "0.000000", "", "0.000000"],
        ["2", names[2], "6", "0", "0.0000", names[1], "4", "", "0.000000", "0.000000"],
    ]
    head, *rows = read_csv(tmp_path / "deep" / "report" / "confusion.csv")
    assert head[1:] == [row[0] for row in rows] == names
    assert np.array_equal(np.array([row[1:] for row in rows], dtype=int), confusion)
    with Image.open(tmp_path / "deep" / "report" / "confusion.png") as picture:
        picture.verify()
    assert worst_classes(confusion, names) == [
        {"index": 2, "name": "Ünke", "top1": 0.0}, {"index": 0, "name": "cat, felis", "top1": 75.0},
    ]  # fmt: skip
    assert worst_classes(confusion, most=1) == [{"index": 2, "name": "2", "top1": 0.0}]
    write_report(tmp_path / "deep" / "report", np.eye(2, dtype=int))  # again: the files are replaced
    assert len(read_csv(tmp_path / "deep" / "report" / "confusion.csv")) == 3


def test_with_records_it_has_a_page(tmp_path: Path, write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[20, 20]], classes=4)), "train")
    records = made_up(40, 4)
    confusion = confusion_matrix(records.labels, records.classes[:, 0], labels=range(4))
    metrics = metrics_of(records)
    measured = Measured(records=records, metrics=metrics, split=split, title="a model", facts={})
    write_report(tmp_path / "report", confusion, ["a", "b", "c", "d"], measured)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "confusion.csv", "confusion.png", "index.html", "metrics.json", "per_class.csv", "reliability.png",
    ]  # fmt: skip
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == metrics
    assert "<h1>a model</h1>" in (tmp_path / "report" / "index.html").read_text()
    with Image.open(tmp_path / "report" / "reliability.png") as picture:
        picture.verify()


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(InputError, match="is no folder"):
            require_report(place)
    require_report(tmp_path / "new" / "report")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("seresnet_hub.evaluation.report.draw_confusion", fail)
    with pytest.raises(InputError, match="cannot write .*report.*: No space left on device"):
        write_report(tmp_path / "report", np.eye(3, dtype=int))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_report_into_a_folder_in_use_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """Protects the work of an evaluation, which would be lost where its report cannot be written at the end."""
    with only_writer(tmp_path), pytest.raises(InputError, match="is in use by another process"):
        require_report(tmp_path)
    require_report(tmp_path)
