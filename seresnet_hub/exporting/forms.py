"""How the SE units of an exported network are written: as suits the engine that runs it, in one of a few forms."""

from __future__ import annotations

PLAIN = "plain"  # the network as it is, fused or not
INTEGER_PRODUCTS = "integer-products"  # quantised, then `openvino_forms.with_integer_products`

# Measured on 2 cores of a CPU with AVX-512 VNNI and BF16 (OpenVINO 2026.4, ONNX Runtime 1.32), as shares of ResNet-50's
# speed. int8 in OpenVINO at batch 1 and 16: 0.91 and 0.90 with the products in integers, 0.88 and 0.78 without.
_FASTEST = {("openvino", "int8"): INTEGER_PRODUCTS}


def form_for(format: str, precision: str) -> str:
    """Return the form that was measured to be fastest in the engine of this format, in this precision."""
    return _FASTEST.get((format, precision), PLAIN)
