"""Whoever keeps layers in float names them as the network calls them; a name that means nothing is refused."""

import pytest

from seresnet_hub.errors import InputError
from seresnet_hub.exporting.kept_layers import matching_layers, unit_of, with_own_operations

LAYERS = ("conv1", "layer1.0.sum", "layer1.0.conv1", "layer1.0.conv3", "layer1.0.gate", "layer1.0.gate.fc1",
          "layer1.0.gate.gate", "layer10.0.conv1", "fc")  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("layer1.0.conv3", ("layer1.0.conv3",)),
        ("layer1", LAYERS[1:7]),
        ("layer1.0.sum", ("layer1.0.sum",)),
        ("layer1.0.se", ("layer1.0.gate", "layer1.0.gate.fc1", "layer1.0.gate.gate")),
        ("layer1.0.se_module.fc1", ("layer1.0.gate.fc1",)),
        ("layer1.0.se.gate", ("layer1.0.gate.gate",)),
        ("*.conv1", ("layer1.0.conv1", "layer10.0.conv1")),
    ],
)
def test_a_path_a_prefix_or_a_pattern_names_layers(pattern: str, layers: tuple[str, ...]) -> None:
    assert matching_layers([pattern], LAYERS) == layers


def test_several_name_each_layer_once_in_the_network_s_order() -> None:
    assert matching_layers(["fc", "conv1", "f*"], LAYERS) == ("conv1", "fc")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("layer1.0.conv4", "did you mean .*layer1.0.conv3"),
        ("head", "there are: conv1, fc, layer1"),
        ("", "no"),
    ],
)
def test_a_name_of_no_layer_is_refused_with_those_that_there_are(pattern: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        matching_layers([pattern], LAYERS)


@pytest.mark.parametrize(("se", "product"), [("gate", "Mul"), ("se_module", "Multiply")])
def test_what_a_block_computes_itself_has_a_name_that_keep_takes(se: str, product: str) -> None:
    graph = {
        f"layer1.0.{se}/ReduceMean": f"layer1.0.{se}", f"layer1.0.{se}.fc1/Conv": f"layer1.0.{se}.fc1",
        f"layer1.0/{product}_1": "layer1.0", "layer1.0/Add": "layer1.0", "fc/MatMul": "fc",
    }  # fmt: skip
    layers = with_own_operations(graph)
    assert layers == graph | {f"layer1.0/{product}_1": f"layer1.0.{se}", "layer1.0/Add": "layer1.0.sum"}
    assert [unit_of(layer) for layer in layers.values()] == ["layer1.0.se"] * 3 + ["layer1.0.sum", "fc"]
    for unit in map(unit_of, layers.values()):
        assert set(matching_layers([unit], layers.values())) == {one for one in layers.values() if unit_of(one) == unit}
