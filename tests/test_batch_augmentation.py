"""What the device does to a batch must be what timm would do, and depend on the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.data.loader import PrefetchLoader
from timm.data.mixup import FastCollateMixup
from torch.utils._python_dispatch import TorchDispatchMode

from seresnet_hub.data import batch_augmentation as device
from seresnet_hub.data.batch_augmentation import Mixer, finish, on_device
from seresnet_hub.data.loader import Batch
from seresnet_hub.data.transforms import normalize, seeded
from seresnet_hub.recipes.recipe import get_recipe

CPU = torch.device("cpu")
STATISTICS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    mirror = torch.tensor([True, False, True, False, False, False])
    return Batch(images, torch.arange(6), torch.ones(6, dtype=torch.bool), 6, mirror, torch.arange(6), True, 0)


def test_images_are_mirrored_where_asked_for_and_normalised(batch: Batch) -> None:
    plain = normalize(batch.images, **STATISTICS)
    finished = finish(batch, **STATISTICS)
    assert finished.is_contiguous(memory_format=torch.channels_last)
    for k, mirrored in enumerate(batch.mirror.tolist()):
        assert torch.equal(finished[k], plain[k].flip(-1) if mirrored else plain[k])


class Passes(TorchDispatchMode):
    """Note each operation that reads or writes as many float32 values as `values`."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values, self.noted = values, []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        if any(tensor.numel() == self.values and tensor.dtype == torch.float32 for tensor in tensors):
            self.noted.append(str(function))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_few_passes_give_the_bits_of_many(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Every byte in every channel, as it is when floats are made first and mirrored last."""
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4, 3, 16, 16)
    images = bytes_.contiguous(memory_format=layout)
    mirror = torch.tensor([True, False, False, True])
    four = torch.arange(4)
    batch = Batch(images, four, torch.ones(4, dtype=torch.bool), 4, mirror, four, True, 0)
    mean, std = (torch.tensor(STATISTICS[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    floats = ((images.float() / 255 - mean) / std).to(dtype)
    expected = torch.where(mirror.view(4, 1, 1, 1), floats.flip(-1), floats)
    finish(batch, **STATISTICS)
    with Passes(images.numel()) as passes:
        finished = finish(batch, **STATISTICS, dtype=dtype)
    assert torch.equal(finished, expected)
    assert torch.equal(images, bytes_), "the batch is the loader's"
    assert finished.is_contiguous(memory_format=torch.channels_last)
    print(f"{len(passes.noted)} passes over floats:", *passes.noted)
    assert len(passes.noted) == (3 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("changes", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0, "erasing": 0.9}])
def test_mixing_depends_on_the_seed_and_keeps_probabilities(batch: Batch, changes: dict[str, float]) -> None:
    mixer = Mixer(replace(get_recipe("digits"), label_smoothing=0.1, **changes), 10, CPU)

    def mixed(*seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return mixer(finish(batch, **STATISTICS), batch.labels, batch.mask, *seed)

    images, targets = mixed(0, 1)
    assert targets.shape == (6, 10)
    assert torch.allclose(targets.sum(dim=1), torch.ones(6))
    assert all(torch.equal(a, b) for a, b in zip(mixed(0, 1), (images, targets), strict=True))
    assert any(not torch.equal(mixed(0, k)[0], images) for k in range(2, 6))
    assert any(not torch.equal(mixed(0, k)[0], finish(batch, **STATISTICS)) for k in range(5))


def test_rows_that_do_not_count_are_mixed_into_no_others(batch: Batch) -> None:
    """Row 4 is lost: row 1, its partner, stays as it is, and all other pairs are mixed as ever."""
    mixer = Mixer(replace(get_recipe("digits"), mixup=0.8, label_smoothing=0.1), 10, CPU)
    plain, mask = finish(batch, **STATISTICS), batch.mask.index_fill(0, torch.tensor(4), False)
    whole, whole_targets = mixer(plain.clone(), batch.labels, batch.mask, 0)
    known, known_targets = mixer(plain.clone(), batch.labels, True, 0)
    assert torch.equal(known, whole)
    assert torch.equal(known_targets, whole_targets)
    images, targets = mixer(plain.clone(), batch.labels, mask, 0)
    assert torch.equal(images[1], plain[1])
    assert torch.allclose(targets[1], torch.full((10,), 0.01).index_fill(0, torch.tensor(1), 0.91))
    for k in (0, 2, 3, 5):
        assert torch.equal(images[k], whole[k])
        assert torch.equal(targets[k], whole_targets[k])
        assert not torch.equal(images[k], plain[k])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixing_and_erasing_are_those_of_timms_loader(batch: Batch, mixup: float, cutmix: float) -> None:
    """timm mixes whole numbers in its collate function, then normalises and erases on the device.

    What is erased last is noise to the bit; erased first it would be mixed with the other image.
    """
    given = batch._replace(mirror=torch.zeros(6, dtype=torch.bool))
    recipe = replace(get_recipe("digits"), mixup=mixup, cutmix=cutmix, erasing=0.7, label_smoothing=0.1)
    collate = FastCollateMixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=10)
    for step in range(10):
        with seeded(5, step):
            mixed = collate(
                [(image.numpy(), int(label)) for image, label in zip(given.images, given.labels, strict=True)]
            )
            timms = PrefetchLoader([mixed], **STATISTICS, device=CPU, re_prob=0.7, re_mode="pixel")
            [(expected, expected_targets)] = list(timms)
        images, targets = Mixer(recipe, 10, CPU)(finish(given, **STATISTICS), given.labels, given.mask, 5, step)
        assert torch.allclose(targets, expected_targets)
        # timm rounds what it mixes to whole numbers.
        assert (images - expected).abs().max() <= 0.5001 / 255 / min(STATISTICS["std"])


def test_without_mixing_labels_stay_labels(batch: Batch) -> None:
    images, targets = Mixer(get_recipe("digits"), 10, CPU)(finish(batch, **STATISTICS), batch.labels, batch.mask, 0)
    assert torch.equal(targets, batch.labels)
    assert torch.equal(images, finish(batch, **STATISTICS))


def test_a_device_has_one_stream_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was freed on a stream stays that stream's."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ["stream of", device])
    device._copying_stream.cache_clear()
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert device._copying_stream(first) is device._copying_stream(torch.device("cuda:0"))
    assert device._copying_stream(second) == ["stream of", second]
    device._copying_stream.cache_clear()


def test_batches_on_the_cpu_are_handed_on_one_by_one(batch: Batch) -> None:
    asked = []

    def batches() -> Iterator[Batch]:
        for number in range(3):
            asked.append(number)
            yield batch

    moving = on_device(batches(), CPU)
    assert next(moving) is batch
    assert asked == [0]  # nothing is taken ahead of need: a loader's memory is lent for one batch at a time
