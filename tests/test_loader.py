"""Every sample must arrive exactly once an epoch, in an order that ranks, workers and restarts do not change."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import WriteSplit, encode, numbered_picture, numbers_in
from PIL import Image
from torchvision.transforms import Compose, Resize

from seresnet_hub.data.loader import Batch, Loader, evaluation_spec, loader
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.split import Split
from seresnet_hub.data.transforms import Transform, evaluation_transform
from seresnet_hub.data.units import read_unit
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import Recipe, get_recipe

PLAIN = replace(
    get_recipe("digits"), input_size=8, crop="pad", crop_padding=0, horizontal_flip=0.0, batch_size=12, shuffle_window=9
)
KEEP = evaluation_transform(input_size=(3, 8, 8), interpolation="bilinear", crop_pct=1.0)
UNEVEN = [[5, 3], [1], [7, 7, 2], [10]]  # rows of each row group of each shard: 35 in all


def evaluation_loader(split: Split, transform: Transform, **options: Any) -> Loader:
    return Loader(evaluation_spec(split, transform, input_size=(8, 8), **options))


def real_numbers(batches: Iterable[Batch]) -> list[list[int]]:
    return [numbers_in(batch.images[batch.mask]) for batch in batches]


def merged(per_rank: list[list[list[int]]]) -> list[list[int]]:
    """The global batches: each rank's rows of a batch, one rank after the other."""
    return [[n for part in parts for n in part] for parts in zip(*per_rank, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_do_not_change_the_batches(write_split: WriteSplit, world_size: int, workers: int) -> None:
    split = open_split(str(write_split(UNEVEN)), "train")
    alone = real_numbers(loader(split, None, PLAIN, seed=3, epoch=1))
    shared = merged(
        [
            real_numbers(loader(split, None, PLAIN, rank=rank, world_size=world_size, workers=workers, seed=3, epoch=1))
            for rank in range(world_size)
        ]
    )
    assert shared == alone
    assert sorted(n for batch in alone for n in batch) == list(range(35))
    assert [len(batch) for batch in alone] == [12, 12, 11]


def test_more_workers_than_rows_take_turns(write_split: WriteSplit) -> None:
    """Six workers share the two rows that each of six ranks has; a run of one process goes on with such ranks."""
    split = open_split(str(write_split(UNEVEN)), "train")
    alone = real_numbers(loader(split, None, PLAIN, seed=3))
    parts = [
        real_numbers(loader(split, None, PLAIN, rank=rank, world_size=6, workers=6, seed=3, position=1))
        for rank in range(6)
    ]
    assert merged(parts) == alone[1:]


def test_epochs_and_seeds_have_orders_of_their_own(write_split: WriteSplit) -> None:
    split = open_split(str(write_split(UNEVEN)), "train")
    orders = {
        (seed, epoch): [n for batch in real_numbers(loader(split, None, PLAIN, seed=seed, epoch=epoch)) for n in batch]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    assert all(sorted(order) == list(range(35)) for order in orders.values())
    assert orders[0, 0] != list(range(35))


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_continues_where_it_says(write_split: WriteSplit, position: int, workers: int) -> None:
    split = open_split(str(write_split(UNEVEN)), "train")
    whole = loader(split, None, PLAIN, epoch=2)
    rest = loader(split, None, PLAIN, epoch=2, position=position, workers=workers)
    assert real_numbers(rest) == real_numbers(whole)[position:]
    assert len(rest) == 3 - position


def test_augmentation_depends_on_the_sample_alone(write_split: WriteSplit) -> None:
    split = open_split(str(write_split(UNEVEN)), "train")
    recipe = replace(PLAIN, crop_padding=3)
    alone = [batch.images for batch in loader(split, None, recipe, epoch=1)]
    helped = [batch.images for batch in loader(split, None, recipe, epoch=1, workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    again = [batch.images for batch in loader(split, None, recipe, epoch=1, position=1)]
    assert torch.equal(again[0], alone[1])


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_sees_each_image_once(write_split: WriteSplit, world_size: int) -> None:
    split = open_split(str(write_split(UNEVEN, split="test")), None)
    parts = [
        list(evaluation_loader(split, KEEP, batch_size=12, num_classes=10, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    seen = [n for batch in merged([real_numbers(part) for part in parts]) for n in batch]
    assert sorted(seen) == list(range(35))
    assert seen == [
        n for batch in merged([[b.indices[b.mask].tolist() for b in part] for part in parts]) for n in batch
    ]
    alone = evaluation_loader(split, KEEP, batch_size=12, num_classes=10)
    assert seen == [n for batch in real_numbers(alone) for n in batch]
    # Every rank gets as many rows as every other, so that none waits for a batch that never comes.
    assert len({tuple(len(batch.mask) for batch in part) for part in parts}) == 1
    labels = [
        label for batch in zip(*parts, strict=True) for part in batch for label in part.labels[part.mask].tolist()
    ]
    assert labels == [n % 10 for n in seen]


def test_a_single_row_on_three_ranks_is_padded_with_a_mask(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[1]])), "train")
    batches = [next(iter(loader(split, None, PLAIN, rank=rank, world_size=3))) for rank in range(3)]
    assert [batch.mask.tolist() for batch in batches] == [[True], [False], [False]]
    assert {batch.total for batch in batches} == {1}
    assert {tuple(batch.images.shape) for batch in batches} == {(1, 3, 8, 8)}


def test_image_folders_stream_too(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(6):
            folder = tmp_path / "pictures" / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(numbered_picture(number))
    split = open_split(str(tmp_path / "pictures"), "test")
    assert (split.rows, split.class_names) == (6, ("class0", "class1"))
    batches = list(evaluation_loader(split, KEEP, batch_size=4, num_classes=2))
    found = {n: label for b in batches for n, label in zip(numbers_in(b.images), b.labels.tolist(), strict=True)}
    assert found == {n: n % 2 for n in range(6)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_jpeg_is_named_with_its_row(write_split: WriteSplit, workers: int) -> None:
    images = [numbered_picture(k) for k in range(9)]
    images[7] = encode(Image.effect_noise((64, 64), 80), "JPEG")[:600]
    split = open_split(str(write_split([[4], [5]], images=images)), "train")
    place = r"^row 7 of split 'train' of .*numbers \(row 3 of train-00001-of-00002.parquet\)"
    with pytest.raises(InputError, match=place + r" \(7.png\): not a whole image"):
        list(loader(split, None, PLAIN, workers=workers))


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_outside_the_classes_is_named(write_split: WriteSplit, label: int) -> None:
    root = write_split([[3]], labels=[0, 1, 2])
    split = replace(open_split(str(root), "train"), class_names=None)
    recipe: Recipe = replace(PLAIN, num_classes=2)
    with pytest.raises(InputError, match="row 2 of split 'train' .*label 2, expected 0 to 1"):
        list(loader(split, None, recipe))
    if label == -1:  # the Hub's mark for a split without labels
        unlabelled = write_split([[2]], labels=[-1, -1], folder="unlabelled")
        with pytest.raises(InputError, match="label -1, expected 0 to 9"):
            list(loader(str(unlabelled), "train", PLAIN))


def test_wrong_sources_are_refused(write_split: WriteSplit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data at .*nowhere: the folder does not exist"):
        open_split(str(tmp_path / "nowhere"), None)
    with pytest.raises(
        InputError, match="'somebody/nothing': HF_HUB_OFFLINE=1 is set, and somebody/nothing is no folder"
    ):
        open_split("somebody/nothing", None)
    root = write_split([[3]])
    with pytest.raises(InputError, match="has no split 'valid'; it has: train"):
        open_split(str(root), "valid")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="declares no columns"):
        open_split(str(tmp_path / "texts"), "train")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    with pytest.raises(InputError, match=r"train-00000-of-00001.parquet|cannot open data set"):
        open_split(str(tmp_path / "broken"), "train")


def test_rows_without_an_image_are_named(write_split: WriteSplit, tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    rows = datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=features)
    (tmp_path / "nulls").mkdir()
    rows.to_parquet(tmp_path / "nulls" / "train.parquet")
    with pytest.raises(InputError, match="row 0 of split 'train' .*there is no image"):
        list(loader(str(tmp_path / "nulls"), "train", PLAIN))


def test_columns_are_told_apart_or_asked_for(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["a", "b"])
    number = datasets.Value("int64")

    def write(name: str, columns: dict[str, object]) -> str:
        image = {"bytes": numbered_picture(1), "path": None}
        (tmp_path / name).mkdir()
        kinds = {datasets.Image: image, datasets.List: [1]}
        values = {key: [kinds.get(type(kind), 1)] for key, kind in columns.items()}
        rows = datasets.Dataset.from_dict(values, features=datasets.Features(columns))
        rows.to_parquet(tmp_path / name / "train.parquet")
        return str(tmp_path / name)

    both = {"blurred": names, "label": number, "mask": datasets.Image(), "image": datasets.Image()}
    split = open_split(write("both", both), "train")
    assert (split.image_column, split.label_column) == ("image", "label")
    fine = open_split(write("fine", {"photo": datasets.Image(), "kind": names}), "train")
    assert (fine.image_column, fine.label_column) == ("photo", "kind")
    with pytest.raises(InputError, match="several label columns, none named 'label': coarse, fine"):
        open_split(write("two", {"image": datasets.Image(), "coarse": names, "fine": names}), "train")
    with pytest.raises(InputError, match="not class numbers"):
        open_split(write("list", {"image": datasets.Image(), "label": datasets.List(number)}), "train")


def test_webdataset_archives_stream_too(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "archives" / f"train-{shard:05d}.tar", "w") as archive:
            for number in range(3):
                for suffix, content in (("png", numbered_picture(3 * shard + number)), ("cls", str(number).encode())):
                    member = tarfile.TarInfo(f"{3 * shard + number:04d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    split = open_split(str(tmp_path / "archives"), "train")
    assert (split.rows, split.image_column, split.label_column) == (6, "png", "cls")
    batches = list(evaluation_loader(split, KEEP, batch_size=4, num_classes=3))
    assert sorted(n for batch in real_numbers(batches) for n in batch) == list(range(6))
    assert all(batch.labels.tolist() == [n % 3 for n in numbers_in(batch.images)] for batch in batches)
    tars = open_split(str(tmp_path / "archives" / "train-*.tar"), "train")
    assert (tars.rows, tars.class_names) == (6, None)


def test_what_a_format_does_not_say_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(6):
        picture = tmp_path / "pictures" / "train" / f"class{k % 2}" / f"{k}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(numbered_picture(k))
    first = open_split(str(tmp_path / "pictures"), "train")
    monkeypatch.setattr("seresnet_hub.data.open_split.tables_of", lambda unit: pytest.fail("counted again"))
    assert open_split(str(tmp_path / "pictures"), "train").unit_rows == first.unit_rows
    monkeypatch.undo()
    (tmp_path / "pictures" / "train" / "class0" / "9.png").write_bytes(numbered_picture(9))
    assert open_split(str(tmp_path / "pictures"), "train").rows == 7


def test_labels_must_be_numbers(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    image = {"bytes": numbered_picture(0), "path": None}
    rows = datasets.Dataset.from_dict({"image": [image], "label": ["cat"]}, features=features)
    (tmp_path / "texts").mkdir()
    rows.to_parquet(tmp_path / "texts" / "train.parquet")
    with pytest.raises(InputError, match="column 'label' holds string, not class numbers"):
        open_split(str(tmp_path / "texts"), "train")


def test_empty_row_groups_are_passed_over(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[0, 3], [0], [2, 0]])), "train")
    assert sorted(n for batch in real_numbers(loader(split, None, PLAIN)) for n in batch) == list(range(5))


def test_views_of_a_shard_are_the_bytes_that_were_written(tmp_path: Path) -> None:
    """Pictures are cut out of Arrow's memory by hand: empty ones, missing ones and whole gaps must not shift any."""
    written = [{"bytes": bytes([k]) * k, "path": f"{k}.jpg" if k % 3 else None} for k in range(40)]
    rows: list[dict[str, object] | None] = [*written[:20], None, {"bytes": None, "path": "x.jpg"}, *written[20:], None]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = pyarrow.table({"image": rows, "label": range(len(rows))}, features.arrow_schema)
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=17)
    split = open_split(str(tmp_path), "train")
    assert split.unit_rows == (17, 17, 9)
    found = [row.image for unit in range(3) for row in read_unit(split, unit)]
    assert found == rows  # a view equals the bytes it shows
    assert all(isinstance(image["bytes"], memoryview) for image in found if image and image["bytes"] is not None)


def test_a_shard_cut_short_after_opening_is_refused(write_split: WriteSplit) -> None:
    root = write_split([[4], [4]])
    split = open_split(str(root), "train")
    shard = root / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match=r"shards of .* have changed.*train-00001-of-00002.parquet \(was 2,"):
        next(iter(loader(split, None, PLAIN)))  # between two epochs
    with pytest.raises(InputError, match=r"cannot read unit 1 of split 'train' .*\(in train-00001-of-00002.parquet\)"):
        read_unit(split, 1)  # within one


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_leaving_a_stream_half_read_exits_cleanly(write_split: WriteSplit, workers: int) -> None:
    root = write_split([[50, 50]] * 4)
    code = (
        "from seresnet_hub.data.loader import loader; from seresnet_hub.recipes.recipe import get_recipe\n"
        f"batches = iter(loader({str(root)!r}, 'train', get_recipe('digits'), workers={workers}))\n"
        "print(len(next(batches).images), len(next(batches).images))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "64 64", "")


def test_real_cifar10_is_complete(cifar10_copy: Path) -> None:
    assert open_split(str(cifar10_copy), "train").rows == 50_000
    split = open_split(str(cifar10_copy), None)
    assert (split.name, split.rows, split.class_names[:2]) == ("test", 10_000, ("airplane", "automobile"))
    batch = next(iter(evaluation_loader(split, KEEP, batch_size=64, num_classes=10)))
    assert batch.images.shape == (64, 3, 8, 8)


def test_real_photographs_decode(imagenet_sample: Path) -> None:
    split = open_split(str(imagenet_sample), "train")
    assert split.rows == 600
    assert split.class_names is None
    recipe = replace(get_recipe("digits"), crop="resized", input_size=64, num_classes=1000, batch_size=100)
    batch = next(iter(loader(split, None, recipe, workers=2)))
    assert batch.images.shape == (100, 3, 64, 64)
    assert batch.images.float().std() > 30


@pytest.mark.parametrize("name", ["ra2", "seresnet101_modern"])
def test_recipes_lose_none_of_the_real_photographs(imagenet_sample: Path, name: str) -> None:
    """An epoch over 600 real images with the recipe's own augmentation: nothing is left out, and every row is seen."""
    split = open_split(str(imagenet_sample), "train")
    recipe = replace(get_recipe(name), input_size=64, num_classes=1000, batch_size=100, seed=1)
    each_once = replace(recipe, repeated_augmentation=1)
    for asked in {recipe, each_once}:
        batches = loader(split, None, asked, workers=2)
        seen = [index for batch in batches for index in batch.indices[batch.mask].tolist()]
        assert not batches.skipped
        assert len(seen) == 600
        assert len(set(seen)) == 600 // asked.repeated_augmentation


def test_a_transform_without_a_tensor_at_its_end_is_no_damaged_picture(numbers: str) -> None:
    """Whatever share of the pictures may be damaged: the error is the transform's own."""
    split = open_split(numbers, "train")
    loader = evaluation_loader(split, Compose([Resize(8)]), batch_size=8, num_classes=10, corrupt_share=1.0)
    with pytest.raises(TypeError, match="must be Tensor"):
        next(iter(loader))
