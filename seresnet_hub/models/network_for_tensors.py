"""Make timm's networks over given tensors: which network, whether the tensors are its own, and the two put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import nn

from seresnet_hub.checkpoints.renaming import differences
from seresnet_hub.errors import InputError, message_of
from seresnet_hub.models.build_limits import ExcessError

Build = Callable[..., nn.Module]  # takes `pretrained` and timm's arguments
Tensors = Mapping[str, torch.Tensor]


def builder(name: str, origin: object, **always: Any) -> Build:
    """Return what makes timm's model `name` with the arguments `always`; `origin` is how its errors call the model."""

    def build(**given: Any) -> nn.Module:
        try:
            model: nn.Module = timm.create_model(name, **always, **given)
        except InputError:
            raise
        except Exception as error:  # timm, safetensors and torch each raise their own, or assert
            raise InputError(f"cannot create model {str(origin)!r}: {message_of(error)}") from error
        return model

    return build


def without_memory(build: Build, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the network on the meta device, or for real where timm cannot make it there."""
    try:
        with torch.device("meta"):
            return build(pretrained=False, **kwargs)
    except ExcessError:
        raise
    except InputError:
        return build(pretrained=False, **kwargs)


def require_fit(tensors: Tensors, network: nn.Module, name: str) -> None:
    """Raise `InputError` unless the tensors are exactly those of the network, by name and shape."""
    if problem := differences(tensors, network.state_dict()):
        raise InputError(f"the tensors do not fit {name}: {problem}")


def over_tensors(tensors: Tensors, empty: nn.Module, build: Build) -> nn.Module:
    """Return the network over the tensors, in eval mode: it shares them, of whatever types they are.

    `empty` is the network without memory, and `build` makes it for real: where it has constants that no file has, such
    as a blur kernel.
    """
    in_files = empty.state_dict().keys()
    constants = (buffer for name, buffer in empty.named_buffers() if name not in in_files)
    network = build(pretrained=False) if any(buffer.is_meta for buffer in constants) else empty
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()
