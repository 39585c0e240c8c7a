"""`seresnet-hub`: list the commands, or run the one that is named."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from seresnet_hub.commands.result_or_error import start
from seresnet_hub.errors import EXIT_BAD_INPUT, printable
from seresnet_hub.recipes.field_types import closest
from seresnet_hub.training.signals import end_with_training

COMMANDS = ("train", "validate", "predict", "search", "convert", "export", "push", "verify")


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the command that the first argument names on the others, and exit with its code.

    `--help` and `--version` are answered on standard output; a wrong name is one line and exit code 2.
    """
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        command = import_module(f"seresnet_hub.commands.{first}")
        end_with_training()
        start(command.parser(), command.main, arguments[1:], getattr(command, "exit_code", lambda *_: 0))
    if first in ("-h", "--help"):
        print(overview())
        sys.exit(0)
    if first == "--version":
        from seresnet_hub.environment import version

        print(f"seresnet-hub {version()}")
        sys.exit(0)
    problem = f"there is no command {printable(first)!r}{closest(first, COMMANDS)}" if first else "name a command"
    print(f"seresnet-hub: error: {problem} (commands: {', '.join(COMMANDS)})", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def overview() -> str:
    """Return what `seresnet-hub --help` prints: each command in one line, then an example of each."""
    modules = {name: import_module(f"seresnet_hub.commands.{name}") for name in COMMANDS}
    width = max(map(len, COMMANDS))
    meanings = [f"  {name:{width}}  {(module.__doc__ or '').splitlines()[0]}" for name, module in modules.items()]
    return "\n".join([
        "usage: seresnet-hub COMMAND [options]", "", "SE-ResNets for timm and the Hugging Face Hub.", "", "commands:",
        *meanings, "", "options:", "  -h, --help  show this message and exit",
        "  --version   show the installed version and exit", "", "examples (`seresnet-hub COMMAND --help` says more):",
        "  seresnet-hub train  # a first run, into runs/digits; it needs no network",
        *(f"  {module.EXAMPLE}" for module in modules.values()),
    ])  # fmt: skip
