"""How the fields of a recipe are declared, read, checked and shown; the fields themselves are in `recipe`."""

from __future__ import annotations

import contextlib
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from seresnet_hub.errors import InputError

AUTO_TEXT, NONE_TEXT = "auto", "none"
# Marks a field that may be `None` until `finetuning.resolved` gives it the value that fits the weights and the data.
OR_AUTO = object()
# The largest images that a model folder may ask for: with more, a stranger's few bytes could fill anybody's memory.
# timm's largest has 1,024 pixels a side, and the smallest share of a crop there is 0.875.
LONGEST_SIDE = 2048
LEAST_CROP_PCT = 0.1


class Bound(NamedTuple):
    """What a value must be beyond its type, and the words for it that complete "epochs=0: …"."""

    holds: Callable[[Any], bool]
    words: str


POSITIVE = Bound(lambda value: 0 < value < math.inf, "must be a finite number greater than 0")
NOT_NEGATIVE = Bound(lambda value: 0 <= value < 2**63, "must not be negative, nor beyond 2**63")
FRACTION = Bound(lambda value: 0 <= value <= 1, "must be between 0 and 1")
BELOW_ONE = Bound(lambda value: value < 1, "must be less than 1")
PIXELS = Bound(lambda value: value <= LONGEST_SIDE, f"must be at most {LONGEST_SIDE} pixels")
CROP_SHARE = Bound(lambda value: LEAST_CROP_PCT <= value <= 1, f"must be between {LEAST_CROP_PCT} and 1")
RANGE = Bound(lambda ends: 0 < ends[0] <= ends[1] <= 1, "must be a range within 0 and 1, the smaller number first")
RISING = Bound(
    lambda epochs: list(epochs) == sorted({*epochs}) and min(epochs, default=1) >= 1,
    "must be epochs from 1 on, each later than the last",
)
FINITE = Bound(lambda values: all(map(math.isfinite, values)), "must be finite")
SCALES = Bound(lambda values: all(1e-6 < value < math.inf for value in values), "must be greater than 0")


class Declaration(NamedTuple):
    """What an annotation such as `Annotated[int | None, POSITIVE, "explanation"]` says about a field."""

    kind: Any  # without None
    word: str | None  # how None is written: auto, none, or not at all
    bounds: tuple[Bound, ...]
    explanation: str


def declaration(hint: Any) -> Declaration:
    """Return what a type hint declares."""
    word: str | None = None
    marks: tuple[Any, ...] = ()
    while (origin := typing.get_origin(hint)) in (Annotated, types.UnionType, typing.Union):
        if origin is Annotated:
            hint, marks = hint.__origin__, hint.__metadata__
        else:
            hint, word = next(part for part in typing.get_args(hint) if part is not type(None)), NONE_TEXT
    bounds = tuple(mark for mark in marks if isinstance(mark, Bound))
    explanation = next((mark for mark in marks if isinstance(mark, str)), "")
    return Declaration(hint, AUTO_TEXT if OR_AUTO in marks else word, bounds, explanation)


def _declarations(kind: type) -> dict[str, Declaration]:
    """Return what each field of a dataclass declares, in their order."""
    return {name: declaration(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}


declarations: Callable[[type], dict[str, Declaration]] = cache(_declarations)


def check_bounds(recipe: Any) -> None:
    """Raise `InputError`, which names the field, where a text is empty or a value is out of its field's bounds."""
    for name, declared in declarations(type(recipe)).items():
        value = getattr(recipe, name)
        if value == "":
            raise InputError(f"{name} is empty")
        for bound in declared.bounds if value is not None else ():
            if not bound.holds(value):
                raise InputError(f"{name}={str(value).removesuffix('.0')}: {bound.words}")


def closest(given: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the most similar of the `known` names, or nothing where none is similar."""
    found = difflib.get_close_matches(given.lower(), list(known), 1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def following(recipe: Any) -> list[str]:
    """Return the names of a recipe's fields that still follow the weights and the data."""
    fields = declarations(type(recipe)).items()
    return [name for name, declared in fields if declared.word == AUTO_TEXT and getattr(recipe, name) is None]


def require_field(key: str, kind: type) -> None:
    """Raise `InputError` where a dataclass has no such field, or it is the name; with similar ones, or all."""
    known = [name for name in declarations(kind) if name != "name"]
    if key not in known:
        near = closest(key, known) or f"; it has: {', '.join(known)}"
        raise InputError(f"{key}: a recipe has no such field{near} (seresnet-hub train --show-recipe explains each)")


def typed(value: Any, declared: Declaration) -> Any:
    """Return a value of TOML as that of a field; `ValueError` says what was expected."""
    kind, word = declared.kind, declared.word
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    near = ""
    if word and isinstance(value, str) and value.lower() == word:
        return None
    if origin is Literal:
        if value in arguments:
            return value
        expected = f"one of {', '.join(arguments)}"
        near = closest(str(value), arguments)
    elif origin is tuple:
        if isinstance(value, list) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            return tuple(typed(item, declaration(arguments[0])) for item in value)
        expected = f"{_several(arguments)}, as in [a, b]"
    else:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(str(value))  # infinite where it is too large, and so out of every bound
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
    raise ValueError(f"expected {expected}{f', or {word}' if word else ''}{near}")


def parse(text: str, declared: Declaration) -> Any:
    """Return a text of `--set` as a field's value; `ValueError` says what was expected."""
    return typed(text if text.lower() == declared.word else _value(text, declared.kind), declared)


def _value(text: str, kind: Any) -> Any:
    """Return a text as the value that TOML would have for it; the text itself where it is no `kind`."""
    if typing.get_origin(kind) is tuple:
        parts = text.strip("()[]").strip(",").split(",")
        return [_value(part.strip(), typing.get_args(kind)[0]) for part in parts if part.strip()]
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    with contextlib.suppress(ValueError):
        return kind(text) if kind in (int, float) else text
    return text


def _several(kinds: tuple[Any, ...]) -> str:
    number = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
    return number + {int: "whole numbers", float: "numbers", str: "texts"}[kinds[0]]


def values_of(declared: Declaration) -> str:
    """Return in words which values a field takes, as `--set` reads them."""
    kind, arguments = declared.kind, typing.get_args(declared.kind)
    if typing.get_origin(kind) is Literal:
        values = " | ".join(arguments)
    elif arguments:
        values = f"{_several(arguments)}{' separated by commas' if arguments[-1] is Ellipsis else ': a,b,…'}"
    else:
        values = {bool: "true | false", int: "whole number", float: "number", str: "text"}[kind]
    return f"{values}, or {declared.word}" if declared.word else values


def written(value: Any, word: str | None = NONE_TEXT) -> str:
    """Return a field's value as `--set` takes it; `word` is written for None."""
    if value is None:
        return word or NONE_TEXT
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def described(recipe: Any) -> list[dict[str, Any]]:
    """Return each field of a recipe as `{field, value, values, explanation}`; texts as `--set` takes them."""
    return [
        {"field": name, "value": written(getattr(recipe, name), declared.word), "values": values_of(declared),
         "explanation": declared.explanation}
        for name, declared in declarations(type(recipe)).items()
    ]  # fmt: skip


def parsed(assignments: Iterable[str], kind: type) -> dict[str, Any]:
    """Return the fields of the dataclass `kind` that `key=value` texts set. Errors: `InputError` names the field."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = (part.strip() for part in assignment.partition("="))
        if not separator:
            raise InputError(f"--set {assignment!r}: write it as key=value")
        try:
            require_field(key, kind)
            changes[key] = parse(text, declarations(kind)[key])
        except InputError as error:
            raise InputError(f"--set {error}") from None
        except ValueError as error:
            raise InputError(f"--set {key}={text}: {error}") from None
    return changes
