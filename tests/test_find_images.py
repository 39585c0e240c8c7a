"""Only a person's own pictures are looked at: not the curves and matrices that models and reports come with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from seresnet_hub.data import folder_index
from seresnet_hub.errors import InputError
from seresnet_hub.inference.sources import open_sources, picture_name
from seresnet_hub.models.names import is_model_name


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of runs and one of pictures, one of which has a `config.json` of something else."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "runs/digits/config.json", "runs/digits/model.safetensors", "runs/digits/curves.png",
        "runs/digits/samples/3/a.png", "runs/begun/training/lock.json", "runs/begun/training/log.png",
        "runs/stopped/summary.csv", "runs/stopped/curves.png", "runs/report/per_class.csv",
        "runs/report/confusion.png", "photos/config.json", "photos/cats/1.png", "photos/cats/training/2.png",
    ):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")


def pictures(given: str) -> list[str | None]:
    split = open_sources([given])
    return [picture_name(split, row) for row in range(split.rows)]


def test_pictures_of_models_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    own = ["photos/cats/1.png", "photos/cats/training/2.png"]
    assert pictures("photos") == own
    assert caplog.messages == ["photos: left out, as they are not called like pictures: 1 file (photos/config.json …)"]
    assert pictures(".") == own
    assert (
        ".: 5 images that belong to models, runs or reports were left out (runs/begun/training/log.png …)"
        in caplog.text
    )


def test_what_training_reads_is_found_too() -> None:
    for ending in folder_index.ENDINGS:
        Path(f"photos/cats/3{ending}").write_bytes(b"")
    found = {Path(name or "").suffix for name in pictures("photos")}
    assert found == folder_index.ENDINGS > {".jfif", ".jpe", ".apng", ".pbm", ".pgm", ".pnm"}
    assert not any(is_model_name(f"missing{ending}") for ending in folder_index.ENDINGS)


@pytest.mark.parametrize("name", ["runs", "runs/begun", "runs/stopped", "runs/report"])
def test_where_nothing_else_is_there_it_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: the images in this folder \({name}/.*png …\) belong to models"):
        pictures(name)


def test_a_picture_that_is_named_itself_is_taken() -> None:
    assert pictures("runs/digits/curves.png") == ["runs/digits/curves.png"]


def test_the_command_leaves_them_out() -> None:
    from seresnet_hub.commands import predict
    from seresnet_hub.models.published_weights import OWN_WEIGHTS

    for path in Path("photos").rglob("*.png"):
        Image.new("RGB", (8, 8)).save(path)
    found = predict.main([OWN_WEIGHTS[0].name, "."])
    assert [prediction["image"] for prediction in found["predictions"]] == [
        "photos/cats/1.png", "photos/cats/training/2.png"
    ]  # fmt: skip


def test_standard_input_without_an_end_is_not_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from seresnet_hub.commands import predict
    from seresnet_hub.data import read_image as opening
    from seresnet_hub.inference import sources

    class Endless:
        def read(self, most: int = -1) -> bytes:
            assert 0 <= most <= 1001, "it reads all there is"
            return bytes(most)

    monkeypatch.setattr(opening, "MOST_BYTES", 1000)
    monkeypatch.setattr(sources, "MOST_BYTES", 1000)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Endless()))
    with pytest.raises(InputError, match=r"too large a picture \(1,001 bytes"):
        predict.main(["-"])
