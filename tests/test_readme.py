"""What the README shows in Python must run as written, and its two marked commands must be one line each to paste."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from seresnet_hub.recipes.recipe import get_recipe, override
from seresnet_hub.training.train import train

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it after the first command: a trained model, and pictures."""
    folder = tmp_path_factory.mktemp("reader")
    train(override(get_recipe("digits"), ["workers=0"]), output=folder / "runs" / "digits", max_steps=2)
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (40, 30), (200, 60, 30)).save(folder / name)
    return folder


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


def test_the_python_blocks_run_in_order(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize("name", ["main", "tests"])
def test_a_marked_command_is_one_line(name: str) -> None:
    marked = re.search(
        rf"<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert marked is not None
    assert marked[1].count("\n") == 1
    assert marked[1].startswith("python3 -m venv .venv && ")
