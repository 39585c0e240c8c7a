"""A person at a terminal must get a table, with nothing in it that a terminal obeys; a pipe gets the JSON line."""

from __future__ import annotations

import json
import os
import pty
import sys
from contextlib import suppress
from typing import Any

import pytest

from seresnet_hub.commands.result_or_error import run
from seresnet_hub.commands.terminal import as_table, tell
from seresnet_hub.errors import LostProcessError, PrintableLog

RESULT = {"top1": 99.5, "steps": 12345, "stopped": None}


def shown_on_a_terminal(result: dict[str, Any], *, as_json: bool = False, encoding: str = "utf-8") -> str:
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w", encoding=encoding) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert run(lambda _: result, [], as_json=as_json) == 0
    shown = b""
    with suppress(OSError):  # Linux's end of a terminal that nobody writes to any more
        while piece := os.read(reader, 10_000):  # one read may give a part of it
            shown += piece
    os.close(reader)
    return shown.decode(encoding).replace("\r\n", "\n")


def test_a_terminal_gets_a_table_and_json_where_it_is_asked_for() -> None:
    assert shown_on_a_terminal(RESULT) == "top1   99.5\nsteps  12,345\n"
    assert json.loads(shown_on_a_terminal(RESULT, as_json=True)) == RESULT


def test_a_terminal_that_cannot_write_a_character_shows_its_number() -> None:
    assert shown_on_a_terminal({"class": "hawk \u2713"}) == "class  hawk \u2713\n"
    assert shown_on_a_terminal({"class": "hawk \u2713"}, encoding="latin-1") == "class  hawk \\u2713\n"


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


def test_keys_that_a_file_names_are_escaped() -> None:
    args = {"\x1b[2J": 1, "a\u202eb": {"\x07": [1]}}
    text = as_table({"model_args": args, "files": {"\x1b[1m": {"\x1b[2m": "x"}}})
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_what_is_logged_and_told_is_escaped(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    PrintableLog("seresnet_hub.data.loader").warning("left out: %s of %d", "a\x1b[31m\n\u202e", 3)
    assert caplog.messages == [r"left out: a\x1b[31m\n\u202e of 3"]
    tell("a\x1b[31m\u202e")
    assert capfd.readouterr().err == "a\\x1b[31m\\u202e\n"
    assert str(LostProcessError("a\x1b[31m")) == r"a\x1b[31m"


def test_terminal_codes_in_names_are_escaped() -> None:
    classes = [{"name": "\x1b]0;owned\x07", "score": 1.0}]
    text = as_table({"model": "\x1b[2J", "predictions": [{"image": "a\rb.png", "classes": classes}]})
    assert all(character.isprintable() for character in text.replace("\n", ""))
