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

    The names of the split's classes decide which are meant where they are the model's. Otherwise, where the split has
    as many classes, its class k is `classes[k]`, as with timm's `--valid-labels`, and where it names none or as many as
    the model, its labels are the model's own numbers. Images of other classes are seen, but not counted. Errors:
    `InputError` where these are no classes of the model's, less than two, or it is not known what the split's are.
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
    position = {number: k for k, number in enumerate(classes)}
    names = split.class_names or ()
    own = classes_called(names, model) if names else None
    if own is None and len(names) == len(classes) != num_classes:
        return ClassSubset(tuple(classes), None)
    if own is None and len(names) not in (0, num_classes):
        raise InputError(
            f"{split.source} has {len(names)} classes, whose names are not the model's: name {len(names)} of the "
            f"model's {num_classes} classes in the same order, not {len(classes)}"
        )
    labels = range(num_classes) if own is None else own
    return ClassSubset(tuple(classes), tuple(position.get(number, -1) for number in labels))


def classes_for(split: Split, model: nn.Module, file: Path | None = None) -> tuple[int, ...] | None:
    """Return the model's classes to measure it on: those that `file` lists, or that a split with fewer has by name.

    `None` means all of them. Errors: `InputError` as for `read_classes`.
    """
    if file is not None:
        return read_classes(file, model)
    names = split.class_names or ()
    return classes_called(names, model) if 1 < len(names) < getattr(model, "num_classes", 0) else None


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
