"""The layers named as those that int8 hurts most are those, and an accuracy that is asked for is kept or refused."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest

from seresnet_hub.errors import InputError
from seresnet_hub.exporting.sensitive_layers import Run, kept_within, sensitive_layers

HARM = {"conv1": 0.1, **{f"layer1.{k}.conv{n}": 0.01 * (6 * k + n) for k in range(5) for n in (1, 2)}, "fc": 2.0}
INPUTS = [np.full((1, 3), value, np.float32) for value in range(12)]


def exact(inputs: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(inputs))


def with_float(kept: Collection[str]) -> Run:
    """A network whose error is the root of the sum of what layers do that are not kept."""
    error = sum(harm for layer, harm in HARM.items() if layer not in kept) ** 0.5
    return lambda inputs: exact(inputs) + np.float32(error)


def test_the_layers_of_the_worst_blocks_come_first_with_the_share_of_the_error_that_each_makes() -> None:
    found = sensitive_layers(exact, with_float, list(HARM), INPUTS)
    measured = [one for one in found if one.gain is not None]
    whole = sum(HARM.values())
    assert [one.layer for one in measured][:4] == ["fc", "layer1.4.conv2", "layer1.4.conv1", "layer1.3.conv2"]
    assert [one.gain for one in measured] == pytest.approx([HARM[one.layer] / whole for one in measured], rel=1e-3)
    assert sorted(one.layer for one in found) == sorted(HARM)
    assert found[-1].layer.startswith("layer1.0")
    assert found[-1].gain is None


def test_a_network_that_loses_nothing_has_no_layer_that_gains() -> None:
    found = sensitive_layers(exact, lambda kept: exact, ["conv1", "fc"], INPUTS)
    assert [one.gain for one in found] == [0, 0]


def searched(drop_of: Callable[[int], float], max_drop: float, layers: int = 20) -> tuple[object, list[str], list[int]]:
    """Search with networks that are numbers: how many layers each keeps."""
    tried: list[int] = []

    def top1(network: int) -> float:
        tried.append(network)
        return 80.0 if network < 0 else 80.0 - drop_of(network)

    network, kept = kept_within(max_drop, top1, -1, 0, len, [f"layer{k}" for k in range(layers)])
    return network, kept, tried


@pytest.mark.parametrize("needed", range(20))
def test_the_fewest_layers_are_kept_that_keep_the_accuracy(needed: int) -> None:
    network, kept, tried = searched(lambda count: 1.0 if count < needed else 0.4, 0.5)
    assert network == needed
    assert kept == [f"layer{k}" for k in range(needed)]
    assert len(tried) == len(set(tried)) <= 12  # each network is measured once


def test_where_all_layers_but_one_are_not_enough_the_best_is_said() -> None:
    with pytest.raises(InputError, match="--max-drop 0.5: int8 loses 0.90 points .* with 0 of 20 layers"):
        searched(lambda count: 0.9 if count < 20 else 0.0, 0.5)
    with pytest.raises(InputError, match="--max-drop 0.5: int8 loses 0.70 points .* with 4 of 20 layers"):
        searched(lambda count: 0.7 if count == 4 else 0.9, 0.5)
