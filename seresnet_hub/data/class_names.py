"""What a model's classes are called, and which of them a data set's class numbers and labels mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from timm.data import ImageNetInfo, RealLabelsImagenet, infer_imagenet_subset
from torch import nn

from seresnet_hub.errors import InputError, PrintableLog

# How the images of ImageNet's validation set are called; "Are we done with ImageNet?" numbers its labels by it.
IMAGENET_FILE = r"ILSVRC2012_val_(\d{8})"
IMAGENET_FILES = 50_000

log = PrintableLog(__name__)


def class_names(model: nn.Module) -> list[str] | None:
    """Return the class names in the model's config, ImageNet's from timm's tables where it has none, or `None`."""
    names, descriptions = _own_names(model)
    if names:
        return [descriptions.get(name, name) for name in names]
    subset = infer_imagenet_subset(model)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if subset and not config.get("label_names"):
        return list(_imagenet_names(subset)[1])
    return None


def class_order(names: Sequence[str], model: nn.Module, *, source: str) -> tuple[int, ...] | None:
    """Return the model's class for each class of a data set with these `names`, or `None` where they are the same.

    Classes belong together by name: the names in the model's config, with ImageNet's also by WordNet id or by number
    (a folder's "0", "1", "10" … are sorted as text). Errors: `InputError` where the names show that a model and the
    data set `source` number classes differently, or have none in common, and nothing says which is which.
    """
    if len(names) != getattr(model, "num_classes", 0):
        return None  # evaluation refuses it
    own, _ = _own_names(model)
    known, is_imagenet = _known_names(model)
    if list(names) in known:
        return None
    for order in known:
        if set(order) == set(names) and len(set(order)) == len(order):
            return tuple(map(order.index, names))
    if set(names) == {str(number) for number in range(len(names))}:
        if known:
            order_by_number = tuple(map(int, names))
            if not is_imagenet:
                log.warning(
                    "the classes of %s are called by numbers, the model's by names (%s): taken to be numbered alike",
                    source, _some(known[-1]),
                )  # fmt: skip
            return None if order_by_number == tuple(range(len(names))) else order_by_number
        if tuple(map(int, names)) != tuple(range(len(names))):
            log.warning(
                "the classes of %s are called by numbers sorted as text (%s …), and the model does not say what its "
                "are called: taken to be in the same order", source, ", ".join(names[:4]),
            )  # fmt: skip
        return None
    if own and not is_imagenet:
        _require_same_numbers(names, own, known[-1], source)
    elif known:
        _require_mostly_same_numbers(names, known[-1], source)
    return None


def class_numbers(model: nn.Module) -> dict[str, frozenset[int]]:
    """Return which of the model's classes a name may mean; a few of ImageNet's words are those of two classes.

    A name is one of the model's config or what describes it, or ImageNet's; the number as text where it has no names.
    """
    known, _ = _known_names(model)
    numbers: dict[str, frozenset[int]] = {}
    for names in known or [[str(number) for number in range(getattr(model, "num_classes", 0))]]:
        for number, name in enumerate(names):
            numbers[name] = numbers.get(name, frozenset()) | {number}
    return numbers


def classes_called(names: Sequence[str], model: nn.Module) -> tuple[int, ...] | None:
    """Return the model's class of each name, `None` where the names are not all, each once, those of classes of it.

    A class may be called as in the model's config, with ImageNet's also by WordNet id or by timm's words for it.
    """
    for order in _known_names(model)[0]:
        number = dict(zip(order, range(len(order)), strict=True))
        if len(number) == len(order) and set(names) <= number.keys() and len(set(names)) == len(names):
            return tuple(number[name] for name in names)
    return None


def _known_names(model: nn.Module) -> tuple[list[list[str]], bool]:
    """Return the lists of names that the model's classes have, and whether they are ImageNet's."""
    own, descriptions = _own_names(model)
    known = [own, [descriptions.get(name, name) for name in own]] if own else []
    subset = infer_imagenet_subset(model)
    if subset is None or (own and own not in _imagenet_names(subset)):
        return known, False
    return [*known, *_imagenet_names(subset)], True


def _require_same_numbers(names: Sequence[str], own: Sequence[str], described: Sequence[str], source: str) -> None:
    """Raise `InputError` unless some of the names are the model's own, all of those under their number there."""
    places = max(_places(names, own), _places(names, described), key=len)
    moved = [(here, there) for here, there in places if here != there]
    if moved:
        here, there = moved[0]
        raise InputError(
            f"class {names[here]!r} is number {here} in {source} and number {there} in the model, and other classes "
            "have other names, so it is not known which belong together: give both the same names"
        )
    if not places:
        raise InputError(
            f"{source} and the model have no class in common: {_some(names)} there, {_some(described)} in the model; "
            "if they are the same in this order, put its names into label_names of the model's config.json"
        )


def _require_mostly_same_numbers(names: Sequence[str], words: Sequence[str], source: str) -> None:
    """Raise `InputError` where most of the names that are also ImageNet's have another number there.

    Only the first of several words counts, and a few are of two classes (crane, maillot).
    """
    places = _places([_first_word(name) for name in names], [_first_word(name) for name in words])
    moved = [(here, there) for here, there in places if here != there]
    if 2 * len(moved) > len(places):
        here, there = moved[0]
        raise InputError(
            f"class {names[here]!r} is number {here} in {source} and number {there} in ImageNet, whose order the model "
            "seems to have: give the data set's classes ImageNet's names or order"
        )
    if not places:
        log.warning(
            "none of the classes of %s (%s) is known as one of ImageNet's: taken to be in the model's order",
            source, _some(names),
        )  # fmt: skip


def _places(names: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """Return the two positions of each name that is unique in both lists."""
    counts, other_counts = Counter(names), Counter(others)
    position = {name: number for number, name in enumerate(others) if other_counts[name] == 1}
    return [(k, position[name]) for k, name in enumerate(names) if name in position and counts[name] == 1]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _first_word(name: str) -> str:
    return name.partition(",")[0].strip().replace("_", " ").casefold()


def _own_names(model: nn.Module) -> tuple[list[str], dict[str, str]]:
    """Return the names in the model's config, none where they are another head's, and what describes them."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    num_classes = getattr(model, "num_classes", 0)
    names, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    if not names or len(names) != num_classes:
        return [], {}
    if isinstance(names, dict):
        return [names[str(k)] if str(k) in names else names[k] for k in range(num_classes)], descriptions
    return list(names), descriptions


@cache
def _imagenet_names(subset: str) -> tuple[list[str], list[str]]:
    """Return the WordNet ids of a subset's classes and their words."""
    info = ImageNetInfo(subset)
    return info.label_names(), info.label_descriptions()


def imagenet_real_labels(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Return the right classes of each image of ImageNet's validation set, in the order of their file names.

    These are the reassessed labels (ReaL) of arXiv 2006.07159, as timm has them; some images have none. Errors:
    `InputError` where the model's classes are not ImageNet-1k's.
    """
    if infer_imagenet_subset(model) != "imagenet-1k":
        raise InputError(f"ImageNet-ReaL has the 1,000 classes of ImageNet-1k, the model {model.num_classes}")
    labels: dict[str, list[int]] = RealLabelsImagenet(range(IMAGENET_FILES)).real_labels
    return tuple(tuple(labels[name]) for name in sorted(labels))
