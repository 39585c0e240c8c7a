"""The README's tables must say what the code does now."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import _tables as tables
import pytest

import seresnet_hub
from seresnet_hub.checkpoints.key_maps import SOURCES
from seresnet_hub.errors import InputError

README = Path(__file__).parents[1] / "README.md"
MEASURED = README.parent / "model_cards"
NAMES = [*tables.TABLES, *tables.MEASURED_TABLES]


def test_the_readme_is_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert tables.fill(text, MEASURED) == text, "run: python scripts/tables.py"


def test_every_model_has_a_row() -> None:
    rendered = tables.variants()
    assert all(f"| `{name}` |" in rendered for name in seresnet_hub.list_models())


def test_stale_tables_are_replaced_and_the_rest_is_kept() -> None:
    marks = "\n".join(f"FIRST\n<!-- table {name} -->\nSTALE\n<!-- end -->\nLAST" for name in NAMES)
    filled = tables.fill(marks, MEASURED)
    assert "STALE" not in filled
    assert filled.count("FIRST") == filled.count("LAST") == len(NAMES)
    assert tables.fill(filled, MEASURED) == filled


def test_a_missing_mark_is_an_error() -> None:
    with pytest.raises(InputError, match="has marks for"):
        tables.fill("no tables here", MEASURED)


def test_measured_tables_say_what_was_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="benchmark_inference.json"):
        tables.speed(tmp_path)
    result = json.loads((MEASURED / "benchmark_inference.json").read_text())
    networks = result["measurements"][0]["networks"]
    networks["fused"]["times_timm"] = 1.2345
    for name in tables.BENCHMARKS:
        (tmp_path / f"benchmark_{name}.json").write_text(json.dumps(result))
    assert tables.speed(tmp_path).count("| 1.234 |") == tables.speed(tmp_path).count(" eager, ") == 2


def test_the_calls_in_the_migration_table_exist() -> None:
    for _, here, _ in tables.MIGRATION:
        for call in here.split("`")[1::2]:
            module, _, rest = call.partition(".")
            if module in ("timm", "seresnet_hub"):
                assert callable(getattr(importlib.import_module(module), rest.split("(")[0])), call
            elif module != "import seresnet_hub":
                assert (README.parent / "scripts" / call.split("scripts/")[1].split()[0]).is_file()


def test_the_table_of_sources_names_them_all() -> None:
    """Protects a reader of the README from looking for a source that is there, or using one that is not."""
    listed = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [source.name for source in SOURCES]
