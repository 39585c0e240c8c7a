"""The errors that commands turn into one line and an exit code: wrong input (2), and another process gone (1)."""

import logging
from collections.abc import MutableMapping
from typing import Any

EXIT_NOT_OK = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def printable(text: str) -> str:
    """Return `text` with escapes for what is no character: names out of a stranger's file may hold terminal codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PrintableLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose messages are `printable`, whatever names they hold: they reach a terminal as well."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            self.logger.log(level, "%s", printable(str(msg) % args if args else str(msg)), stacklevel=3, **kwargs)


class InputError(RuntimeError):
    """Something a person passed in cannot be used; the message names the culprit and the way out, on one line.

    A RuntimeError, as timm raises where weights cannot be had; not a ValueError, which `os.path` functions swallow.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(" ".join(str(message).split())))


def message_of(error: Exception) -> str:
    """Return what a library's error says, or its type where it says nothing."""
    return " ".join(str(error).split())[:500] or type(error).__name__


class LostProcessError(RuntimeError):
    """Another process of the same run is gone or out of reach; the message, on one line, says how to go on."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(" ".join(str(message).split())))


def of_a_dead_worker(error: RuntimeError) -> InputError | None:
    """Return what to say where the error is torch's that a loader worker died, `None` for any other.

    torch raises it from a signal handler, so anywhere in the code.
    """
    if "DataLoader worker" not in str(error):
        return None
    return InputError(f"{error}: a loader worker died, perhaps for want of memory; try --set workers=0")
