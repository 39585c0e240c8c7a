"""Give tensors timm's names, by a table of the names that a code base writes.

In a table, `{s}` is the number of a stage, `{b}` of a block, `{k}` of a layer, and `{part}` what a layer keeps, such as
`weight` or `running_mean`. Where timm counts from another number, its name has `{b-1}` or `{s+1}`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from seresnet_hub.checkpoints.file_settings import USUAL_PREPROCESSING, Preprocessing, Settings
from seresnet_hub.errors import InputError

Tensors = dict[str, torch.Tensor]
# timm's name, with a change of the tensor if it is another kind of layer's; None leaves the tensor out.
Target = str | tuple[str, Callable[[torch.Tensor], torch.Tensor]] | None
PLACEHOLDERS = {
    "s": "[0-9]", "b": "[0-9]{1,4}", "k": "[0-9]", "part": "weight|bias|running_mean|running_var|num_batches_tracked",
    "backbone": r"(?:backbone\.)?",
    "name": r"(?!layer0\.).+",  # any but those of timm's legacy networks
    "word": r"\w+",
}  # fmt: skip
# What wrappers put before every name: torch.compile's and DistributedDataParallel's, in either order.
WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One code base: `names` renames its tensors, and `mark` is a name that it alone uses.

    `finish` completes what single names cannot say. `read_settings` reads the file's other entries, given its name, and
    refuses what timm's network would compute differently.
    """

    name: str
    title: str
    mark: str
    names: Mapping[str, Target]
    preprocessing: Preprocessing | None = USUAL_PREPROCESSING
    finish: Callable[[Tensors], Tensors] | None = None
    read_settings: Callable[[Mapping[str, Any], str], Settings] | None = None
    legacy: bool = False  # its networks are timm's `legacy_*`
    lacks_se: bool = False  # its networks become an initialisation, with new SE units
    license: str = ""  # of the code, and of the files that its authors publish at `published_at`
    published_at: tuple[str, ...] = ()
    url: str = ""


def rename(source: Source, tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, list[str]]:
    """Return `tensors` under timm's names, and the names of those that are known and not needed.

    Errors: `InputError` lists the names that the table lacks with the nearest name that it has, two names that would
    become one, and tensors whose number of dimensions is not the expected one.
    """
    renamed: Tensors = {}
    dropped, unmapped = [], []
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        if (row := _row_for(name, source)) is None:
            unmapped.append(name)
            continue
        target, placeholders = row
        if target is None:
            dropped.append(name)
            continue
        if isinstance(target, tuple):
            target, change = target
            if tensor.ndim != 2:
                raise InputError(f"tensor {name!r} has shape {tuple(tensor.shape)}, not 2 dimensions")
            tensor = change(tensor)
        target = _filled(target, placeholders)
        if target in origin:
            raise InputError(f"tensors {origin[target]!r} and {name!r} would both become {target!r}: delete one")
        origin[target] = name
        renamed[target] = tensor
    if unmapped:
        raise InputError(
            f"{len(unmapped)} unmapped, not of {source.title}: {_with_closest(unmapped, list(origin.values()))}"
        )
    return source.finish(renamed) if source.finish else renamed, dropped


def _row_for(name: str, source: Source) -> tuple[Target, dict[str, str]] | None:
    """Return what the table makes of a name, and what stands in the name for each placeholder."""
    for template, target in source.names.items():
        if match := pattern_of(template).fullmatch(name):
            return target, match.groupdict()
    return None


@cache
def pattern_of(template: str) -> re.Pattern[str]:
    """Return the expression that matches the names that a template stands for."""
    pieces = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(
            f"(?P<{piece}>{PLACEHOLDERS[piece]})" if at % 2 else re.escape(piece) for at, piece in enumerate(pieces)
        ),
        re.ASCII,
    )


def _filled(template: str, placeholders: Mapping[str, str]) -> str:
    def text_of(placeholder: re.Match[str]) -> str:
        name, shift = placeholder.groups()
        return str(int(placeholders[name]) + int(shift)) if shift else placeholders[name]

    return re.sub(r"\{(\w+)([+-]1)?\}", text_of, template)


def _with_closest(names: list[str], known: list[str], *, shown: int = 5) -> str:
    """Return the first of `names`, each with the most similar of the `known` ones."""
    parts = []
    for name in names[:shown]:
        near = difflib.get_close_matches(name, known[:2000], 1)
        parts.append(f"{name[:120]!r}" + (f" (closest: {near[0]!r})" if near else ""))
    return ", ".join(parts) + (", …" if len(names) > shown else "")


def differences(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """Return what keeps `found` from being exactly the tensors `wanted`, or an empty string."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    shapes = [
        f"{name!r} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_with_closest(missing, extra)}")
    if extra:
        parts.append(f"{len(extra)} too many: {_with_closest(extra, missing)}")
    if shapes:
        parts.append(f"{len(shapes)} of other shapes: {', '.join(shapes[:5])}")
    return "; ".join(parts)


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return `tensors` without the prefixes of `torch.compile` and `DistributedDataParallel`.

    Errors: `InputError` where a prefixed and an unprefixed tensor would get one name.
    """
    cleaned: Tensors = {}
    for name, tensor in tensors.items():
        short = name
        while wrapper := next((prefix for prefix in WRAPPERS if short.startswith(prefix)), None):
            short = short.removeprefix(wrapper)
        if short in cleaned:
            raise InputError(
                f"two tensors are named {short!r} when {' and '.join(WRAPPERS)} are taken away: delete one"
            )
        cleaned[short] = tensor
    return cleaned
