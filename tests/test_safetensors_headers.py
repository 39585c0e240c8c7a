"""What a safetensors file says of its tensors must be known, and bounded, before any tensor is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seresnet_hub.checkpoints.safetensors_headers import MOST_HEADER_BYTES, read_header
from seresnet_hub.errors import InputError


def test_shapes_and_kinds_are_read(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8,
             torch.bool]  # fmt: skip
    tensors = {str(kind): torch.zeros(2, 3).to(kind) for kind in kinds} | {"scalar": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    expected = {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in tensors.items()}
    assert read_header(tmp_path / "a.safetensors") == expected


@pytest.mark.parametrize("damage", ["cut", "longer", "no header", "empty", "absent"])
def test_damage_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-1], "longer": data + b"x", "no header": b"\xff" * 100, "empty": b""}.get(damage, b"")
    )
    if damage == "absent":
        path.unlink()
    with pytest.raises(InputError, match="a.safetensors is no whole safetensors file"):
        read_header(path)


def test_a_header_larger_than_any_networks_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"tensor{number}": entry for number in range(150_000)}).encode()
    assert len(text) > MOST_HEADER_BYTES
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match="its header has .* bytes, more than any network's"):
        read_header(path)
