"""A file of torch's own format runs without this package, and says what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_fusion import network

from seresnet_hub.engines.export_facts import ExportFacts
from seresnet_hub.errors import InputError
from seresnet_hub.exporting.torch_export_writer import FACTS_FILE, run_torch_export, write_torch_export
from seresnet_hub.exporting.tracing import traced
from seresnet_hub.models.fusion import fuse

FACTS = ExportFacts(
    format="onnx", precision="fp32", architecture="seresnet20_cifar", model="mine", num_classes=10, class_names=None,
    input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), interpolation="bilinear", crop_pct=1.0,
    crop_mode="center", license="mit", sha256=None, tensors_sha256="0" * 64, fused=True, form="plain", batch=None,
    dynamic_size=False, preprocessing=False, version="1",
)  # fmt: skip


def test_the_file_computes_what_the_network_does_and_has_the_facts(tmp_path: Path) -> None:
    model, path = network("seresnet20_cifar", size=32).float(), tmp_path / "model.pt2"
    facts = replace(FACTS, format="torch-export")
    write_torch_export(traced(fuse(model), batch=None, size=(32, 32)), path, facts)
    run, extra = run_torch_export(path), {FACTS_FILE: ""}
    torch.export.load(path, extra_files=extra)
    assert ExportFacts.from_text(json.loads(extra[FACTS_FILE])) == facts
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = model(images)
        torch.testing.assert_close(torch.from_numpy(run(images.numpy())), expected, rtol=1e-4, atol=1e-5)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"PK nothing of the kind")
    with pytest.raises(InputError, match="torch cannot read .*model.pt2"):
        run_torch_export(path)
