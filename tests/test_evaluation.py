"""An accuracy must be a count over every image of the split, the same however many processes count."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pytest
import timm
import torch
from conftest import WriteSplit, numbered_picture
from PIL import Image
from torch import nn

import seresnet_hub  # noqa: F401
from seresnet_hub.data import Split, open_split
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation import evaluate

ROWS = [[20, 9], [1], [17]]  # 47 images


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("seresnet20_cifar", num_classes=10)


@pytest.fixture
def split(write_split: WriteSplit) -> Split:
    return open_split(str(write_split(ROWS, split="test")), "test")


def test_counts_equal_a_plain_loop(model: nn.Module, split: Split) -> None:
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    top1 = top5 = 0
    model.eval()
    for number in range(47):
        with torch.no_grad():
            logits = model(transform(Image.open(BytesIO(numbered_picture(number))))[None])[0]
        best = logits.topk(5).indices.tolist()
        top1 += best[0] == number % 10
        top5 += number % 10 in best
    model.train()
    found = evaluate(model, split, batch_size=8, workers=0)
    assert (found.seen, round(found.top1 * 47 / 100), round(found.top5 * 47 / 100)) == (47, top1, top5)
    assert 0 < top1 < top5 < 47, "a model that is always or never right would prove nothing"
    assert model.training
    assert found.images_per_second > 0


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_add_up_to_one_process(model: nn.Module, split: Split, world_size: int) -> None:
    alone = evaluate(model, split, batch_size=16, workers=0)
    counts: list[torch.Tensor] = []

    def last_rank_total(own: torch.Tensor) -> torch.Tensor:
        return torch.stack([*counts, own]).sum(0)

    def keep(own: torch.Tensor) -> torch.Tensor:
        counts.append(own.clone())
        return torch.tensor([0, 0, split.rows])

    for rank in range(world_size):
        total = last_rank_total if rank == world_size - 1 else keep
        shared = evaluate(model, split, batch_size=16, workers=0, rank=rank, world_size=world_size, total=total)
    assert (shared.seen, shared.top1, shared.top5) == (alone.seen, alone.top1, alone.top5)


def test_a_lost_image_is_an_error(model: nn.Module, split: Split) -> None:
    with pytest.raises(RuntimeError, match="46 of the 47 images"):
        evaluate(model, split, workers=0, total=lambda counts: counts - torch.tensor([0, 0, 1]))


def test_other_classes_are_refused(split: Split) -> None:
    with pytest.raises(InputError, match="has 10 classes, the model 7"):
        evaluate(timm.create_model("seresnet20_cifar", num_classes=7), split)
    with pytest.raises(InputError, match="batch size 0"):
        evaluate(timm.create_model("seresnet20_cifar"), split, batch_size=0)
    with pytest.raises(InputError, match="is empty"):
        evaluate(timm.create_model("seresnet20_cifar"), replace(split, unit_rows=()))


def test_damaged_and_half_precision_models(model: nn.Module, split: Split) -> None:
    full = evaluate(model, split, workers=0)
    half = evaluate(model.to(torch.bfloat16), split, workers=0)
    assert abs(half.top5 - full.top5) < 15
    model.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="outputs are not finite"):
        evaluate(model, split, workers=0)
    with pytest.raises(InputError, match="no classifier"):
        evaluate(timm.create_model("seresnet20_cifar", num_classes=0), split)


def test_fewer_than_five_classes_have_a_top5(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[6]], classes=3)), "train")
    found = evaluate(timm.create_model("seresnet20_cifar", num_classes=3), split, workers=0)
    assert found.top5 == 100
