"""The limits of the reader must be far above what real checkpoints need, and each must hold."""

from __future__ import annotations

import io
import pickletools
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_bytes import as_zip, storage, tensor, text
from checkpoint_seeds import pickle_in
from safetensors.torch import save

from seresnet_hub.checkpoints import reading_budget
from seresnet_hub.checkpoints.reader import read_checkpoint
from seresnet_hub.checkpoints.reading_budget import BUDGET, Account, Refused
from seresnet_hub.errors import InputError

ROOM = 4  # how many times more than a large checkpoint needs


def test_a_large_checkpoint_fits_many_times() -> None:
    """Protects the files that people have: a SENet-154 with AdamW's state and an average takes a fraction of all."""
    with torch.device("meta"):
        network = timm.create_model("legacy_senet154")
    state = {name: torch.zeros(1) for name in network.state_dict()}
    names = [name for name, _ in network.named_parameters()]
    moments = {
        k: {"step": torch.zeros(1), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)} for k in range(len(names))
    }
    groups = [{"lr": 0.1, "betas": (0.9, 0.999), "params": list(range(len(names)))}]
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": state, "state_dict_ema": {name: torch.ones(1) for name in state},
         "optimizer": {"state": moments, "param_groups": groups}}, buffer,
    )  # fmt: skip
    pickled = pickle_in(buffer.getvalue())
    with zipfile.ZipFile(buffer) as archive:
        assert ROOM * len(archive.namelist()) < BUDGET.members
    assert ROOM * sum(1 for _ in pickletools.genops(pickled)) < BUDGET.instructions
    assert ROOM * len(state) < BUDGET.tensors
    assert ROOM * len(pickled) < BUDGET.pickle_bytes
    assert ROOM * len(names) < BUDGET.number_keys
    header = save(state)
    size = int.from_bytes(header[:8], "little")
    assert ROOM * size < BUDGET.header_bytes
    assert ROOM * sum(header[: 8 + size].count(sign) for sign in (b"{", b"[", b",")) < BUDGET.header_parts


def test_a_long_history_is_read(tmp_path: Path) -> None:
    """Protects runs of 90 epochs of ImageNet that keep two values of each step, one of them by its number."""
    steps = 90 * 5_004
    path = tmp_path / "a.pth"
    history = {"loss": [k / 7 for k in range(steps)], "rate": {k: 0.1 + k / steps for k in range(steps)}}
    torch.save({"state_dict": {"w": torch.ones(2)}, "history": history}, path)
    assert read_checkpoint(path).entries["history"] == history


def test_each_limit_holds() -> None:
    """Protects the account: it pays to the last, then refuses with the limit's number and a way out."""
    size = 1000
    for what in reading_budget.WORDS:
        account = Account(size)
        account.spend(what, account.left(what))
        with pytest.raises(Refused, match=r"\d.*which no checkpoint needs.*safetensors"):
            account.spend(what, 1)
    assert {field.name for field in fields(BUDGET)} >= reading_budget.WORDS.keys() - {"encoded", "copied", "shared"}


def test_small_tensors_of_one_storage_are_not_copied_with_it(tmp_path: Path) -> None:
    """Protects memory: out of alignment, a tensor's own values are copied and not the storage that it looks at."""
    payload = b"\x80\x02}" + text("w") + tensor(storage("0", 1000), (2, 3), (1, 300), 7) + b"s."
    values = torch.arange(1000.0)
    for pad in range(5):
        content = as_zip(payload, {"data/" + "p" * (pad + 1): b"", "data/0": values.numpy().tobytes()})
        (tmp_path / "a.pth").write_bytes(content)
        found = read_checkpoint(tmp_path / "a.pth").tensors["w"]
        assert torch.equal(found, values.as_strided((2, 3), (1, 300), 7))
        assert found.untyped_storage().nbytes() in (24, len(content))


def test_finite_values_whose_sum_is_not_are_read(tmp_path: Path) -> None:
    """Protects half-precision weights from being taken for infinite, and infinite ones from passing."""
    halves = torch.full((4096,), 60_000.0).half()
    torch.save({"w": halves}, tmp_path / "a.pth")
    assert torch.equal(read_checkpoint(tmp_path / "a.pth").tensors["w"], halves)
    for bad in (float("inf"), float("-inf"), float("nan")):
        halves[17] = bad
        torch.save({"w": halves}, tmp_path / "a.pth")
        with pytest.raises(InputError, match="NaN or infinite"):
            read_checkpoint(tmp_path / "a.pth")
