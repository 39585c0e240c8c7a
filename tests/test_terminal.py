"""A person at a terminal must get a table, with nothing in it that a terminal obeys; a pipe gets the JSON line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

from seresnet_hub.terminal import as_table

PROGRAM = """
import sys
from seresnet_hub.command_line import run
result = {"top1": 99.5, "steps": 12345, "stopped": None, **({"class": "hawk \u2713"} if "class" in sys.argv else {})}
sys.exit(run(lambda _: result, [], as_json="--json" in sys.argv))
"""


def shown_on_a_terminal(*arguments: str, encoding: str = "utf-8") -> str:
    reader, writer = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    text = os.read(reader, 10_000).decode().replace("\r\n", "\n")
    os.close(reader)
    return text


def test_a_terminal_gets_a_table_and_json_where_it_is_asked_for() -> None:
    assert shown_on_a_terminal() == "top1   99.5\nsteps  12,345\n"
    assert json.loads(shown_on_a_terminal("--json")) == {"top1": 99.5, "steps": 12345, "stopped": None}


def test_a_terminal_that_cannot_write_a_character_shows_its_number() -> None:
    assert shown_on_a_terminal("class").endswith("class  hawk \u2713\n")
    assert shown_on_a_terminal("class", encoding="latin-1").endswith("class  hawk \\u2713\n")


def test_lists_of_records_become_tables() -> None:
    classes = [{"index": 3, "name": "cat", "score": 0.828}, {"index": 5, "name": "dog", "score": 0.1}]
    predictions = [{"image": "a.png", "classes": classes}, {"image": "long/b.png", "classes": classes[:1]}]
    assert as_table({"model": "runs/pets", "predictions": predictions}).splitlines() == [
        "model  runs/pets",
        "",
        "predictions:",
        "image       classes",
        "a.png       cat 82.8 %, dog 10.0 %",
        "long/b.png  cat 82.8 %",
    ]
    files = {"config.json": {"hash": "ab", "ok": True}, "model.safetensors": {"hash": "cd", "ok": False}}
    assert as_table({"files": files, "ok": False}).splitlines() == [
        "ok  False",
        "",
        "files:",
        "name               hash  ok",
        "config.json        ab    True",
        "model.safetensors  cd    False",
    ]


def test_long_lists_are_cut() -> None:
    assert as_table({"fresh": list("abcdefghij")}) == "fresh  a, b, c, d, e, f, g, h, i, j"
    assert as_table({"fresh": list("abcdefghijk")}) == "fresh  a, b, c, d, e, f, g, h, … (11 in all)"


def test_terminal_codes_in_names_are_escaped() -> None:
    classes = [{"name": "\x1b]0;owned\x07", "score": 1.0}]
    text = as_table({"model": "\x1b[2J", "predictions": [{"image": "a\rb.png", "classes": classes}]})
    assert all(character.isprintable() for character in text.replace("\n", ""))
