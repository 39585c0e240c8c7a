"""Rewrite a quantised OpenVINO network so that the map that a gate scales stays in integers on its way to the product.

OpenVINO's low-precision transformations may give the product of two quantised maps one input in integers; the other is
dequantised where it is made. When both come from a `FakeQuantize`, they dequantise the one behind a convolution: the
wide map, which the convolution then writes in float32, four times the bytes. With any other operation between the
convolution and the `FakeQuantize` they dequantise the smaller map instead, the gate. That operation is a `Clamp` here,
to a range a quarter of a step inside the quantiser's own: what it changes would be rounded to the same level.
"""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTIZER = "FakeQuantize"
INSIDE = "/inside"  # ends the names of the operations that are put before quantisers


def with_integer_products(quantized: Any) -> Any:
    """Return an int8 `openvino.Model` that computes the same, with the products of gates and maps in integers.

    Such a product is of a map `(batch, channels, height, width)` and a gate `(batch, channels, 1, 1)`, both quantised,
    the map with signed values and one range. Others stay as they are. `quantized` is not changed.
    """
    model = quantized.clone()
    for node in model.get_ordered_ops():
        product = _product(node)
        if product is not None:
            _keep_integers(node, *product)
    model.validate_nodes_and_infer_types()
    return model


def has_integer_products(model: Any) -> bool:
    """Return whether `with_integer_products` rewrote any product of this network."""
    return any(node.get_friendly_name().endswith(INSIDE) for node in model.get_ops())


def _product(node: Any) -> tuple[Any, Any] | None:
    """Return the quantisers of the map and of the gate that a node multiplies, or None."""
    if node.get_type_name() != "Multiply":
        return None
    quantizers = [value.get_node() for value in node.input_values()]
    gates = [_is_gate(value.get_partial_shape()) for value in node.input_values()]
    if any(one.get_type_name() != QUANTIZER for one in quantizers) or sorted(gates) != [False, True]:
        return None
    wide, gate = quantizers if gates[1] else reversed(quantizers)
    (low, high), (gate_low, _) = _range(wide), _range(gate)
    if low is None or high is None or gate_low is None or not low < 0 < high or gate_low < 0:
        return None  # the engine takes a signed map and an unsigned gate
    return wide, gate


def _is_gate(shape: Any) -> bool:
    return shape.rank.is_static and len(shape) == 4 and all(side.is_static and len(side) == 1 for side in shape[2:])


def _range(quantizer: Any) -> tuple[float | None, float | None]:
    """Return the lowest and highest value of a quantiser with one range for the whole map, which it keeps as it is."""
    bounds = [value.get_node() for value in quantizer.input_values()[1:]]
    if any(bound.get_type_name() != "Constant" for bound in bounds):
        return None, None
    low, high, out_low, out_high = (np.unique(bound.data) for bound in bounds)
    if len(low) != 1 or len(high) != 1 or not np.array_equal(low, out_low) or not np.array_equal(high, out_high):
        return None, None
    return float(low[0]), float(high[0])


def _keep_integers(node: Any, wide: Any, gate: Any) -> None:
    from openvino import opset13

    low, high = _range(wide)
    assert low is not None
    assert high is not None
    margin = (high - low) / (wide.get_attributes()["levels"] - 1) / 4
    clamp = opset13.clamp(wide.input_value(0), low + margin, high - margin)
    clamp.set_friendly_name(f"{wide.get_friendly_name()}{INSIDE}")
    wide.input(0).replace_source_output(clamp.output(0))
    # The engine's product takes unsigned integers first and signed ones second.
    product = opset13.multiply(gate.output(0), wide.output(0))
    product.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(product.output(0))
