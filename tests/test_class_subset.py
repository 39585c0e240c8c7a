"""On a data set with some of a model's classes, the model must choose among these alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm.data
from conftest import numbered_picture
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, log_loss
from test_evaluate import Planned, over_ranks, planned, write_rows

from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.class_subset import classes_for, read_classes, subset_for
from seresnet_hub.evaluation.evaluate import evaluate, in_model_order

INFO = Path(timm.data.__file__).parent / "_info"


@pytest.fixture
def imagenet() -> Planned:
    """A model of ImageNet's 1,000 classes with random answers to 200 pictures."""
    return Planned(np.random.default_rng(4).normal(size=(200, 1000)))


def folders(root: Path, names: list[str], labels: list[int]) -> Split:
    """A folder of class folders; picture k is of class `names[labels[k]]`, and listed class by class."""
    for name in names:
        (root / name).mkdir(parents=True)
    for number, label in enumerate(labels):
        (root / names[label] / f"{number:04d}.png").write_bytes(numbered_picture(number))
    return open_split(str(root), "train")


def require(found: Any, logits: np.ndarray, labels: np.ndarray) -> None:
    """Compare with scikit-learn's count over the logits that are left, as timm's validate keeps them."""
    best = np.argsort(-logits, axis=1)
    assert (found.counted, found.top1) == (len(labels), pytest.approx(100 * np.mean(best[:, 0] == labels)))
    assert found.top5 == pytest.approx(100 * np.mean((best[:, :5] == labels[:, None]).any(1)))
    every = range(logits.shape[1])
    assert found.loss == pytest.approx(log_loss(labels, np.exp(log_softmax(logits, axis=1)), labels=every), rel=1e-5)
    assert np.array_equal(found.confusion, confusion_matrix(labels, best[:, 0], labels=every))


@pytest.mark.parametrize("which", ["a", "r"])
def test_folders_of_some_of_imagenets_classes_are_known_by_name(tmp_path: Path, imagenet: Planned, which: str) -> None:
    names = (INFO / f"imagenet_{which}_synsets.txt").read_text().split()
    indices = [int(line) for line in (INFO / f"imagenet_{which}_indices.txt").read_text().split()]
    labels = np.random.default_rng(0).permutation(200)
    logits = imagenet.logits.detach().numpy()
    logits[np.arange(200), np.array(indices)[labels]] += np.arange(200) % 4  # often right
    split = folders(tmp_path / "data", names, labels.tolist())
    for file in (None, INFO / f"imagenet_{which}_indices.txt", INFO / f"imagenet_{which}_synsets.txt"):
        assert classes_for(split, imagenet, file) == tuple(indices)
    found = evaluate(imagenet, split, workers=0, classes=indices, confusion=True)
    require(found, logits[:, indices], labels)
    assert 5 < found.top1 < 95
    assert found.classes == tuple(indices)
    with pytest.raises(InputError, match="has 200 classes, the model 1000"):
        evaluate(imagenet, split, workers=0)


def test_a_part_of_the_listed_classes_is_told_from_all_of_them(tmp_path: Path, imagenet: Planned) -> None:
    names = (INFO / "imagenet_r_synsets.txt").read_text().split()
    labels = np.arange(30) % 11
    split = folders(tmp_path / "data", names[20:31], labels.tolist())
    classes = classes_for(split, imagenet, INFO / "imagenet_r_indices.txt")
    assert classes is not None
    found = evaluate(imagenet, split, workers=0, classes=classes, confusion=True)
    require(found, imagenet.logits.detach().numpy()[:30][:, classes], 20 + labels)


def test_a_file_decides_where_the_names_say_nothing(tmp_path: Path) -> None:
    """As timm's --valid-labels: class k of the data set is the one on line k."""
    model, _ = planned(20, 12)
    labels = np.arange(20) % 3
    split = folders(tmp_path / "data", ["x", "y", "z"], labels.tolist())
    assert classes_for(split, model) is None
    (tmp_path / "classes.txt").write_text("7\n\n2\n9\n")
    classes = classes_for(split, model, tmp_path / "classes.txt")
    assert classes == (7, 2, 9)
    found = evaluate(model, split, workers=0, classes=classes, confusion=True)
    require(found, model.logits.detach().numpy()[:, [7, 2, 9]], labels)


def test_images_of_other_classes_are_not_counted(tmp_path: Path) -> None:
    """As ImageNet's validation set on the classes of ImageNet-R: a data set with all classes, some told apart."""
    model, _ = planned(40, 6)
    names = [f"c{k}" for k in range(6)]
    model.pretrained_cfg["label_names"] = names
    labels = np.random.default_rng(2).integers(0, 6, 40)
    path = write_rows(tmp_path / "all", labels.tolist(), datasets.ClassLabel(names=names))
    split = in_model_order(open_split(path, None), model)
    (tmp_path / "classes.txt").write_text("c4\nc1\nc5\n")
    classes = classes_for(split, model, tmp_path / "classes.txt")
    assert classes == (4, 1, 5)
    kept = np.isin(labels, classes)
    position = np.array([-1, 1, -1, -1, 0, 2])[labels]
    logits = model.logits.detach().numpy()[:, [4, 1, 5]]
    for found in (
        evaluate(model, split, workers=0, batch_size=7, classes=classes, confusion=True, records=True),
        over_ranks(model, split, 2, batch_size=7, classes=classes, confusion=True),
    ):
        assert found.seen == 40
        require(found, logits[kept], position[kept])
        if found.records is not None:
            assert np.array_equal(found.records.labels, position)
            assert np.array_equal(np.isnan(found.records.losses), ~kept)


def test_classes_that_cannot_be_are_named(tmp_path: Path) -> None:
    model, _ = planned(4, 6)
    model.pretrained_cfg["label_names"] = [f"c{k}" for k in range(6)]
    split = folders(tmp_path / "data", ["c1", "c3", "c2"], [0, 1, 2, 1])
    file = tmp_path / "classes.txt"
    for text, message in (
        ("", "lists no class"),
        ("c1\ncat\n", "'cat' is neither a number nor the name of a class"),
        ("1\n6\n", "class 6, and the model has the classes 0 to 5"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_classes(file, model)
    with pytest.raises(InputError, match="cannot read classes from .*missing"):
        read_classes(tmp_path / "missing", model)
    split = folders(tmp_path / "others", ["x", "y", "z"], [0, 1, 2, 1])
    with pytest.raises(InputError, match="has 3 classes, whose names are not the model's: name 3 .* not 2"):
        subset_for(split, model, [1, 2])
    for classes, message in (
        ([1, 1], "class 1 is among the classes more than once"), ([2], "1 class to tell apart"),
        ([0, 9], "class 9: the model has the classes 0 to 5"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            subset_for(split, model, classes)
