"""What an exported file says of itself is read from files of strangers, whatever they hold, in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from seresnet_hub.engines.onnx_contents import onnx_metadata


def test_a_file_of_many_fields_takes_little_memory(tmp_path: Path) -> None:
    path, fields = tmp_path / "model.onnx", 200_000
    path.write_bytes(b"\x08\x0a" * fields + b"\x3a\x00")  # its version again and again, and an empty graph
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            assert onnx_metadata(file) == {}
        assert tracemalloc.get_traced_memory()[1] < fields  # less than a byte for each
    finally:
        tracemalloc.stop()
