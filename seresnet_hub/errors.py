"""The one exception that means "the input was wrong": scripts turn it into one line and exit code 2."""


class InputError(RuntimeError):
    """Something a person passed in cannot be used; the message names the culprit and the way out, on one line.

    A RuntimeError, as timm raises where weights cannot be had; not a ValueError, which `os.path` functions swallow.
    """

    def __init__(self, message: object) -> None:
        line = " ".join(str(message).split())
        # Names out of a stranger's file may hold what a terminal obeys.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))
