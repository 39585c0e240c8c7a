"""Measure a model on some of its classes, as on ImageNet-A and ImageNet-R, which have 200 of ImageNet's 1,000."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from seresnet_hub.data.class_names import classes_called
from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError


@dataclass(frozen=True)
class ClassSubset:
    """The model's `classes` that are told apart, and what a data set's labels mean by it.

    `labels` gives for each label the position among `classes`, -1 for another class; `None` where labels are these
    positions.
    """

    classes: tuple[int, ...]
    labels: tuple[int, ...] | None

    @property
    def label_classes(self) -> int:
        """The number of classes that labels may have."""
        return len(self.classes) if self.labels is None else len(self.labels)


def subset_for(split: Split, model: nn.Module, classes: Sequence[int]) -> ClassSubset:
    """Return the subset of the model's `classes` that a split is measured on.

    Where the split names as many classes, its class k is `classes[k]`. Otherwise its labels are the model's own class
    numbers, and images of other classes are seen, but not counted. Errors: `InputError` where these are no classes of
    the model's, or less than two.
    """
    num_classes: int = model.num_classes  # type: ignore[assignment]
    wrong = [number for number in classes if not 0 <= number < num_classes]
    if wrong:
        raise InputError(f"class {wrong[0]}: the model has the classes 0 to {num_classes - 1}")
    if len(set(classes)) != len(classes):
        twice = next(number for number in classes if list(classes).count(number) > 1)
        raise InputError(f"class {twice} is among the classes more than once")
    if len(classes) < 2:
        raise InputError(f"{len(classes)} class to tell apart: there must be two or more")
    if split.right_classes is not None:
        raise InputError(f"images of {split.source} have several right classes, which are not divided by a subset")
    if split.class_names and len(split.class_names) == len(classes) != num_classes:
        return ClassSubset(tuple(classes), None)
    position = {number: k for k, number in enumerate(classes)}
    return ClassSubset(tuple(classes), tuple(position.get(number, -1) for number in range(num_classes)))


def classes_for(split: Split, model: nn.Module, file: Path | None = None) -> tuple[int, ...] | None:
    """Return the model's classes to measure it on: those that `file` lists, or that a split with fewer has by name.

    `None` means all of them. Where the split has as many classes as the file, its names decide which is which, or where
    they are not the model's, their order, as with timm's `--valid-labels`. Errors: `InputError` where the file cannot
    be read, or names classes that the model or the split has not.
    """
    names, num_classes = split.class_names or (), getattr(model, "num_classes", 0)
    by_name = classes_called(names, model) if 1 < len(names) < num_classes else None
    if file is None:
        return by_name
    listed = read_classes(file, model)
    if by_name is None or len(listed) != len(by_name):
        if names and len(names) not in (len(listed), num_classes):
            raise InputError(
                f"{file} lists {len(listed)} classes, and {split.source} has {len(names)}, the model {num_classes}: "
                "list those of the data set"
            )
        return listed
    if strangers := set(by_name) - set(listed):
        name = names[by_name.index(min(strangers))]
        raise InputError(f"class {name!r} of {split.source} is not among those that {file} lists")
    return by_name


def read_classes(file: Path, model: nn.Module) -> tuple[int, ...]:
    """Return the model's classes that a file lists, a number or a name on each line, as timm's index files do.

    Errors: `InputError` where the file cannot be read, or a line is neither.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot read classes from {file}: {error}") from error
    if not lines:
        raise InputError(f"{file} lists no class")
    if all(line.isascii() and line.isdecimal() for line in lines):
        classes = tuple(map(int, lines))
    else:
        found = classes_called(list(dict.fromkeys(lines)), model)
        if found is None:
            unknown = next((line for line in lines if classes_called([line], model) is None), lines[0])
            raise InputError(f"{file}: {unknown!r} is neither a number nor the name of a class of the model's")
        classes = found
    if wrong := [number for number in classes if number >= getattr(model, "num_classes", 0)]:
        raise InputError(f"{file}: class {wrong[0]}, and the model has the classes 0 to {model.num_classes - 1}")  # type: ignore[operator]
    return classes
