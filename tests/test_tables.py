"""The tables of the pages must say what the code does now."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import _tables as tables
import _tables_package as package_tables
import pytest

import seresnet_hub
from seresnet_hub.checkpoints.key_maps import SOURCES
from seresnet_hub.errors import InputError

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "model_cards"
NAMES = [*tables.TABLES, *tables.MEASURED_TABLES]
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_current(page: str) -> None:
    assert tables.fill(PAGES[page], MEASURED) == PAGES[page], "run: python scripts/tables.py"


def test_each_table_is_on_one_page() -> None:
    assert sorted(name for text in PAGES.values() for name in tables.marks(text)) == sorted(NAMES)


def test_the_map_names_each_module_once_and_says_what_it_does() -> None:
    named = re.findall(r"^### `(.*?)/`|^\| `([\w.]+)` \| (.*) \|$", package_tables.modules(), re.MULTILINE)
    folder, found = "", []
    for heading, module, meaning in named:
        folder = heading or folder
        if module:
            found.append(f"{folder}/{module}")
            assert meaning.endswith("."), found[-1]
    package = ROOT / "seresnet_hub"
    modules = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert sorted(found) == sorted(modules)


def test_the_public_names_are_explained() -> None:
    rows = re.findall(r"^\| `(\w+)(?:\(\))?` \| (.*) \|$", package_tables.api(), re.MULTILINE)
    assert [name for name, _ in rows] == seresnet_hub.__all__
    assert all(meaning.endswith(".") for _, meaning in rows)


@pytest.mark.parametrize(("docstring", "first"), [
    ("One.\n\nTwo.", "One."), ("One\n  and more. Two.", "One and more."), ("No end", "No end"), (None, ""),
    ("See `a.b` e.g. here. Two", "See `a.b` e.g. here."),
])  # fmt: skip
def test_first_sentences(docstring: str | None, first: str) -> None:
    assert package_tables.first_sentence(docstring) == first


def test_every_model_has_a_row() -> None:
    rendered = tables.variants()
    assert all(f"| `{name}` |" in rendered for name in seresnet_hub.list_models())


def test_stale_tables_are_replaced_and_the_rest_is_kept() -> None:
    marks = "\n".join(f"FIRST\n<!-- table {name} -->\nSTALE\n<!-- end -->\nLAST" for name in NAMES)
    filled = tables.fill(marks, MEASURED)
    assert "STALE" not in filled
    assert filled.count("FIRST") == filled.count("LAST") == len(NAMES)
    assert tables.fill(filled, MEASURED) == filled


def test_an_unknown_mark_is_an_error() -> None:
    with pytest.raises(InputError, match="a mark names the table 'nothing'; there are variants, "):
        tables.fill("<!-- table nothing -->\n<!-- end -->", MEASURED)


def test_measured_tables_say_what_was_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="benchmark_inference.json"):
        tables.speed(tmp_path)
    result = json.loads((MEASURED / "benchmark_inference.json").read_text())
    networks = result["measurements"][0]["networks"]
    networks["fused"]["times_timm"] = 1.2345
    for name in tables.NETWORK_BENCHMARKS:
        (tmp_path / f"benchmark_{name}.json").write_text(json.dumps(result))
    assert tables.speed(tmp_path).count("| 1.234 |") == tables.speed(tmp_path).count(" eager, ") == 2


def test_the_calls_in_the_migration_table_exist() -> None:
    for _, here, _ in tables.MIGRATION:
        for call in here.split("`")[1::2]:
            module, _, rest = call.partition(".")
            if module in ("timm", "seresnet_hub"):
                assert callable(getattr(importlib.import_module(module), rest.split("(")[0])), call
            elif module != "import seresnet_hub":
                name, *words = call.split("seresnet-hub " if "seresnet-hub" in call else "seresnet_hub ")[1].split()
                importlib.import_module(f"seresnet_hub.commands.{name}").parser().parse_args(words)


def test_the_commands_and_options_for_users_of_timms_scripts_exist() -> None:
    predict, validate = (import_module_of(name).parser() for name in ("predict", "validate"))
    known = {*predict._option_string_actions, *validate._option_string_actions}
    for _, here, _ in tables.TIMM_SCRIPTS:
        for call in here.split("`")[1::2]:
            if call.startswith("seresnet-hub "):
                _, name, *words = call.split()
                import_module_of(name).parser().parse_args(words)
            else:
                assert call.split()[0] in known, call


def import_module_of(command: str) -> Any:
    return importlib.import_module(f"seresnet_hub.commands.{command}")


def test_the_table_of_sources_names_them_all() -> None:
    """Protects a reader from looking for a source that is there, or using one that is not."""
    listed = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", PAGES["scripts/README.md"], re.MULTILINE)
    assert listed == [source.name for source in SOURCES]
