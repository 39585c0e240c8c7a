"""How the SE units of an exported network are written: as suits the engine that runs it, in one of a few forms."""

from __future__ import annotations

PLAIN = "plain"  # the network as it is, fused or not
INTEGER_PRODUCTS = "integer-products"  # quantised, then `openvino_forms.with_integer_products`

# Shares of ResNet-50's speed in OpenVINO 2026.4, int8, on 2 cores with AVX-512 VNNI, at batch 1 and 16: 0.914 and 0.896
# with the products in integers, 0.885 and 0.777 without. ONNX Runtime's was not measured.
_FASTEST = {("openvino", "int8"): INTEGER_PRODUCTS}


def form_for(format: str, precision: str) -> str:
    """Return the form that was measured to be fastest in the engine of this format, in this precision."""
    return _FASTEST.get((format, precision), PLAIN)
