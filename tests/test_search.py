"""A search must find what scikit-learn finds among the model's features, in an index that the same model made."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import WriteSplit, encode
from embedding_files import write_index
from PIL import Image
from pyarrow import parquet
from sklearn.neighbors import NearestNeighbors
from torch import nn

import seresnet_hub
from seresnet_hub.commands import search as command
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.data.read_image import read_image
from seresnet_hub.errors import InputError
from seresnet_hub.inference import search_sheet
from seresnet_hub.inference.contact_sheet import BOX, GAP, MARGIN, SIDE, WIDE_GAP, Tile, contact_sheet
from seresnet_hub.inference.embedding_index import open_index
from seresnet_hub.inference.predict import extract_features
from seresnet_hub.inference.search import Query, search
from seresnet_hub.inference.search_sheet import write_sheet
from seresnet_hub.inference.sources import open_sources
from seresnet_hub.inference.write_predictions import write_predictions
from seresnet_hub.models.published_weights import OWN_WEIGHTS

NAME = OWN_WEIGHTS[0].name


def picture(number: int) -> Image.Image:
    """A picture of coloured squares, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures in two class folders, and one that is none."""
    folder = tmp_path_factory.mktemp("search") / "photos"
    for number in range(20):
        path = folder / ("cat" if number < 10 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    (folder / "cat" / "05.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seresnet_hub.load(NAME)


@pytest.fixture(scope="module")
def index(photos: Path) -> Path:
    path = photos.parent / "photos.parquet"
    write_predictions(NAME, str(photos), path, features=[None, 2], labels_from_folder=True)
    return path


def found_by_reference(photos: Path, stage: int | None, top: int) -> tuple[np.ndarray, list[list[str]]]:
    files = [str(path) for path in sorted(photos.rglob("*.png")) if path.name != "05.png"]
    features = extract_features(NAME, files, stage=stage).double()
    features = features if features.ndim == 2 else features.mean((2, 3))
    queries = extract_features(NAME, [picture(3), picture(100)], stage=stage).double()
    queries = queries if queries.ndim == 2 else queries.mean((2, 3))
    reference = NearestNeighbors(n_neighbors=top, metric="cosine", algorithm="brute").fit(features.numpy())
    distances, rows = reference.kneighbors(queries.numpy())
    return 1 - distances, [[files[row] for row in one] for one in rows]


@pytest.mark.parametrize("stage", [None, 2])
def test_neighbours_are_scikit_learns(photos: Path, index: Path, stage: int | None) -> None:
    found = search(index, [picture(3), picture(100)], 6, stage=stage)
    similarities, files = found_by_reference(photos, stage, 6)
    assert [[one["image"] for one in neighbours] for neighbours in found] == files
    np.testing.assert_allclose(
        [[one["similarity"] for one in neighbours] for neighbours in found], similarities, atol=1e-6
    )
    first = found[0][0]
    assert list(first) == ["row", "image", "similarity", "label", "label_name", "name_1"]
    assert (first["row"], first["label_name"]) == (3, "cat")
    assert first["similarity"] == pytest.approx(1, abs=1e-6)
    assert seresnet_hub.search is search


def test_any_form_of_query_and_a_number_of_neighbours(photos: Path, index: Path, model: nn.Module) -> None:
    alone = search(index, photos / "dog" / "12.png", 1000, model=model)
    assert len(alone[0]) == 19  # one of the twenty has no features
    assert alone[0][0]["image"] == str(photos / "dog" / "12.png")
    for form in (picture(12), encode(picture(12)), np.asarray(picture(12)), str(photos / "dog" / "12.png")):
        assert search(index, form, 1000, model=model) == alone
    assert search(index, str(photos / "dog"), 1, model=model) == [
        search(index, picture(number), 1, model=model)[0] for number in range(10, 20)
    ]
    told: list[int] = []
    some = search(
        index, [picture(12), b"none", picture(13)], 2, model=model, unreadable=lambda number, error: told.append(number)
    )
    assert (told, [len(one) for one in some]) == ([1], [2, 0, 2])
    with pytest.raises(InputError, match="not an image"):
        search(index, [picture(12), b"none"], model=model)
    with pytest.raises(InputError, match="top=0"):
        search(index, picture(12), 0, model=model)


def test_an_index_of_another_model_is_refused(index: Path, model: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = timm.create_model("seresnet20_cifar", num_classes=10).eval()
    with pytest.raises(InputError, match=r"made by other weights than those of the model \(sha256 "):
        search(index, picture(0), model=other)
    assert search(index, picture(0), model=model) == search(index, picture(0))
    same = copy.copy(model)
    same.pretrained_cfg = {**same.pretrained_cfg, "crop_pct": 0.5}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="was made with crop_pct 1.0, and the model has 0.5"):
        search(index, picture(0), model=same)
    vectors = np.ones((3, 64), np.float32)
    with pytest.raises(InputError, match="does not say which model"):
        search(write_index(tmp_path / "a.parquet", vectors), picture(0))
    assert len(search(tmp_path / "a.parquet", picture(0), model=model)[0]) == 3
    gone = write_index(tmp_path / "b.parquet", vectors, facts={"model": str(tmp_path / "gone" / "model" / "folder")})
    with pytest.raises(InputError, match=r"there is no such folder \(the model that .* names; give it with --model"):
        search(gone, picture(0))
    with pytest.raises(InputError, match="have 3 channels, the model's 64"):
        search(write_index(tmp_path / "c.parquet", vectors[:, :3]), picture(0), model=model)


def call(*arguments: object, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run(command.main, [str(argument) for argument in arguments])
    return code, *capfd.readouterr()


def colour_at(sheet: Image.Image, column: int) -> tuple[int, ...]:
    """The mean of a tile of the first row; column 0 is the query."""
    left = MARGIN + (SIDE + WIDE_GAP + (column - 1) * (SIDE + GAP) if column else 0)
    tile = np.asarray(sheet.crop((left, MARGIN, left + SIDE, MARGIN + SIDE)))
    return tuple(tile.reshape(-1, 3).mean(axis=0).round().astype(int).tolist())


def test_the_command_prints_neighbours_and_draws_them(
    photos: Path, index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = photos / "cat" / "07.png"
    data = gone.read_bytes()
    gone.unlink()
    try:
        query = tmp_path / "query.png"
        picture(7).save(query)
        sheet = tmp_path / "new" / "sheet.png"
        code, out, err = call(index, query, photos / "cat" / "05.png", "--top", 19, "--sheet", sheet, capfd=capfd)
    finally:
        gone.write_bytes(data)
    assert code == 0
    result = json.loads(out)
    assert list(result) == ["index", "model", "rows", "exact", "queries", "failed", "unreadable", "sheet"]
    assert (result["model"], result["rows"], result["failed"], result["sheet"]) == (NAME, 20, 1, str(sheet))
    (found,) = result["queries"]
    assert (found["query"], found["neighbours"][0]["image"], len(found["neighbours"])) == (str(query), str(gone), 19)
    assert "unreadable: " in err
    drawn = read_image(sheet)
    box = np.array(Image.new("RGB", (1, 1), BOX).getpixel((0, 0)))
    assert np.abs(np.array(colour_at(drawn, 1)) - box).max() < 20  # gone meanwhile; a little of it is its name
    second = read_image(found["neighbours"][1]["image"])
    for column, shown in ((0, picture(7)), (2, second)):
        expected = np.asarray(shown).reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(colour_at(drawn, column), expected, atol=2)


def test_the_command_shows_pictures_of_a_data_set(
    write_split: WriteSplit, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The rows of a data set have no files: their pictures come from the row groups that hold them."""
    pictures = [encode(picture(number)) for number in range(12)]
    data = write_split([[5, 4], [3]], split="test", images=pictures)
    index = tmp_path / "index"
    write_predictions(NAME, str(data), index, features=[None], split="test")
    query = tmp_path / "query.png"
    picture(10).save(query)
    sheet = tmp_path / "sheet.PNG"
    code, out, err = call(index, query, "--top", 5, "--sheet", sheet, capfd=capfd)
    assert code == 0, err
    neighbours = json.loads(out)["queries"][0]["neighbours"]
    assert (neighbours[0]["row"], neighbours[0]["label_name"]) == (10, "class 0")
    drawn = read_image(sheet)
    for column, neighbour in enumerate(neighbours, 1):
        expected = np.asarray(picture(neighbour["row"])).reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(colour_at(drawn, column), expected, atol=2)
    first = next(data.glob("test-00000*"))
    first.write_bytes(next(data.glob("test-00001*")).read_bytes())
    assert call(index, query, "--top", 5, "--sheet", sheet, capfd=capfd)[0] == 0
    assert "has changed since" in caplog.text
    assert colour_at(read_image(sheet), 1) != colour_at(drawn, 1)


@pytest.mark.parametrize("sources", ["", "{data}", "http://127.0.0.1:9/a.tar"])
def test_nothing_that_only_the_index_names_is_fetched(
    sources: str, write_split: WriteSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of a data set may be called like an address, or like a file of this machine."""
    monkeypatch.setattr("seresnet_hub.data.picture_list.fetch_picture", lambda url: pytest.fail(url))
    data = str(write_split([[2]], split="test"))  # another one than the index was made from
    facts = {"sources": sources.format(data=data), "split": "test"} if sources else {}
    local = tmp_path / "local.png"
    picture(2).save(local)
    images = ["http://127.0.0.1:9/1.png", str(local)]
    index = open_index(write_index(tmp_path / "i.parquet", np.eye(2), images=images, facts=facts))
    neighbours = [{"row": row, "image": image, "similarity": 1.0} for row, image in enumerate(images)]
    write_sheet(tmp_path / "s.png", index, [Query(str(local), 0, None, neighbours)], open_sources([str(local)]))
    sheet = read_image(tmp_path / "s.png")
    is_picture = [np.abs(np.array(colour_at(sheet, column)) - colour_at(sheet, 0)).max() < 3 for column in (1, 2)]
    assert is_picture == [False, not facts]


def test_a_picture_without_a_name_is_called_by_its_row(
    write_split: WriteSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_sources([str(write_split([[2]], split="test"))], split="test")
    index = open_index(write_index(tmp_path / "i.parquet", np.eye(1)))
    drawn: list[list[Tile]] = []
    monkeypatch.setattr(search_sheet, "contact_sheet", lambda rows: drawn.extend(rows) or contact_sheet(rows))
    neighbours = [
        {"row": 962, "image": None, "similarity": 1.0, **names}
        for names in ({"label_name": "tabby, cat"}, {"name_1": "dog"}, {})
    ]
    write_sheet(tmp_path / "s.png", index, [Query(None, 1, None, neighbours)], data)
    assert [(tile.title, tile.detail) for tile in drawn[0]] == [
        ("row 1", ""), ("tabby", "1.000, row 962"), ("dog", "1.000, predicted, row 962"), ("row 962", "1.000"),
    ]  # fmt: skip
    assert [tile.name for tile in drawn[0][1:]] == ["row 962"] * 3


def test_wrong_input_is_one_line(index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for words, message in (
        ([tmp_path / "none.parquet", broken], "none.parquet: no such file"),
        ([index, tmp_path / "none.png"], "none.png: no such file"),
        ([index, broken], "none of the 1 pictures can be read (not an image"),
        ([index, broken, "--sheet", "sheet.jpg"], "let its name end in .png"),
        ([index, broken, "--stage", "3"], "has no column 'features_stage3'; it has features, features_stage2"),
        ([index, broken, "--top", "0"], "top=0: must be at least 1"),
    ):
        code, out, err = call(*words, capfd=capfd)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]


def test_the_index_is_not_held_in_memory(tmp_path: Path) -> None:
    """Only blocks that are read ahead are there, of 10 MB in all."""
    pyarrow = pytest.importorskip("pyarrow")
    from seresnet_hub.inference.embedding_index import open_index
    from seresnet_hub.inference.nearest_rows import nearest

    vectors = np.random.default_rng(0).standard_normal((40_000, 64)).astype(np.float32)  # 10 MB
    opened = open_index(write_index(tmp_path / "index.parquet", vectors, group=1000))
    assert parquet.ParquetFile(opened.path).num_row_groups == 40
    before, most = pyarrow.total_allocated_bytes(), 0

    def watched() -> object:
        nonlocal most
        for block in opened.blocks():
            most = max(most, pyarrow.total_allocated_bytes() - before)
            yield block

    found = nearest(torch.from_numpy(vectors[:3]), watched(), 4)  # type: ignore[arg-type]
    assert found.positions[:, 0].tolist() == [0, 1, 2]
    assert most < 2**22
