"""Exports are written in the form that was measured to be fastest in their engine, and compute the same in each."""

from __future__ import annotations

from seresnet_hub.engines.export_facts import FORMATS, PRECISIONS
from seresnet_hub.exporting.forms import INTEGER_PRODUCTS, PLAIN, form_for


def test_every_engine_and_precision_has_a_form() -> None:
    forms = {(one, precision): form_for(one, precision) for one in FORMATS for precision in PRECISIONS}
    assert forms.pop(("openvino", "int8")) == INTEGER_PRODUCTS
    assert set(forms.values()) == {PLAIN}
