"""What is said of each image must be what the model says of it, whatever batches and processes it went through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.special import log_softmax, softmax
from test_evaluate import plain_logits, split  # noqa: F401  # a fixture
from torch import nn

from seresnet_hub.data.split import Split
from seresnet_hub.evaluation import image_records
from seresnet_hub.evaluation.evaluate import Accuracy, evaluate
from seresnet_hub.evaluation.image_records import ImageRecords


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("seresnet20_cifar", num_classes=10)


def require(records: ImageRecords | None, logits: np.ndarray) -> None:
    assert records is not None
    labels = np.arange(47) % 10
    assert records.rows.tolist() == list(range(47))
    assert np.array_equal(records.labels, labels)
    assert np.array_equal(records.classes, np.argsort(-logits, axis=1)[:, :5])
    assert records.scores == pytest.approx(-np.sort(-softmax(logits, axis=1))[:, :5], rel=1e-4)
    assert records.losses == pytest.approx(-log_softmax(logits, axis=1)[np.arange(47), labels], rel=1e-4)
    types = [getattr(records, name).dtype.name for name in ("rows", "labels", "classes", "scores", "losses", "logits")]
    assert types == ["int64", "int64", "int32", "float32", "float32", "float32"]


def test_records_are_those_of_one_pass_each(model: nn.Module, split: Split) -> None:  # noqa: F811
    logits = plain_logits(model, 47)
    for workers, batch_size in ((0, 8), (2, 13)):
        found = evaluate(model, split, batch_size=batch_size, workers=workers, records=True)
        require(found.records, logits)
        assert found.records is not None
        assert found.records.logits == pytest.approx(logits, abs=1e-4)
        assert found.records.logit_rows.tolist() == list(range(47))
    assert evaluate(model, split, workers=0).records is None


def test_an_even_part_of_the_logits_is_kept(
    model: nn.Module, split: Split, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(image_records, "MOST_LOGITS", 160)  # of 470
    logits = plain_logits(model, 47)
    found = evaluate(model, split, batch_size=8, workers=0, records=True)
    require(found.records, logits)
    assert found.records is not None
    assert found.records.logit_rows.tolist() == list(range(0, 47, 3))
    assert found.records.logits == pytest.approx(logits[::3], abs=1e-4)


def ranks(model: nn.Module, split: Split, world_size: int) -> Accuracy:  # noqa: F811
    """What the last of several ranks returns; what the others would have gathered is given to it."""
    given: list[list[Any]] = [[] for _ in range(world_size)]

    def gather_of(rank: int) -> Any:
        def gather(value: Any) -> list[Any]:
            given[rank].append(value)
            call = len(given[rank]) - 1
            return [given[k][call] if call < len(given[k]) else value for k in range(world_size)]

        return gather

    sums: list[list[torch.Tensor]] = [[] for _ in range(world_size)]

    def total_of(rank: int) -> Any:
        def total(own: torch.Tensor) -> torch.Tensor:
            sums[rank].append(own.clone())
            call = len(sums[rank]) - 1
            if rank == world_size - 1:
                return torch.stack([tensors[call] for tensors in sums]).sum(0)
            return own if call else torch.tensor([0, 0, split.rows, split.rows, 0])

        return total

    for rank in range(world_size):
        found = evaluate(
            model, split, batch_size=8, workers=0, rank=rank, world_size=world_size, total=total_of(rank),
            gather=gather_of(rank), records=True,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_records_are_the_same_bits_for_any_number_of_processes(
    model: nn.Module, split: Split, world_size: int  # noqa: F811
) -> None:  # fmt: skip
    """Eight processes for six batches: two have none."""
    alone = evaluate(model, split, batch_size=8, workers=0, records=True).records
    shared = ranks(model, split, world_size).records
    assert alone is not None
    assert shared is not None
    for name in ("rows", "labels", "classes", "scores", "losses", "logits", "logit_rows"):
        assert np.array_equal(getattr(alone, name), getattr(shared, name)), name
    with pytest.raises(ValueError, match="need `gather`"):
        evaluate(model, split, world_size=2, records=True)
