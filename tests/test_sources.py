"""What a person names becomes the rows that are meant: files, folders, patterns, standard input, data sets."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import timm
import torch
from conftest import WriteSplit, encode, numbered_picture
from hub_server import HubServer
from PIL import Image
from torch import nn
from warm_python import run_python

from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError
from seresnet_hub.inference.run_batches import run_batches
from seresnet_hub.inference.sources import open_sources, picture_name


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("seresnet20_cifar", num_classes=7).eval()


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["p/b.png", "p/a/2.PNG", "p/a/10.png", "p/a b/1.png", "p/c/d/1.png", "p/a/x.txt"]):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(numbered_picture(number))


def names(split: Split) -> list[str | None]:
    return [picture_name(split, row) for row in range(split.rows)]


def test_a_folder_is_its_pictures_in_the_order_of_their_paths() -> None:
    in_order = ["p/a/10.png", "p/a/2.PNG", "p/a b/1.png", "p/b.png", "p/c/d/1.png"]
    assert names(open_sources(["p"])) == in_order == [str(path) for path in sorted(map(Path, in_order))]
    assert names(open_sources([Path("p")])) == in_order
    assert names(open_sources(["p/b.png", "p/a", "p/b.png"])) == ["p/b.png", *in_order[:2], "p/b.png"]
    assert names(open_sources(["p/a/x.txt"])) == ["p/a/x.txt"]  # what is named itself is looked at


def test_a_folder_without_pictures_is_an_error() -> None:
    Path("empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no images in this folder \(\.apng, "):
        open_sources(["empty"])


def test_links_that_lead_nowhere_are_rows_and_links_to_folders_are_not_followed() -> None:
    Path("p/broken.png").symlink_to("nowhere")
    Path("p/good.png").symlink_to("b.png")
    Path("p/around").symlink_to("../p")
    Path("p/folder.png").symlink_to("a")
    found = names(open_sources(["p"]))
    assert len(found) == 7
    assert {"p/broken.png", "p/good.png"} < set(found)
    assert names(open_sources(["p/broken.png"])) == ["p/broken.png"]


def test_patterns_are_taken_where_no_file_is_called_so() -> None:
    assert names(open_sources(["p/*/*.png"])) == ["p/a b/1.png", "p/a/10.png", "p/c/d/1.png"][:2]
    assert names(open_sources(["p/**/1.png"])) == ["p/a b/1.png", "p/c/d/1.png"]
    assert names(open_sources(["p/a/*"])) == ["p/a/10.png", "p/a/2.PNG"]  # not x.txt
    Path("p/*.png").write_bytes(b"")
    assert names(open_sources(["p/*.png"])) == ["p/*.png"]
    with pytest.raises(InputError, match=r"p/\*\.jpg: no image is called like this"):
        open_sources(["p/*.jpg"])


def test_standard_input_is_one_picture(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(numbered_picture(3))))
    piped, named = (next(run_batches(model, open_sources([one]))) for one in ("-", "p/a b/1.png"))
    assert piped.images == ["-"]
    assert torch.equal(piped.logits, named.logits)
    with pytest.raises(InputError, match="-: standard input is empty or closed"):
        open_sources(["-"])


def test_addresses_are_not_looked_for_on_the_disk() -> None:
    split = open_sources(["https://example.org/a.png", "p/b.png"])
    assert names(split) == ["https://example.org/a.png", "p/b.png"]
    assert split.is_far
    assert not open_sources(["p/b.png"]).is_far


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (["p/nothing.png"], {}, "p/nothing.png: no such file or folder"),
        (["nothing.png"], {}, "nothing.png: no such file or folder"),
        (["p/nothing"], {}, "p/nothing: no such file or folder"),
        ([], {}, "no images were given"),
        (["digits", "p"], {}, "digits is a data set: name it alone"),
        (["p", "p/b.png"], {"split": "train"}, "p is a data set: name it alone"),
        ([b"x"], {"split": "train"}, "split 'train': pictures in memory have no splits"),
        (["digits"], {"split": "nothing"}, "has no split 'nothing'; it has: train, validation"),
    ],
)
def test_what_cannot_be_meant_is_said(given: list[str], options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_sources(given, **options)


def write_parquet(path: Path, columns: dict[str, list[object]], features: dict[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), **features}))
    table.to_parquet(path, batch_size=7)


def test_a_data_set_without_labels_or_with_some(model: nn.Module) -> None:
    images: list[object] = [{"bytes": numbered_picture(k), "path": f"n{k}.png"} for k in range(20)]
    images[3], images[5] = None, {"bytes": b"damaged", "path": None}
    kinds = datasets.ClassLabel(names=["cat", "dog"])
    labels = [k % 2 if k else -1 for k in range(20)]
    write_parquet(Path("plain/a.parquet"), {"image": images}, {})
    write_parquet(Path("labelled/a.parquet"), {"image": images, "label": labels}, {"label": kinds})
    several = {"age": datasets.Value("int64"), "sex": kinds, "kind": kinds}
    write_parquet(Path("several/a.parquet"), {"image": images} | dict.fromkeys(several, labels), several)
    for given, expected in (
        ("plain", [-1] * 20), ("plain/a.parquet", [-1] * 20), ("plain/*.parquet", [-1] * 20), ("labelled", labels),
        ("several", [-1] * 20),
    ):  # fmt: skip
        split = open_sources([given])
        for workers in (0, 2):
            found = list(run_batches(model, split, batch_size=8, workers=workers))
            assert np.concatenate([answers.labels for answers in found]).tolist() == expected
            assert [name for answers in found for name in answers.images] == [
                None if k in (3, 5) else f"n{k}.png" for k in range(20)
            ]
            errors = {row: error for answers in found for row, error in enumerate(answers.errors, answers.first)}
            assert errors.pop(3) == "there is no image in this row"
            assert (errors.pop(5) or "").startswith("not an image")
            assert not any(errors.values())
    assert open_sources(["labelled"]).class_names == ("cat", "dog")
    named = open_sources(["several"], label_column="sex")
    assert next(run_batches(model, named)).labels.tolist() == labels


def test_class_folders_are_pictures_and_with_a_split_a_data_set(model: nn.Module) -> None:
    for number in range(6):
        path = Path("classes", "xy"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered_picture(number))
    plain, labelled = (
        next(run_batches(model, open_sources(["classes"], split=split))) for split in (None, "train")
    )  # fmt: skip
    assert torch.equal(plain.logits, labelled.logits)
    assert labelled.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert labelled.images == [os.path.realpath(name or "") for name in plain.images]


def test_tar_files_and_the_embedded_digits(model: nn.Module) -> None:
    Path("tars").mkdir()
    with tarfile.open("tars/a.tar", "w") as archive:
        for number in range(9):
            member, content = tarfile.TarInfo(f"{number}.png"), numbered_picture(number)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for given in ("tars", "tars/a.tar", "tars/*.tar"):
        assert next(run_batches(model, open_sources([given]))).images == [f"{number}.png" for number in range(9)]
    digits = open_sources(["digits"])
    assert (digits.name, digits.rows) == ("validation", 360)
    Path("digits").mkdir()
    Path("digits/1.png").write_bytes(encode(Image.new("RGB", (8, 8))))
    assert names(open_sources(["digits"])) == ["digits/1.png"]  # a person's own folder


STREAM = """
import sys, timm, torch
from seresnet_hub.inference.run_batches import run_batches
from seresnet_hub.inference.sources import open_sources
import seresnet_hub
torch.manual_seed(0)
model = timm.create_model("seresnet20_cifar", num_classes=7).eval()
split = open_sources([sys.argv[1]])
found = list(run_batches(model, split, batch_size=8, workers=2))
torch.save((split.name, split.remote, torch.cat([answers.logits for answers in found])), sys.argv[2])
"""


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_streamed(write_split: WriteSplit, tmp_path: Path, model: nn.Module) -> None:
    root = write_split([[9, 8], [4]])
    with HubServer(tmp_path / "hub") as hub:
        hub.create("dataset", "someone/pictures", {f"data/{path.name}": path for path in root.glob("*.parquet")})
        environment = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "0", "SERESNET_HUB_CACHE": str(tmp_path / "c")}
        done = run_python(
            [sys.executable, "-c", STREAM, "someone/pictures", str(tmp_path / "found.pt")], env=environment
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, remote, logits = torch.load(tmp_path / "found.pt")
    local = list(run_batches(model, open_sources([str(root)]), batch_size=8))
    assert (name, remote) == ("train", True)
    assert torch.equal(logits, torch.cat([answers.logits for answers in local]))
