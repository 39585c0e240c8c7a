"""Each row must say what the model says of its own picture, and nothing where the picture could not be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seresnet_hub.errors import InputError
from seresnet_hub.inference.prediction_table import PredictionTable, accuracy, count
from seresnet_hub.inference.run_batches import BatchAnswers

LOGITS = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
NAMES = ("cat", "dog", "fish")
NUMBERS = {name: frozenset({number}) for number, name in enumerate(NAMES)}


def answers(**changes: Any) -> BatchAnswers:
    given: dict[str, Any] = {
        "first": 7, "images": ["pets/dog/a.jpg", "pets/dog/b.jpg", None], "labels": np.array([1, -1, 0]),
        "errors": [None, "broken", None], "logits": LOGITS, "features": {},
    }  # fmt: skip
    return BatchAnswers(**{**given, **changes})


def table(**changes: Any) -> PredictionTable:
    given: dict[str, Any] = {"num_classes": 3, "class_names": NAMES, "class_numbers": NUMBERS, "topk": 2}
    return PredictionTable(**{**given, **changes})


def test_the_best_classes_come_first_and_nothing_is_said_of_an_error() -> None:
    first, second, third = table().rows(answers()).to_pylist()
    probabilities = LOGITS.softmax(-1).tolist()
    assert first == {
        "row": 7, "image": "pets/dog/a.jpg", "error": None, "class_1": 1, "name_1": "dog",
        "score_1": probabilities[0][1], "class_2": 2, "name_2": "fish", "score_2": probabilities[0][2],
    }  # fmt: skip
    assert second == {**dict.fromkeys(first), "row": 8, "image": "pets/dog/b.jpg", "error": "broken"}
    assert (third["row"], third["image"], third["name_1"], third["score_1"]) == (9, None, "fish", probabilities[2][2])


def test_scores_and_features_are_lists_of_one_length() -> None:
    features = torch.arange(12.0).reshape(3, 4)
    batch = table(scores=True).rows(answers(features={"features": features, "features_stage1": features[:, :2]}))
    assert batch.column("scores").to_pylist() == [LOGITS.softmax(-1)[0].tolist(), None, LOGITS.softmax(-1)[2].tolist()]
    assert batch.column("features").to_pylist() == [features[0].tolist(), None, features[2].tolist()]
    assert batch.column("features_stage1").to_pylist() == [[0, 1], None, [8, 9]]
    assert batch.schema.field("features").type.list_size == 4


def test_a_model_without_a_classifier_gives_features_alone() -> None:
    batch = table(num_classes=0, topk=0).rows(answers(logits=None, features={"features": torch.ones(3, 2)}))
    assert batch.schema.names == ["row", "image", "error", "features"]
    assert accuracy(count(table(topk=0, labels="folder"), batch)) == {}


def test_labels_are_those_of_the_data_or_of_the_folder() -> None:
    by_data = table(labels="data", label_names=("dog", "bird")).rows(answers())
    assert by_data.select(["label", "label_name"]).to_pylist() == [
        {"label": 1, "label_name": "bird"}, {"label": None, "label_name": None}, {"label": 0, "label_name": "dog"},
    ]  # fmt: skip
    by_number = table(labels="data").rows(answers())
    assert by_number.column("label_name").to_pylist() == ["1", None, "0"]
    by_folder = table(labels="folder").rows(answers(images=["pets/dog/a.jpg", "x/bird/b.jpg", None]))
    assert table(labels="folder").rows(answers(images=["a.jpg"] * 3)).column("label_name").null_count == 3
    assert by_folder.select(["label", "label_name"]).to_pylist() == [
        {"label": 1, "label_name": "dog"}, {"label": None, "label_name": "bird"}, {"label": None, "label_name": None},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "labels", "counted"),
    [
        ({"labels": "folder"}, [1, -1, 0], (1, 1)),  # dog is right, broken is not counted, the third has no folder
        ({"labels": "data"}, [1, 0, 0], (2, 1)),  # numbers alone are the model's
        ({"labels": "data"}, [3, 0, 2], (1, 1)),  # of 3 the model knows nothing
        ({"labels": "data", "label_names": ("fish", "bird", "dog")}, [2, 0, 1], (1, 1)),  # by name, and no bird
        ({}, [1, 0, 0], (0, 0)),
    ],
)
def test_only_labels_that_the_model_knows_are_counted(
    options: dict[str, Any], labels: list[int], counted: tuple[int, int]
) -> None:
    one = table(**options)
    counts = count(one, one.rows(answers(labels=np.array(labels))))
    assert (counts["rows"], counts["failed"]) == (3, 1)
    assert (counts["labelled"], counts["right"]) == counted
    wanted = {"labelled": counted[0], "top1": round(100 * counted[1] / counted[0], 4)} if counted[0] else {}
    assert accuracy(counts) == wanted


def test_names_that_are_no_utf_8_are_written_as_escapes() -> None:
    batch = table(class_names=("a\ud800", "b", "c")).rows(answers(images=["\udcff.jpg", "two\nlines", None]))
    assert batch.column("image").to_pylist() == ["\\udcff.jpg", "two\nlines", None]
    assert table(class_names=("a", "a\ud800", "c")).rows(answers()).column("name_1")[0].as_py() == "a\\ud800"


def test_features_that_are_no_numbers_are_refused_but_not_those_of_a_broken_picture() -> None:
    features = torch.ones(3, 2)
    features[1] = torch.nan
    assert table().rows(answers(features={"features": features})).num_rows == 3
    features[2, 0] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        table().rows(answers(features={"features": features}))
