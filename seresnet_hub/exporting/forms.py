"""How the SE units of an exported network are written: as suits the engine that runs it, in one of a few forms."""

from __future__ import annotations

from torch import nn

PLAIN = "plain"  # the network as it is, fused or not


def form_for(format: str, precision: str) -> str:
    """Return the form that was measured to be fastest in the engine of this format, in this precision."""
    return PLAIN


def in_form(network: nn.Module, form: str) -> nn.Module:
    """Return the network with its SE units written in this form; it computes the same."""
    return network
