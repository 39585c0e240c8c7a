"""A recipe's file must mean what it says: fields on top of a base's, and whatever else it holds refused by name."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.field_types import declarations
from seresnet_hub.recipes.recipe import AUTO, RECIPES, Recipe, get_recipe, listed, with_origins
from seresnet_hub.recipes.toml_files import FOLDER, NAMES, as_toml

WHOLE = """
model = "resnet18"
data = "none"
epochs = 2
batch_size = 8
learning_rate = 1
weight_decay = 0.0
crop = "pad"
input_size = "auto"
"""


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_each_recipe_of_the_package_is_a_file_with_a_summary_and_a_comment() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.toml"))
    assert [row["recipe"] for row in listed()] == list(RECIPES) == list(NAMES)
    assert all(row["summary"] for row in listed())
    for path in FOLDER.glob("*.toml"):
        assert path.read_text().startswith("# ")
        assert max(map(len, path.read_text().splitlines())) <= 120


def test_the_recipes_files_are_part_of_the_package() -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    assert "recipes/*.toml" in project["tool"]["setuptools"]["package-data"]["seresnet_hub"]


def test_a_file_holds_what_differs_from_its_base(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", 'base = "rsb_a2"\nepochs = 90  # a comment\ntarget_threshold = "none"\n')
    expected = replace(get_recipe("rsb_a2"), name="mine", epochs=90, target_threshold=None)
    assert get_recipe(path) == get_recipe(Path(path)) == expected


def test_a_base_may_be_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "first.toml", 'base = "digits"\nsummary = "the first"\nepochs = 7\nseed = 3\n')
    second = write(tmp_path / "inner" / "second.toml", 'base = "../first.toml"\nepochs = 9\n')
    recipe, origins = with_origins(second)
    assert recipe == replace(get_recipe("digits"), name="second", epochs=9, seed=3)
    assert (origins["epochs"], origins["seed"]) == (second, str(tmp_path / "inner" / ".." / "first.toml"))
    assert (origins["model"], origins["dropout"]) == ("digits.toml", "default")


def test_a_file_without_a_base_holds_all_that_has_no_default(tmp_path: Path) -> None:
    recipe = get_recipe(write(tmp_path / "whole.toml", WHOLE))
    assert (recipe.name, recipe.model, recipe.data, recipe.input_size) == ("whole", "resnet18", None, AUTO)
    assert isinstance(recipe.learning_rate, float)
    with pytest.raises(InputError, match="part.toml: lacks data, epochs, .*weight_decay.*: set them, or name a recipe"):
        get_recipe(write(tmp_path / "part.toml", 'model = "resnet18"\nbatch_size = 8\ncrop = "pad"\n'))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch = 3", r"mine.toml: epoch: a recipe has no such field; did you mean 'epochs'\?"),
        ("zzz = 3", "mine.toml: zzz: a recipe has no such field; it has: .*epochs"),
        ('name = "x"', "mine.toml: name: a recipe has no such field"),
        ("[epochs]", "mine.toml: epochs = {}: expected a whole number, or auto"),
        ("epochs = true", "mine.toml: epochs = true: expected a whole number, or auto"),
        ("epochs = 3.0", "mine.toml: epochs = 3.0: expected a whole number, or auto"),
        ('epochs = "3"', 'mine.toml: epochs = "3": expected a whole number, or auto'),
        ('epochs = "none"', "expected a whole number, or auto"),
        ('seed = "auto"', 'mine.toml: seed = "auto": expected a whole number$'),
        ("learning_rate = true", "learning_rate = true: expected a number, or auto"),
        ("learning_rate = 2020-01-01", 'learning_rate = "2020-01-01": expected a number, or auto'),
        ("decay_all = 1", "decay_all = 1: expected true or false"),
        ("optimizer = 1", "optimizer = 1: expected a text"),
        ("eval_split = false", "eval_split = false: expected a text, or none"),
        ('crop = "resize"', r"crop = \"resize\": expected one of pad, resized; did you mean 'resized'\?"),
        ("crop = true", "crop = true: expected one of pad, resized"),
        ('scale = "0.5,1"', r"expected 2 numbers, as in \[a, b\], or auto"),
        ("scale = [0.5]", r"scale = \[0.5\]: expected 2 numbers"),
        ("scale = [0.5, true]", r"scale = \[0.5, true\]: expected a number"),
        ("decay_epochs = [1.5]", r"decay_epochs = \[1.5\]: expected a whole number"),
        ("learning_rate = nan", "mine.toml: learning_rate=nan: must be a finite number"),
        (f"learning_rate = 1{'0' * 400}", "learning_rate=inf: must be a finite number"),
        ("dropout = 1", "mine.toml: dropout=1: must be less than 1"),
        ("base_batch_size = 64", "mine.toml: base_batch_size=64: needed with lr_scaling"),
        ("epochs = 3\nwarmup_epochs = 3", "mine.toml: warmup_epochs=3: must be fewer than the 3 epochs"),
        ('eval_split = ""', "mine.toml: eval_split is empty"),
        ("summary = 3", "mine.toml: summary = 3: expected a text"),
        ("epochs = ", "mine.toml is no TOML file: Invalid value .at line 2"),
        ("epochs = 3\nepochs = 4", "mine.toml is no TOML file: Cannot overwrite a value"),
        (f"epochs = {'[' * 10_000}", "mine.toml is no TOML file"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", f'base = "digits"\n{line}\n')
    with pytest.raises(InputError, match=message) as caught:
        get_recipe(path)
    assert str(caught.value).isprintable()


def test_a_wrong_value_in_a_base_is_named_by_the_bases_file(tmp_path: Path) -> None:
    write(tmp_path / "first.toml", f"{WHOLE}seed = true\n")
    with pytest.raises(InputError, match=r"/first.toml: seed = true: expected a whole number$"):
        get_recipe(write(tmp_path / "second.toml", 'base = "first.toml"\nseed = 1\n'))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the recipe .*/none.toml: No such file or directory"):
        get_recipe(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match="cannot read the recipe .*: Is a directory"):
        get_recipe(tmp_path / "folder.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="no TOML file: .*utf-8"):
        get_recipe(tmp_path / "bytes.toml")
    with pytest.raises(InputError, match="cannot read the recipe .*/none.toml: No such file"):
        get_recipe(write(tmp_path / "mine.toml", 'base = "none.toml"\n'))


def test_a_base_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine.toml: base: no recipe 'rsb_a4'; did you mean 'rsb_a\d'\?; there are: "):
        get_recipe(write(tmp_path / "mine.toml", 'base = "rsb_a4"\n'))
    with pytest.raises(InputError, match=r"mine.toml: base = \[\]: expected a text"):
        get_recipe(write(tmp_path / "mine.toml", "base = []\n"))


@pytest.mark.parametrize("bases", [["a"], ["b", "a"], ["b", "c", "b"]])
def test_bases_in_a_circle_are_refused(bases: list[str], tmp_path: Path) -> None:
    for name, base in zip("abc", bases, strict=False):
        write(tmp_path / f"{name}.toml", f'base = "./{base}.toml"\n')
    with pytest.raises(InputError, match=rf"base: the bases go round in a circle: .*a.toml → .*{bases[-1]}.toml$"):
        get_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    printed = as_toml(*with_origins(name, ["seed=3"]))
    assert get_recipe(write(tmp_path / f"{name}.toml", printed)) == replace(get_recipe(name), seed=3)


def test_texts_of_any_characters_survive_printing(tmp_path: Path) -> None:
    data = 'a "b" \\n \n \x7f \x1b[31m é 😀 #'
    recipe = replace(get_recipe("digits"), name="mine", data=data, inductor=('a="b"', "c\\d"), compile=True)
    text = as_toml(recipe, dict.fromkeys(declarations(Recipe), "a file of\nmany lines"))
    assert text.replace("\n", "").isprintable()
    assert get_recipe(write(tmp_path / "mine.toml", text)) == recipe


def test_each_value_says_where_it_comes_from() -> None:
    text = as_toml(*with_origins("rsb_a1", ["epochs=4", "seed=0"]))
    lines = text.splitlines()
    for line in (
        "epochs = 4  # --set", "warmup_epochs = 3  # --set", "seed = 0  # --set", "mixup = 0.2  # rsb_a1.toml",
        "learning_rate = 0.005  # rsb_a2.toml", 'optimizer = "lamb"  # rsb_a2.toml', "momentum = 0.9  # default",
        'num_classes = "none"  # default', "decay_epochs = []  # default", "decay_all = false  # rsb_a2.toml",
    ):  # fmt: skip
        assert line in lines
    assert len(lines) == len(declarations(Recipe)) - 1
