"""Read checkpoint files of other code bases without running anything in them, and map their tensor names to timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from seresnet_hub.errors import InputError

# mmpretrain and mmcls; one rule per place where their names differ from timm's (modules are otherwise named alike).
MMPRETRAIN_RULES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.(.+)\.se_layer\.conv([12])\.conv\.(weight|bias)$", r"\1.se.fc\2.\3"),
    (r"^backbone\.((?:conv1|bn1|layer\d+\.\d+\.(?:conv\d|bn\d|downsample\.\d))\.\w+)$", r"\1"),
    (r"^head\.fc\.(weight|bias)$", r"fc.\1"),
)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's state dict, on the CPU; nothing in the file is executed.

    Errors: `InputError` where the file is missing, damaged, no checkpoint, or would have to run code to be read.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # a damaged or hostile pickle fails in as many ways as there are bytes
        raise InputError(f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]})") from error
    state_dict = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise InputError(f"{path} holds no state dict")
    foreign = [str(name) for name, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if foreign:
        raise InputError(f"{path}: {foreign[0]!r} is no tensor (and {len(foreign) - 1} more)")
    return dict(state_dict)


def from_mmpretrain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return mmpretrain's or mmcls's SEResNet tensors under timm's names, unchanged.

    Errors: `InputError` names a tensor that no rule knows, or two that would get one name.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        matches = (re.sub(pattern, target, name) for pattern, target in MMPRETRAIN_RULES if re.match(pattern, name))
        target = next(matches, None)
        if target is None:
            raise InputError(f"unmapped tensor {name!r}: this is not an SE-ResNet of mmpretrain or mmcls")
        if target in renamed:
            raise InputError(f"tensor {name!r} and another would both become {target!r}")
        renamed[target] = tensor
    return renamed
