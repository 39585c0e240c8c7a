"""Find the layers that int8 hurts most, and keep as many of them in float as an accuracy asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from seresnet_hub.errors import InputError

PICTURES = 32  # that layers are compared on
BLOCKS = 4  # that are looked at layer by layer
Run = Callable[[Sequence[np.ndarray]], np.ndarray]


class SensitiveLayer(NamedTuple):
    """A layer, and by which share the error of the logits falls when this layer alone goes back to float.

    `gain` is None where it was not measured, as its block as a whole hurts less than others.
    """

    layer: str
    gain: float | None


def sensitive_layers(
    exact: Run, with_float: Callable[[Collection[str]], Run], layers: Sequence[str], inputs: Sequence[np.ndarray]
) -> list[SensitiveLayer]:
    """Return the layers, the one that hurts most first, with the gains of those in the blocks that hurt most.

    `exact` runs the float network, `with_float` makes a run of the int8 one with some layers in float; runs take
    batches and give logits. The error is the mean square of the logits' differences over some of the `inputs`.
    """
    some = [inputs[int(place)] for place in np.linspace(0, len(inputs) - 1, min(len(inputs), PICTURES))]
    right = exact(some)

    def error(kept: Collection[str]) -> float:
        return float(np.mean(np.square(with_float(kept)(some) - right, dtype=np.float64)))

    blocks: dict[str, list[str]] = {}
    for layer in layers:
        blocks.setdefault(_block(layer), []).append(layer)
    whole = error(())

    def gains(groups: Mapping[str, Collection[str]], what: str) -> dict[str, float]:
        progress = tqdm(groups.items(), desc=f"{what} that int8 hurts", leave=False, delay=1.0)
        found = {name: (whole - error(group)) / (whole or 1.0) for name, group in progress}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    of_blocks = gains(blocks, "blocks")
    worst = list(of_blocks)[:BLOCKS]
    of_layers = gains({layer: [layer] for block in worst for layer in blocks[block]}, "layers")
    others = [layer for block in list(of_blocks)[BLOCKS:] for layer in blocks[block]]
    return [SensitiveLayer(*item) for item in of_layers.items()] + [SensitiveLayer(layer, None) for layer in others]


def _block(layer: str) -> str:
    """Return the block that a layer lies in, `layer1.0` of `layer1.0.conv2`; outside of blocks the layer itself."""
    parts = layer.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else layer


def kept_within(
    max_drop: float,
    top1: Callable[[Any], float],
    model: Any,
    quantized: Any,
    quantize: Callable[[Collection[str]], Any],
    ranked: Sequence[str],
) -> tuple[Any, list[str]]:
    """Return an int8 network that loses `max_drop` points of top-1 at most, and the layers it keeps in float.

    Of the layers, `ranked` with the one that hurts most first, it keeps one, two, four and so on, all but one at most;
    then the fewest in between that do. Errors: `InputError` where that is not enough, with the best that was found.
    """
    most = len(ranked) - 1  # with all of them in float nothing would be int8
    before = top1(model)
    drops: dict[int, float] = {}
    networks: dict[int, Any] = {0: quantized}

    def fits(count: int) -> bool:
        networks.setdefault(count, None)
        if networks[count] is None:
            networks[count] = quantize(ranked[:count])
        drops[count] = before - top1(networks[count])
        if drops[count] > max_drop:
            networks[count] = None  # networks are large, and only one that fits is wanted
        return drops[count] <= max_drop

    below, count = -1, 0
    while not fits(count):
        if count >= most:
            best = min(drops, key=lambda tried: drops[tried])
            raise InputError(
                f"--max-drop {max_drop:g}: int8 loses {drops[best]:.2f} points of top-1 at best, with {best} of "
                f"{len(ranked)} layers in float: allow more, or calibrate on pictures like those that are measured"
            )
        below, count = count, min(2 * count or 1, most)
    while count - below > 1:
        middle = (below + count) // 2
        if fits(middle):
            networks.pop(count)
            count = middle
        else:
            below = middle
    return networks[count], list(ranked[:count])
