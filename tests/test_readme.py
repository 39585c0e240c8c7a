"""What the pages show must hold: Python runs as written, commands run or are valid, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import _tables as tables
import numpy as np
import pytest
from PIL import Image

from seresnet_hub.commands.main import COMMANDS
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.recipes.recipe import get_recipe, override
from seresnet_hub.training.train import train

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*tables.PAGES, "SECURITY.md", "scripts/gpu/README.md"]
# What a block of commands may need that a test does not have; its commands are then checked and not run.
NEEDS = {"the Hub", "ImageNet", "a GPU", "a cluster", "a checkpoint", "minutes", "other code bases",
         "packages of exports"}  # fmt: skip
SHORT = {"train": ["--max-steps", "2", "--set", "workers=0"], "validate": ["--workers", "0"]}
ELSEWHERE = {"hf", "pip", "pytest", "bash"}  # commands of others, and those that tests/test_gpu_kit.py runs


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """Return each block of a page with the mark in the line above it."""
    return re.findall(rf"(?:<!-- ([^\n]*) -->\n)?```{language}\n(.*?)```", text_of(page), re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block, without comments and variables."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in shlex.join(shlex.split(line, comments=True)).split(" '&&' "):
            if part:
                yield shlex.split(part)


def called(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the module with the parser that takes the words, and the words that it takes; None of others' commands."""
    if words[0] == "accelerate":
        words = words[words.index("-m") + 1 :]
        assert words[0] == "seresnet_hub"
        words[0] = "seresnet-hub"
    if words[0] == "seresnet-hub":
        assert words[1] in COMMANDS
        return f"seresnet_hub.commands.{words[1]}", words[2:]
    if words[0] == "python":
        assert (ROOT / words[1]).is_file(), words
        return Path(words[1]).stem, words[2:]
    assert words[0] in ELSEWHERE, words
    return None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it after the first command: a trained model, and pictures."""
    folder = tmp_path_factory.mktemp("reader")
    train(override(get_recipe("digits"), ["workers=0"]), output=folder / "runs" / "digits", max_steps=2)
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (40, 30), (200, 60, 30)).save(folder / name)
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(24):
            pixels = draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    return folder


@pytest.fixture
def reader(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(trained, tmp_path / "reader"))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_the_python_blocks_run_in_order(page: str, reader: Path) -> None:
    names: dict[str, object] = {}
    for _, block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_or_are_valid(
    page: str, reader: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "gpu")
    shutil.rmtree("runs/digits")  # some of them make it
    for mark, block in blocks(page, "bash"):
        if mark in ("main", "tests"):  # which the script of continuous integration runs
            continue
        needs = mark.removeprefix("needs: ")
        assert needs in {*NEEDS, ""}, f"{page}: {mark}"
        for words in commands(block):
            if (call := called(words)) is None:
                assert needs, f"{page}: a block with {words[0]!r} says what it needs"
                continue
            module, arguments = call
            import_module(module).parser().parse_args(arguments)  # exits where an option is wrong
            if words[0] == "seresnet-hub" and not needs:
                code = run(import_module(module).main, [*arguments, *SHORT.get(module.rpartition(".")[2], [])])
                assert code == 0, capfd.readouterr().err


def test_there_are_blocks() -> None:
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 5
    found = [words for page in PAGES for _, block in blocks(page, "bash") for words in commands(block)]
    assert {words[1] for words in found if words[0] == "seresnet-hub"} == {*COMMANDS}


@pytest.mark.parametrize("name", ["main", "tests"])
def test_a_marked_command_is_one_line(name: str) -> None:
    marked = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->", text_of("README.md"), re.DOTALL)
    assert marked is not None
    assert marked[1].count("\n") == 1
    assert marked[1].startswith("python3 -m venv .venv && ")


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= 9000


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    """Names of files of the project in backticks; on the map of the package, relative to the package."""
    for name in re.findall(r"`((?:seresnet_hub|scripts|tests|model_cards)/[\w./-]+\w)`", text_of(page)):
        assert (ROOT / name).exists(), f"{page}: {name}"
    if page == "seresnet_hub/README.md":
        for name in re.findall(r"`(\w+/(?:\w+\.py)?)`", text_of(page).partition("## Modules")[0]):
            assert (ROOT / name).exists() or (ROOT / "seresnet_hub" / name).exists(), name


def test_the_map_names_files_that_exist() -> None:
    package = ROOT / "seresnet_hub"
    named = re.findall(r"`(\w+/(?:\w+\.py)?)`", (package / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    assert [name for name in named if not ((package / name).exists() or (ROOT / name).exists())] == []
