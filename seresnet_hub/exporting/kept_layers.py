"""Find the layers of an exported network that a person names: by path, by prefix, or by pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from seresnet_hub.errors import InputError

SE = ("se", "se_module", "gate")  # what networks call the SE unit of a block, the last one where they are fused


def matching_layers(patterns: Iterable[str], layers: Iterable[str]) -> tuple[str, ...]:
    """Return the layers that any of these name, in their order.

    `layer4.2.conv3` is a layer, `layer1` and `layer3.0.se` are all that lies in them, `layer1.0/` is what the block
    computes itself, its product and sum, and in `*.se.*` the signs are those of file names. SE units may be called as
    in the network that was exported or in the fused one. Errors:
    `InputError` where one names no layer; it says which are meant.
    """
    known = list(dict.fromkeys(layers))
    by_name = {layer: _plain(layer) for layer in known}
    found: set[str] = set()
    for pattern in patterns:
        wanted = _plain(pattern.strip().strip("."))
        named = [
            layer for layer, name in by_name.items()
            if wanted and (f"{name}/" == wanted or f"{name}.".startswith(f"{wanted}.") or fnmatchcase(name, wanted))
        ]  # fmt: skip
        if not named:
            raise InputError(f"keep={pattern}: the network has no such layer{_meant(wanted, by_name.values())}")
        found.update(named)
    return tuple(layer for layer in known if layer in found)


def _plain(path: str) -> str:
    """Return a path in which the SE unit of a block is called `se`; what is inside the unit keeps its name."""
    parts = path.split(".")
    place = next((place for place, part in enumerate(parts) if part in SE), None)
    return path if place is None else ".".join([*parts[:place], SE[0], *parts[place + 1 :]])


def _meant(wanted: str, names: Iterable[str]) -> str:
    paths = [name.split(".") for name in names]
    known = sorted({".".join(parts[:count]) for parts in paths for count in range(1, len(parts) + 1)})
    close: Sequence[str] = get_close_matches(wanted, known, 3)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are: {', '.join(_tops(known))}"


def _tops(names: Iterable[str]) -> list[str]:
    return [name for name in names if "." not in name]
