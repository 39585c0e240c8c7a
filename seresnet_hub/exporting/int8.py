"""Quantise an exported network to int8: which layers stay in float, which hurt most, and what the record says of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seresnet_hub.errors import InputError
from seresnet_hub.exporting.calibration_pictures import CalibrationPictures
from seresnet_hub.exporting.forms import INTEGER_PRODUCTS, PLAIN
from seresnet_hub.exporting.int8_onnx import int8_layers_onnx, quantized_onnx, run_of_onnx, with_float_layers_onnx
from seresnet_hub.exporting.int8_openvino import (
    int8_layers_openvino,
    quantized_openvino,
    run_of_openvino,
    with_float_layers_openvino,
)  # fmt: skip
from seresnet_hub.exporting.kept_layers import matching_layers, unit_of, with_own_operations
from seresnet_hub.exporting.openvino_forms import has_integer_products, with_integer_products
from seresnet_hub.exporting.sensitive_layers import Run, kept_within, sensitive_layers

NAMED = 5  # of the layers that hurt most, in the record
Top1 = Callable[[Any], float]


@dataclass(frozen=True, kw_only=True)
class Int8Network:
    """An int8 network, as `openvino.Model` or `onnx.ModelProto`, and what the record of its export says of it.

    `form` is how its SE units are written: plain where the form that was asked for changes none.
    """

    model: Any
    form: str
    record: dict[str, Any]


def to_int8(
    format: str,
    model: Any,
    pictures: CalibrationPictures,
    *,
    layers: Mapping[str, str],
    form: str = PLAIN,
    keep: Sequence[str] = (),
    max_drop: float | None = None,
    top1: Top1 | None = None,
) -> Int8Network:
    """Return the int8 form of a float network; `model` is not changed.

    `layers` says which layer each node of the graph, by its name, is of. `keep` names layers that stay in float (see
    `matching_layers`). With `max_drop`, in points of top-1 accuracy, those that hurt most stay in float too, as many as
    are needed; `top1` measures the accuracy, in percent, of a network like `model`. `form` is how SE units are to be
    written. Errors: `InputError` where `keep` names no layer, the network cannot be quantised, no layer would be int8,
    or the accuracy cannot be kept.
    """
    quantize, in_float, int8_layers, run_of = _OF_FORMAT[format]
    layers = with_own_operations(layers)
    kept = matching_layers(keep, layers.values())

    def quantized(more: Collection[str] = ()) -> Any:
        more = matching_layers(more, layers.values())
        network = quantize(model, pictures.inputs, keep={*kept, *more}, layers=layers)
        if not int8_layers(network, layers=layers):
            raise InputError("every layer stays in float, so nothing is int8: export in fp32, or keep fewer layers")
        return network

    def in_its_form(network: Any) -> Any:
        return with_integer_products(network) if form == INTEGER_PRODUCTS else network

    def run_with_float(some: Collection[str]) -> Run:
        return run_of(in_float(first, model, matching_layers(some, layers.values()), layers=layers))

    first = quantized()
    units = list(dict.fromkeys(map(unit_of, int8_layers(first, layers=layers))))
    ranked = sensitive_layers(run_of(model), run_with_float, units, pictures.inputs)
    result = first
    found: list[str] = []
    if max_drop is not None:
        assert top1 is not None
        measured = top1
        result, found = kept_within(
            max_drop, lambda one: measured(in_its_form(one)), model, first, quantized, [one.layer for one in ranked]
        )
    int8 = int8_layers(result, layers=layers)
    result = in_its_form(result)
    changed = form == INTEGER_PRODUCTS and has_integer_products(result)
    record = {
        "calibration": pictures.record(), "keep": list(keep), "kept_for_accuracy": found,
        "int8_layers": len(int8),
        "sensitive": [{"layer": one.layer, "gain": round(one.gain, 4)} for one in ranked[:NAMED] if one.gain],
    }  # fmt: skip
    return Int8Network(model=result, form=form if changed else PLAIN, record=record)


_OF_FORMAT: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., list[str]], Callable[[Any], Run]]] = {
    "onnx": (quantized_onnx, with_float_layers_onnx, int8_layers_onnx, run_of_onnx),
    "openvino": (quantized_openvino, with_float_layers_openvino, int8_layers_openvino, run_of_openvino),
}
