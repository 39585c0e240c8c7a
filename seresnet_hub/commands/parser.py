"""The options of commands: what is common to them, and the refusal of texts that can name nothing."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on the file systems in use
JSON_HELP = "print the result as one line of JSON, as in a pipe"


class Parser(argparse.ArgumentParser):
    """A parser that refuses texts which can name nothing, in every option, before anything is loaded.

    `free` are the options that take any text, `any_bytes` those that take names of files in any encoding.
    """

    free = frozenset({"set", "message", "inductor"})
    any_bytes: frozenset[str] = frozenset()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else [str(text) for text in args]
        for text, before in zip(given, ["", *given], strict=False):
            option, equals, value = text.partition("=") if text.startswith("--") else (before, "=", text)
            if equals and not value.strip() and option != "--message":
                self.error(f"argument {option if option.startswith('-') else repr(text)}: it is empty")
        options = super().parse_args(args, namespace)
        for name, value in vars(options).items():
            for text in _texts(value) if name not in self.free else ():
                if problem := _unusable(text, any_bytes=name in self.any_bytes):
                    self.error(f"argument {name.replace('_', '-')}: {text[:40]!r} {problem}")
        return options

    def error(self, message: str) -> NoReturn:
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # names may hold terminal codes
        super().error(shown)


def _texts(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [text for inner in value for text in _texts(inner)]
    return [str(value)] if isinstance(value, (str, Path)) else []


def _unusable(text: str, *, any_bytes: bool) -> str:
    """Return why a text names no file, model, data set or branch, "" where it may name one."""
    if "\0" in text:
        return "has a zero byte in it"
    try:
        data = os.fsencode(text)
        data.decode("utf-8", "replace" if any_bytes else "strict")
    except UnicodeError:
        return "is no UTF-8, which the files of a model and its card are written in"
    if "://" not in text and (len(data) > LONGEST_PATH or max(map(len, data.split(b"/"))) > LONGEST_NAME):
        return "is longer than the name of a file can be"
    return ""


def keywords(options: argparse.Namespace) -> dict[str, Any]:
    """Return a command's own options as the arguments of the function that they are named after."""
    return {name: value for name, value in vars(options).items() if name != "json"}


def command(description: str | None, *, example: str, prog: str | None = None) -> Parser:
    """Return the parser of a command or a script, with the option that all have; --help ends with `example`."""
    parser = Parser(
        prog=prog, description=description, epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    return parser
