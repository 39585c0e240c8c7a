"""Settings of Inductor, torch's compiler, as a recipe writes them."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import torch

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.field_types import closest, declaration, parse

SIMPLE = (bool, int, float, str)


def options_of(settings: Sequence[str], option: str = "inductor=", *, deterministic: bool = False) -> dict[str, Any]:
    """Return `key=value` texts as the `options` of `torch.compile`, each checked against this version of torch.

    With `deterministic`, Inductor chooses no kernel by its speed either, where this version has a setting for that.
    Errors: `InputError` begins with the `option` that the texts were given by, and names a key that Inductor does not
    have, with the nearest one that it has, or a wrong value.
    """
    import torch._inductor.config as config  # takes a second, so not before it is asked for

    known = torch._inductor.list_options()
    options: dict[str, Any] = {"deterministic": True} if deterministic and "deterministic" in known else {}
    for setting in settings:
        key, separator, text = (part.strip() for part in setting.partition("="))
        try:
            if not separator:
                raise ValueError("write it as key=value")
            if key not in known:
                near = closest(key, known) or f" (see torch._inductor.config of torch {torch.__version__})"
                raise ValueError(f"Inductor has no setting {key!r}{near}")
            hint = config.get_type(key)  # type: ignore[attr-defined]
            if not _is_simple(hint):
                raise ValueError(f"{key} cannot be written as text")
            options[key] = parse(text, declaration(hint))
        except ValueError as error:
            raise InputError(f"{option}{setting}: {error}") from None
    return options


def _is_simple(hint: Any) -> bool:
    kind, arguments = declaration(hint).kind, typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and len(arguments) != 2:
        return False
    if typing.get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in typing.get_args(kind))
    return kind in SIMPLE
