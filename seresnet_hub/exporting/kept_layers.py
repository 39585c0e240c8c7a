"""Find the layers of an exported network that a person names: by path, by prefix, or by pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from seresnet_hub.errors import InputError

SE = ("se", "se_module", "gate")  # what networks call the SE unit of a block, the last one where they are fused
SUM = "sum"  # what a block computes itself
PRODUCTS = ("Mul", "Multiply")  # as ONNX and OpenVINO call it


def matching_layers(patterns: Iterable[str], layers: Iterable[str]) -> tuple[str, ...]:
    """Return the layers that any of these name, in their order.

    `layers` are those of `with_own_operations`. `layer4.2.conv3` is a layer, `layer1` and `layer3.0.se` are all that
    lies in them, and in `*.se.*` the signs are those of file names. SE units may be called as in the network that was
    exported or in the fused one. Errors: `InputError` where one names no layer; it says which are meant.
    """
    known = list(dict.fromkeys(layers))
    by_name = {layer: plain_name(layer) for layer in known}
    found: set[str] = set()
    for pattern in patterns:
        wanted = plain_name(pattern.strip().strip("."))
        named = [
            layer for layer, name in by_name.items()
            if wanted and (f"{name}.".startswith(f"{wanted}.") or fnmatchcase(name, wanted))
        ]  # fmt: skip
        if not named:
            raise InputError(f"keep={pattern}: the network has no such layer{_meant(wanted, by_name.values())}")
        found.update(named)
    return tuple(layer for layer in known if layer in found)


def with_own_operations(layers: Mapping[str, str]) -> dict[str, str]:
    """Return the layer of each node of a graph, by the node's name, with names for what a block computes itself.

    The product with the gate is of the SE unit, as `layer1.0.se`, and the rest is `layer1.0.sum`.
    """
    inner = {layer.rpartition(".")[0] for layer in layers.values()}
    known = {*layers.values(), *inner}

    def named(node: str, layer: str) -> str:
        if layer not in inner or layer.rpartition(".")[2] in SE:
            return layer
        unit = next((f"{layer}.{name}" for name in SE if f"{layer}.{name}" in known), None)
        is_product = node.rpartition("/")[2].split("_")[0] in PRODUCTS
        return unit if unit is not None and is_product else f"{layer}.{SUM}"

    return {node: named(node, layer) for node, layer in layers.items()}


def unit_of(layer: str) -> str:
    """Return what a layer is ranked with: the SE unit it lies in, as `layer1.0.se`, else the layer alone."""
    parts = plain_name(layer).split(".")
    return ".".join(parts[: parts.index(SE[0]) + 1]) if SE[0] in parts else layer


def plain_name(path: str) -> str:
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
