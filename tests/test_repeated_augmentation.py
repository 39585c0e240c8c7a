"""Repeated augmentation must give processes batches as varied as its authors do, and mix no image with its copies."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import WriteSplit, encode, numbered_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch import distributed, multiprocessing
from warm_python import free_port

from seresnet_hub.data.decoding import Decoder
from seresnet_hub.data.loader import Batch, epoch_plan, loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.repeated_augmentation import dealt, mixing_order, part_rows
from seresnet_hub.recipes.recipe import Recipe, get_recipe

RECIPE = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, shuffle_window=9, mixup=0.2
)


class Together:
    """Exchanges rows among threads that stand for processes, as `torch.distributed.all_to_all_single` does."""

    def __init__(self, world_size: int) -> None:
        self.sent: list[Sequence[torch.Tensor]] = [()] * world_size
        self.all_here = threading.Barrier(world_size, timeout=60)
        self.me = threading.local()

    def all_to_all_single(self, result: torch.Tensor, rows: torch.Tensor, received: list[int], sent: list[int]) -> None:
        rank = self.me.rank
        self.sent[rank] = rows.split(sent)
        self.all_here.wait()
        parts = [theirs[rank] for theirs in self.sent]
        assert [len(part) for part in parts] == received
        torch.cat(parts, out=result)
        self.all_here.wait()


def parts_of(
    split_folder: Path, recipe: Recipe, world_size: int, monkeypatch: pytest.MonkeyPatch, **options: int
) -> list[list[Batch]]:
    """The dealt-out batches of each rank."""
    split = open_split(str(split_folder), "train")
    together = Together(world_size)
    monkeypatch.setattr(distributed, "all_to_all_single", together.all_to_all_single)
    plan = epoch_plan(split, recipe, seed=0, epoch=0)

    def of_rank(rank: int) -> list[Batch]:
        together.me.rank = rank
        return [
            dealt(batch, plan, number, repeats=recipe.repeated_augmentation, rank=rank, world_size=world_size,
                  seed=(0, number, rank))
            for number, batch in enumerate(loaded[rank], options.get("position", 0))
        ]  # fmt: skip

    # Each loader draws from the streams of the whole process, so they take turns.
    loaded = [
        list(loader(split, None, recipe, rank=rank, world_size=world_size, **options)) for rank in range(world_size)
    ]
    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(of_rank, range(world_size)))


def copies(batches: Sequence[Batch]) -> Counter[tuple[int, int, bytes]]:
    """Number, label and pixels of every row that counts."""
    return Counter(
        (int(batch.indices[k]), int(batch.labels[k]), batch.images[k].numpy().tobytes())
        for batch in batches
        for k in batch.mask.nonzero()[:, 0].tolist()
    )


def is_graphical(degrees: Sequence[int]) -> bool:
    """Whether a graph without loops and double edges has these degrees (Erdős and Gallai, 1960)."""
    d = sorted(degrees, reverse=True)
    return sum(d) % 2 == 0 and all(
        sum(d[:k]) <= k * (k - 1) + sum(min(degree, k) for degree in d[k:]) for k in range(1, len(d) + 1)
    )


def assert_mixed_apart(images: Sequence[int]) -> None:
    """Mixed as timm does, no row meets its own image, and no two copies of an image the same other one."""
    pairs = Counter(tuple(sorted(pair)) for pair in zip(images[: len(images) // 2], reversed(images), strict=False))
    assert all(a != b for a, b in pairs), pairs
    assert max(pairs.values(), default=0) <= 1, pairs


@settings(max_examples=400, deadline=None)
@given(copies=st.lists(st.integers(1, 6), min_size=1, max_size=24), seed=st.integers(0, 1000))
def test_copies_are_mixed_apart_wherever_that_is_possible(copies: list[int], seed: int) -> None:
    images = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(copies)) * 7 - 3, copies))
    order = mixing_order(images, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(images)))
    assert (order == mixing_order(images, np.random.default_rng(seed))).all()
    if is_graphical(copies):
        assert_mixed_apart(images[order].tolist())


def test_too_few_images_still_meet_others_first() -> None:
    """Two images of three copies cannot be mixed apart: they meet each other, and not their own copies."""
    images = np.array([4, 4, 4, 9, 9, 9])
    for seed in range(20):
        mixed = images[mixing_order(images, np.random.default_rng(seed))]
        assert (mixed != mixed[::-1]).all()


@pytest.mark.parametrize("repeats", [2, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_processes_hold_the_rows_that_timms_sampler_gives_them(
    write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch, world_size: int, repeats: int
) -> None:
    """Full batches of 24 images: on each rank the very images, and so as many different ones as timm has there."""
    split = write_split([[20, 30], [22, 24]])
    recipe = replace(RECIPE, batch_size=24 * repeats, repeated_augmentation=repeats)
    plan_order = [
        index
        for batch in loader(str(split), "train", replace(recipe, batch_size=24, repeated_augmentation=1), seed=0)
        for index in batch.indices.tolist()
    ]
    parts = parts_of(split, recipe, world_size, monkeypatch)
    for rank, batches in enumerate(parts):
        sampler = RepeatAugSampler(
            plan_order,
            world_size,
            rank,
            shuffle=False,
            num_repeats=repeats,
            selected_round=0,
            selected_ratio=1 / repeats,
        )
        theirs = [plan_order[k] for k in sampler]
        share = 24 * repeats // world_size
        assert len(batches) == -(-96 // (24 * repeats))
        for number, batch in enumerate(batches):
            expected = theirs[number * share : (number + 1) * share]
            assert sorted(batch.indices.tolist()) == sorted(expected)
            assert_mixed_apart(batch.indices.tolist())


def test_eight_ranks_of_rsb_hold_258_images_each() -> None:
    recipe = get_recipe("rsb_a2")
    places = np.arange(recipe.batch_size) // recipe.repeated_augmentation
    for rank in range(8):
        assert len(set(places[rank::8].tolist())) == 258 == len(places) // 8


@pytest.mark.parametrize(
    ("world_size", "batch_size", "repeats"), [(1, 12, 3), (2, 12, 3), (3, 20, 4), (5, 14, 2), (8, 6, 3)]
)
def test_dealing_loses_and_changes_nothing(
    write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch, world_size: int, batch_size: int, repeats: int
) -> None:
    """Any number of processes: the same copies in each batch, also of a short one; unreadable rows do not count."""
    images = [numbered_picture(k) for k in range(41)]
    for damaged in (5, 7, 24, 30):
        images[damaged] = images[damaged][:40]
    split = write_split([[11], [10, 20]], images=images)
    recipe = replace(
        RECIPE, batch_size=batch_size, repeated_augmentation=repeats, crop_padding=3, corrupt_share=0.1, drop_last=False
    )
    alone = list(loader(str(split), "train", recipe))
    parts = parts_of(split, recipe, world_size, monkeypatch)
    again = parts_of(split, recipe, world_size, monkeypatch, position=1)
    for number, whole in enumerate(alone):
        together = [batches[number] for batches in parts]
        assert copies(together) == copies([whole])
        assert sum(batch.missing for batch in together) == whole.missing
        rows = -(-whole.total // world_size)
        assert {len(batch.images) for batch in together} == {rows}
        for rank, batch in enumerate(together):
            assert batch.images.permute(0, 2, 3, 1).is_contiguous()
            assert not batch.mask[batch.indices < 0].any()
            if number:
                assert all(
                    torch.equal(a, b)
                    for a, b in zip(batch, again[rank][number - 1], strict=True)
                    if isinstance(a, torch.Tensor)
                )
            seen = Counter(batch.indices[batch.indices >= 0].tolist())
            assert max(seen.values(), default=0) <= -(-repeats // world_size)
            if rows % 2 == 0 and is_graphical(list(seen.values()) + [1] * int((batch.indices < 0).sum())):
                ids = [int(i) if i >= 0 else -1 - k for k, i in enumerate(batch.indices)]
                assert_mixed_apart(ids)
    assert any(batch.missing for batch in alone)


def test_parts_are_as_long_as_the_longest(write_split: WriteSplit) -> None:
    plan = epoch_plan(open_split(str(write_split([[41]])), "train"), RECIPE, seed=0, epoch=0)
    assert plan.batch_rows(0) == 41
    assert part_rows(plan, 0, repeats=3, world_size=8) == 16


# --- real processes ---------------------------------------------------------------------------------------------------


def one_of(rank: int, world_size: int, port: int, split: str, recipe: Recipe, output: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    opened = open_split(split, "train")
    plan = epoch_plan(opened, recipe, seed=0, epoch=0)
    batches = [
        dealt(batch, plan, number, repeats=3, rank=rank, world_size=world_size, seed=(0, number, rank))._asdict()
        for number, batch in enumerate(loader(opened, None, recipe, rank=rank, world_size=world_size))
    ]
    torch.save(batches, f"{output}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_real_processes_exchange_what_they_should(
    write_split: WriteSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes over gloo do what threads did above, down to the order; the second has a padded row."""
    split = write_split([[9, 10], [6]])
    recipe = replace(RECIPE, batch_size=108, repeated_augmentation=3, crop_padding=2)
    port = free_port()
    expected = parts_of(split, recipe, 2, monkeypatch)
    monkeypatch.undo()
    multiprocessing.start_processes(
        one_of, (2, port, str(split), recipe, str(tmp_path)), nprocs=2, start_method="fork"
    )  # fmt: skip
    for rank, batches in enumerate(expected):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert len(found) == len(batches) == 1
        for one, other in zip(found, batches, strict=True):
            for name, value in other._asdict().items():
                is_tensor = isinstance(value, torch.Tensor)
                assert torch.equal(one[name], value) if is_tensor else one[name] == value, name
            assert batches[0].mask.sum() == (38, 37)[rank]


@pytest.mark.parametrize(("decoder", "crop"), [("fast", "resized"), ("pil", "resized"), ("fast", "pad")])
def test_an_image_is_decoded_once_for_all_its_copies(
    write_split: WriteSplit, monkeypatch: pytest.MonkeyPatch, decoder: Literal["fast", "pil"], crop: Any
) -> None:
    photo = Image.effect_noise((40, 30), 50).convert("RGB")
    split = str(write_split([[8]], images=[encode(photo, "JPEG")] * 8))
    recipe = replace(get_recipe("digits"), decoder=decoder, crop=crop, batch_size=6, repeated_augmentation=3)
    calls = []
    decode = Decoder.decode
    monkeypatch.setattr(Decoder, "decode", lambda self, data: calls.append(data) or decode(self, data))
    rows = sum(len(batch.images) for batch in loader(split, "train", recipe))
    assert (rows, len(calls)) == (12, 4)
