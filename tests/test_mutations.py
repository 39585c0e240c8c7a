"""Files that are nearly right must end in an exact conversion or in a clear refusal, whatever is wrong with them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from references import networks

from seresnet_hub.checkpoints.reader import read_checkpoint
from seresnet_hub.conversion.convert import convert
from seresnet_hub.conversion.run_in_float64 import float64_outputs
from seresnet_hub.errors import InputError

pytest.importorskip("hypothesis", reason="hypothesis is not installed (pip install '.[test]')")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def outcome(act: Callable[[], Any]) -> tuple[Any, InputError | None]:
    """Return what `act` returns, or why it refuses; any other exception is a bug."""
    try:
        return act(), None
    except InputError as error:
        return None, error


@pytest.fixture(scope="module")
def whole_files() -> tuple[bytes, bytes]:
    """One checkpoint in both of PyTorch's formats.

    Written once: the older format names tensors by their address, so its length differs from one writing to the
    next, and Hypothesis must find the same length each time it runs an example again.
    """
    files = []
    for zipped in (False, True):
        buffer = io.BytesIO()
        state = {"state_dict": {"w": torch.ones(3), "b": torch.zeros(2)}, "epoch": 1}
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        files.append(buffer.getvalue())
    return files[0], files[1]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(
    tmp_path: Path, whole_files: tuple[bytes, bytes], data: st.DataObject
) -> None:
    """Protects from crashes: any bytes end in tensors or in InputError."""
    content = bytearray(data.draw(st.sampled_from(whole_files)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    tensors, error = outcome(lambda: read_checkpoint(path).tensors)
    assert "a.pth" in str(error) if error else all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


BATCH = torch.rand(1, 3, 33, 41, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def good() -> dict[str, torch.Tensor]:
    """The state dict of a good checkpoint."""
    return networks.randomise(networks.mmpretrain((1, 1, 1, 1), bottleneck=False, classes=3)).checkpoint("backbone.")


def mutated(state: dict[str, torch.Tensor], data: st.DataObject) -> dict[str, torch.Tensor]:
    """Return a copy of a state dict with one to three tensors dropped, renamed, reshaped, retyped or doubled."""
    changed = dict(state)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(changed)))
        tensor = changed[name]
        kind = data.draw(
            st.sampled_from(["drop", "rename", "prefix", "swap", "flatten", "grow", "cut", "double", "type", "shuffle"])
        )
        if kind == "drop":
            del changed[name]
        elif kind == "rename":
            at = data.draw(st.integers(0, len(name) - 1))
            changed[name[:at] + data.draw(st.sampled_from("x0.9_")) + name[at + 1 :]] = changed.pop(name)
        elif kind == "prefix":
            changed[data.draw(st.sampled_from(["module.", "_orig_mod.", "ema_", "x."])) + name] = changed.pop(name)
        elif kind == "swap":
            other = data.draw(st.sampled_from(sorted(changed)))
            changed[name], changed[other] = changed[other], changed[name]
        elif kind == "flatten":
            changed[name] = tensor.reshape(-1)
        elif kind == "grow":
            changed[name] = tensor[None]
        elif kind == "cut" and tensor.ndim:
            changed[name] = tensor[: tensor.shape[0] // 2]
        elif kind == "double":
            changed[data.draw(st.sampled_from(["backbone.", "copy.", "module.", "head."])) + name] = tensor.clone()
        elif kind == "type":
            changed[name] = tensor.to(data.draw(st.sampled_from([torch.float64, torch.int64, torch.float16])))
        elif kind == "shuffle":
            changed = {key: changed[key] for key in data.draw(st.permutations(sorted(changed)))}
    return changed


def check_mutation(data: st.DataObject, folder: Path, good: dict[str, torch.Tensor]) -> None:
    changed = mutated(good, data)
    path, output = folder / "a.pth", folder / "out"
    torch.save({"state_dict": changed}, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    # The proof would refuse many a mutation; without it the strict checks alone must hold.
    result, error = outcome(lambda: convert(path, output, force=True, verify=False))
    if error:
        assert "\n" not in str(error)
        assert len(str(error)) > 20
        return
    # Accepted: every tensor of the source that was used is in the folder unchanged, and those left out are named.
    model = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
    features, logits = float64_outputs(model, BATCH)
    used = {name.removeprefix("module.").removeprefix("_orig_mod."): t for name, t in changed.items()}
    reference = networks.mmpretrain((1, 1, 1, 1), bottleneck=False, classes=3)
    wanted = reference.checkpoint("backbone.")
    lacking = [n for n in wanted if n not in used and not n.endswith("num_batches_tracked")]
    backbone_only = lacking and all(n.startswith("head.") for n in lacking)
    assert not lacking or backbone_only, lacking
    assert sorted(result["dropped"]) == sorted(n for n in used if n.startswith("ema_"))
    reference.load({n: used[n] for n in wanted if n in used}, "backbone.")
    with torch.no_grad():
        expected = reference.eval().double()(BATCH.double())
    for found, source in zip(features, reference.features, strict=True):
        assert (found - source).abs().max() <= 1e-10 * max(1.0, float(source.abs().max()))
    if not backbone_only:
        assert (logits - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutations_end_in_an_exact_conversion_or_a_refusal(
    data: st.DataObject, tmp_path_factory: Any, good: Any
) -> None:
    """Protects from files that are nearly right: either what they say is converted exactly, or they are refused."""
    check_mutation(data, tmp_path_factory.getbasetemp(), good)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_thousand_mutations(data: st.DataObject, tmp_path_factory: Any, good: Any) -> None:
    """Protects as the test above, on many more files."""
    check_mutation(data, tmp_path_factory.getbasetemp(), good)
