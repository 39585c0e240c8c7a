"""An accuracy must be a count over every image of the split, the same however many processes count."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import timm
import timm.data
import torch
from conftest import WriteSplit, encode, numbered_picture
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, log_loss
from torch import nn

import seresnet_hub  # noqa: F401
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.split import Split
from seresnet_hub.environment import loader_workers
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation.evaluate import Accuracy, evaluate, in_model_order, with_real_labels
from seresnet_hub.models.compiling import compile_for_inference

ROWS = [[20, 9], [1], [17]]  # 47 images


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("seresnet20_cifar", num_classes=10)


@pytest.fixture
def split(write_split: WriteSplit) -> Split:
    return open_split(str(write_split(ROWS, split="test")), "test")


def plain_logits(model: nn.Module, number_of_images: int, **overrides: object) -> np.ndarray:
    """Logits of the numbered pictures, one by one, as timm prepares them."""
    config = {**timm.data.resolve_model_data_config(model), **overrides}
    transform = timm.data.create_transform(**config, is_training=False)
    model.eval()
    with torch.no_grad():
        pictures = [Image.open(BytesIO(numbered_picture(number))) for number in range(number_of_images)]
        logits = torch.cat([model(transform(picture)[None]) for picture in pictures])
    model.train()
    return logits.double().numpy()


def test_counts_equal_a_plain_loop(model: nn.Module, split: Split) -> None:
    logits = plain_logits(model, 47)
    labels = np.arange(47) % 10
    best = logits.argsort(axis=1)[:, ::-1]
    top1 = int((best[:, 0] == labels).sum())
    top5 = int((best[:, :5] == labels[:, None]).sum())
    found = evaluate(model, split, batch_size=8, workers=0, confusion=True)
    assert (found.seen, found.counted, round(found.top1 * 47 / 100), round(found.top5 * 47 / 100)) == (
        47,
        47,
        top1,
        top5,
    )
    assert 0 < top1 < top5 < 47, "a model that is always or never right would prove nothing"
    assert found.loss == pytest.approx(log_loss(labels, softmax(logits, axis=1), labels=range(10)), rel=1e-5)
    assert found.confusion is not None
    assert found.confusion.dtype == np.int64
    assert np.array_equal(found.confusion, confusion_matrix(labels, best[:, 0], labels=range(10)))
    right = np.bincount(labels[best[:, 0] == labels], minlength=10)
    assert np.array_equal(found.class_counts, np.stack([np.bincount(labels, minlength=10), right], axis=1))
    assert (found.input_size, found.crop_pct) == ((32, 32), 1.0)
    assert model.training
    assert found.images_per_second > 0
    assert evaluate(model, split, batch_size=8, workers=0).confusion is None


@pytest.mark.parametrize(("batch_size", "images", "seconds"), [(10, 27, 3), (32, 47, 1001)])
def test_the_speed_is_that_after_the_first_two_batches(
    model: nn.Module, split: Split, monkeypatch: pytest.MonkeyPatch, batch_size: int, images: int, seconds: int
) -> None:
    """A clock that the model moves: a thousand seconds at its first batch, one at each other. 47 images."""
    now = [0.0]
    monkeypatch.setattr("seresnet_hub.evaluation.evaluate.time.perf_counter", lambda: now[0])

    def called(*_: object) -> None:
        now[0] += 1.0 if now[0] else 1000.0

    model.register_forward_hook(called)
    found = evaluate(model, split, batch_size=batch_size, workers=0)
    assert found.images_per_second == pytest.approx(images / seconds)


def over_ranks(model: nn.Module, split: Split, world_size: int, **options: Any) -> Accuracy:
    """What the last of `world_size` ranks returns, when it is given the sums over all of them."""
    given: list[list[torch.Tensor]] = [[] for _ in range(world_size)]

    def total_of(rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def total(own: torch.Tensor) -> torch.Tensor:
            given[rank].append(own.clone())
            call = len(given[rank]) - 1
            if rank == world_size - 1:
                return torch.stack([tensors[call] for tensors in given]).sum(0)
            return own if call else torch.tensor([0, 0, split.rows, split.rows, 0])  # it could not go on otherwise

        return total

    for rank in range(world_size):
        found = evaluate(model, split, workers=0, rank=rank, world_size=world_size, total=total_of(rank), **options)
    return found


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_add_up_to_one_process(model: nn.Module, split: Split, world_size: int) -> None:
    alone = evaluate(model, split, batch_size=16, workers=0, confusion=True)
    shared = over_ranks(model, split, world_size, batch_size=16, confusion=True)
    assert (shared.seen, shared.top1, shared.top5) == (alone.seen, alone.top1, alone.top5)
    assert shared.loss == pytest.approx(alone.loss, rel=1e-12)
    assert np.array_equal(shared.confusion, alone.confusion)
    assert np.array_equal(shared.class_counts, alone.class_counts)


def test_a_lost_image_is_an_error(model: nn.Module, split: Split) -> None:
    with pytest.raises(RuntimeError, match="46 of the 47 images"):
        evaluate(model, split, workers=0, total=lambda sums: sums - (torch.arange(len(sums)) == 3).to(sums.dtype))


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


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_precision_is_that_of_the_computation(
    model: nn.Module, split: Split, precision: Any, dtype: torch.dtype
) -> None:
    """The logits are those of the model under autocast; the weights stay what they are."""
    seen: list[torch.Tensor] = []
    handle = model.fc.register_forward_hook(lambda _, __, logits: seen.append(logits))
    plain = evaluate(model, split, workers=0)
    found = evaluate(model, split, workers=0, precision=precision)
    handle.remove()
    assert (plain.precision, found.precision) == ("no", precision)
    assert [logits.dtype for logits in seen] == [torch.float32, dtype]
    assert next(model.parameters()).dtype == torch.float32
    assert plain.loss is not None
    assert found.loss is not None
    assert 0 < abs(plain.loss - found.loss) < 0.05
    with pytest.raises(InputError, match="precision=bf8: must be no, bf16 or fp16"):
        evaluate(model, split, workers=0, precision="bf8")  # type: ignore[arg-type]


def test_fewer_than_five_classes_have_a_top5(write_split: WriteSplit) -> None:
    split = open_split(str(write_split([[6]], classes=3)), "train")
    found = evaluate(timm.create_model("seresnet20_cifar", num_classes=3), split, workers=0)
    assert found.top5 == 100


# --- other sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "crop_pct"), [(48, None), (16, 0.5), (None, 0.7), (33, 0.95)])
def test_another_size_is_what_timm_would_take(
    model: nn.Module, write_split: WriteSplit, size: int | None, crop_pct: float | None
) -> None:
    split = open_split(str(write_split([[20]], split="test")), None)
    overrides = {"input_size": (3, size, size) if size else None, "crop_pct": crop_pct}
    logits = plain_logits(model, 20, **{name: value for name, value in overrides.items() if value})
    found = evaluate(model, split, workers=0, input_size=size, crop_pct=crop_pct)
    assert found.loss == pytest.approx(
        log_loss(np.arange(20) % 10, softmax(logits, axis=1), labels=range(10)), rel=1e-5
    )
    assert (found.input_size, found.crop_pct) == ((size or 32,) * 2, crop_pct or 1.0)


def test_sizes_that_cannot_be_are_refused(model: nn.Module, split: Split) -> None:
    for size in (3, 0, -32):
        with pytest.raises(InputError, match=f"input size {size}: the model makes one value of 4 pixels"):
            evaluate(model, split, input_size=size)
    with pytest.raises(InputError, match="input size 8: the model makes one value of 32 pixels"):
        evaluate(timm.create_model("seresnet18", num_classes=10), split, input_size=8)
    with pytest.raises(InputError, match="input size 32: the model cannot take images of this size"):
        evaluate(timm.create_model("test_vit", num_classes=10, dynamic_img_size=False), split, input_size=32)
    for share in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(InputError, match="crop_pct=.*: must be between 0.1 and 1"):
            evaluate(model, split, crop_pct=share)


# --- labels of other kinds --------------------------------------------------------------------------------------------


class Planned(nn.Module):
    """Says of picture number k what the k-th row of a table says; every logit is known."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.num_classes = logits.shape[1]
        self.logits = nn.Parameter(torch.from_numpy(logits).float())
        self.pretrained_cfg = {
            "num_classes": self.num_classes, "input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3,
            "crop_pct": 1.0, "interpolation": "nearest",
        }  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red, green = (255 * images[:, :2, 0, 0]).round().long().unbind(1)
        return self.logits[red + 256 * green]


def planned(rows: int, classes: int, seed: int = 0) -> tuple[Planned, np.ndarray]:
    """A model of random answers, and its classes of each picture from best to worst."""
    logits = np.stack([np.random.default_rng([seed, row]).permutation(classes) for row in range(rows)]) / 10
    return Planned(logits), logits.argsort(axis=1)[:, ::-1]


def write_rows(
    folder: Path,
    labels: Sequence[Any],
    feature: Any,
    *,
    names: Sequence[str | None] | None = None,
    column: str = "label",
) -> str:
    """Write numbered pictures with these labels into two shards of several row groups."""
    folder.mkdir()
    names = names or [None] * len(labels)
    features = datasets.Features({"image": datasets.Image(), column: feature})
    half = len(labels) // 2
    for shard, rows in enumerate((range(half), range(half, len(labels)))):
        pictures = [{"bytes": numbered_picture(row), "path": names[row]} for row in rows]
        table = datasets.Dataset.from_dict(
            {"image": pictures, column: [labels[row] for row in rows]}, features=features
        )
        path = folder / f"validation-{shard:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(table.with_format("arrow")[:], path, row_group_size=7)
    return str(folder)


def expected(best: np.ndarray, right: Sequence[Sequence[int]], depth: int) -> float:
    """The percentage by the rule of arXiv 2006.07159: any of the right classes counts, images that have none do not."""
    hits = [bool(set(best[row, :depth]) & set(classes)) for row, classes in enumerate(right) if classes]
    return 100 * float(np.mean(hits))


@pytest.mark.parametrize("inner", [datasets.Value("int64"), datasets.ClassLabel(names=[f"c{k}" for k in range(12)])])
def test_any_of_several_labels_is_right(tmp_path: Path, inner: Any) -> None:
    model, best = planned(45, 12)
    random_numbers = np.random.default_rng(5)
    right = [random_numbers.permutation(12)[: random_numbers.integers(0, 4)].tolist() for _ in range(45)]
    right[3] = None  # as good as none
    path = write_rows(tmp_path / "lists", right, datasets.List(inner), column="real")
    right[3] = []
    split = open_split(path, None, label_column="real", label_lists=True)
    for found in (
        evaluate(model, split, batch_size=8, workers=0),
        evaluate(model, split, batch_size=8, workers=2),
        over_ranks(model, split, 2, batch_size=8),
        over_ranks(model, split, 3, batch_size=8),
    ):
        assert (found.seen, found.counted) == (45, sum(map(bool, right)))
        assert found.top1 == pytest.approx(expected(best, right, 1))
        assert found.top5 == pytest.approx(expected(best, right, 5))
        assert (found.loss, found.class_counts) == (None, None)
    assert 1 < found.counted < 44
    assert 0 < found.top1 < found.top5 < 100
    with pytest.raises(InputError, match="several right classes, so there is no confusion matrix"):
        evaluate(model, split, confusion=True)
    with pytest.raises(InputError, match="'real' holds lists, not class numbers; .* validated on, not trained on"):
        open_split(path, None, label_column="real")


def test_lists_of_renamed_classes_are_renumbered(tmp_path: Path) -> None:
    names = [f"c{k}" for k in range(12)]
    model, best = planned(10, 12)
    right = [[k, (k + 3) % 12] for k in range(10)]
    feature = datasets.List(datasets.ClassLabel(names=names[::-1]))
    split = open_split(write_rows(tmp_path / "lists", right, feature), None, label_lists=True)
    model.pretrained_cfg["label_names"] = names
    found = evaluate(model, in_model_order(split, model), workers=0)
    assert found.top1 == pytest.approx(expected(best, [[11 - k for k in classes] for classes in right], 1))
    assert found.top1 != evaluate(model, split, workers=0).top1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [0, 12], [2]], r"row 1 of split 'validation' of .* labels \[0, 12\], expected 0 to 11"),
        ([[1], [-1], [2]], r"row 1 of split 'validation' of .* labels \[-1\], expected class numbers"),
        ([[1], [None], [2]], r"row 1 of split 'validation' of .* labels \[None\], expected class numbers"),
        ([[], [], []], "no image of split 'validation' of .* has a label"),
    ],
)
def test_bad_lists_are_named(tmp_path: Path, labels: list[Any], message: str) -> None:
    path = write_rows(tmp_path / "lists", labels, datasets.List(datasets.Value("int64")))
    with pytest.raises(InputError, match=message):
        evaluate(planned(3, 12)[0], open_split(path, None, label_lists=True), workers=0)


def test_bad_columns_are_named(tmp_path: Path) -> None:
    lists = write_rows(tmp_path / "texts", [["a"]] * 4, datasets.List(datasets.Value("string")))
    with pytest.raises(InputError, match="column 'label' holds .* not class numbers"):
        open_split(lists, None, label_lists=True)
    texts = write_rows(tmp_path / "numbers", ["10", "2"] * 2, datasets.Value("string"))  # as some have ImageNet-V2
    with pytest.raises(InputError, match="column 'label' holds string, not class numbers"):
        open_split(texts, None, label_lists=True)
    with pytest.raises(InputError, match="no column 'real'; its columns are: image, label"):
        open_split(texts, None, label_column="real")


def test_imagenet_real(tmp_path: Path) -> None:
    """Images of the validation set, known by their files' names, in any order and not all of them."""
    file = Path(timm.data.__file__).parent / "_info" / "imagenet_real_labels.json"
    real = json.loads(file.read_text())
    images = np.random.default_rng(1).permutation(50_000)[:60].tolist()
    right = [real[image] for image in images]
    logits = planned(60, 1000)[0].logits.detach().numpy().copy()
    for row, classes in enumerate(right):  # a model that is often right, and often by another label than the first
        if classes and row % 3:
            logits[row, classes[-1]] += 150 * (row % 2)
    model, best = Planned(logits), logits.argsort(axis=1)[:, ::-1]
    forms = (
        "ILSVRC2012_val_{:08d}.JPEG",
        "ILSVRC2012_val_{:08d}_n01440764.JPEG",
        "n01440764_ILSVRC2012_val_{:08d}.jpg",
    )
    names = [forms[row % 3].format(image + 1) for row, image in enumerate(images)]
    path = write_rows(tmp_path / "imagenet", [0] * 60, datasets.Value("int64"), names=names)
    split = with_real_labels(open_split(path, None), model)
    for found in (evaluate(model, split, workers=0, batch_size=9), over_ranks(model, split, 2, batch_size=9)):
        assert (found.seen, found.counted) == (60, sum(map(bool, right)))
        assert found.top1 == pytest.approx(expected(best, right, 1))
        assert found.top5 == pytest.approx(expected(best, right, 5))
    assert found.counted < 60
    assert 20 < found.top1 < 80
    with pytest.raises(InputError, match="the model 10"):
        with_real_labels(split, planned(2, 10)[0])


def test_imagenet_real_needs_the_file_names(tmp_path: Path) -> None:
    model = planned(4, 1000)[0]
    nameless = write_rows(tmp_path / "nameless", [0] * 4, datasets.Value("int64"))
    with pytest.raises(InputError, match="row 0 of split 'validation' of .* file is called ''"):
        evaluate(model, with_real_labels(open_split(nameless, None), model), workers=0)
    names = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00050001.JPEG"] * 2
    beyond = write_rows(tmp_path / "beyond", [0] * 4, datasets.Value("int64"), names=names)
    with pytest.raises(InputError, match="row 1 of split 'validation' of .*: label 50000, expected 0 to 49999"):
        evaluate(model, with_real_labels(open_split(beyond, None), model), workers=0)


def test_folders_called_by_numbers_are_these_classes(tmp_path: Path) -> None:
    """As ImageNet-V2's authors have it: folders 0 to 999, which datasets sorts as text; here a dozen."""
    for number in range(12):
        (tmp_path / "v2" / str(number)).mkdir(parents=True)
        (tmp_path / "v2" / str(number) / "0.png").write_bytes(numbered_picture(number))
    model = Planned(10 * np.eye(12))  # always right
    model.pretrained_cfg["label_names"] = [f"thing {number}" for number in range(12)]
    split = open_split(str(tmp_path / "v2"), "train")
    assert split.class_names[:4] == ("0", "1", "10", "11")
    ordered = in_model_order(split, model)
    assert ordered.class_names == tuple(map(str, range(12)))
    assert evaluate(model, ordered, workers=0).top1 == 100
    assert evaluate(model, split, workers=0).top1 < 20


def test_imagenet_v2_as_a_webdataset(tmp_path: Path) -> None:
    """The layout of clip-benchmark/wds_imagenetv2: archives of webp and cls, and texts beside them."""
    model, best = planned(30, 1000)
    (tmp_path / "v2" / "test").mkdir(parents=True)
    labels = [int(best[row, row % 8]) for row in range(30)]
    for shard in range(2):
        with tarfile.open(tmp_path / "v2" / "test" / f"{shard}.tar", "w") as archive:
            for row in range(15 * shard, 15 * shard + 15):
                picture = Image.open(BytesIO(numbered_picture(row)))
                for name, data in (
                    ("webp", encode(picture, "WEBP", lossless=True)),
                    ("cls", str(labels[row]).encode()),
                ):
                    member = tarfile.TarInfo(f"s{row:07d}.{name}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    for name in ("test/nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt"):
        (tmp_path / "v2" / name).write_text("a\nb\n")
    split = open_split(str(tmp_path / "v2"), None)
    found = evaluate(model, in_model_order(split, model), workers=0)
    assert (split.name, found.seen) == ("test", 30)
    assert found.top1 == pytest.approx(expected(best, [[label] for label in labels], 1))
    assert found.top5 == pytest.approx(expected(best, [[label] for label in labels], 5))


def test_another_class_order_is_followed(tmp_path: Path) -> None:
    names = [f"c{k}" for k in range(6)]
    model = Planned(np.eye(6)[np.arange(12) % 6])
    model.pretrained_cfg["label_names"] = names
    labels = [5 - k % 6 for k in range(12)]  # picture k shows class k % 6, which the data set numbers from the end
    path = write_rows(tmp_path / "reversed", labels, datasets.ClassLabel(names=names[::-1]))
    ordered = in_model_order(open_split(path, None), model)
    assert ordered.class_names == tuple(names)
    found = evaluate(model, ordered, workers=2, confusion=True)
    assert found.top1 == 100
    assert np.array_equal(found.confusion, 2 * np.eye(6))


def test_too_many_classes_for_a_matrix(split: Split) -> None:
    model = timm.create_model("seresnet20_cifar", num_classes=20_000)
    with pytest.raises(InputError, match="confusion matrix of 20,000 classes is too large"):
        evaluate(model, replace(split, class_names=None), confusion=True)


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 2), (3, 2), (4, 3), (8, 7), (16, 12), (256, 12)])
def test_as_many_workers_as_suit_the_machine(cpus: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    assert loader_workers() == workers


def test_a_compiled_model_has_the_same_accuracy(
    model: nn.Module, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a last batch that is shorter, for which nothing is compiled, and another image size."""
    compilations = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: (compilations.append(1), function)[1])
    for options in ({}, {"input_size": 40, "crop_pct": 0.9}):
        expected = evaluate(model, split, batch_size=20, workers=0, **options)
        compilations.clear()
        found = evaluate(compile_for_inference(model), split, batch_size=20, workers=0, **options)
        assert len(compilations) == 1
        assert (found.top1, found.counted, found.input_size) == (expected.top1, 47, expected.input_size)
        assert found.loss == pytest.approx(expected.loss, abs=1e-6)


def test_a_negative_number_of_workers_is_refused(model: nn.Module, split: Split) -> None:
    with pytest.raises(InputError, match="workers=-1: must be at least 0"):
        evaluate(model, split, workers=-1)
