"""The start of every command, imported before the package: one line at Ctrl-C from the first moment, a fast --help.

`import seresnet_hub` registers its models with timm, and so loads torch and timm, which takes seconds. Where this
module was imported first, it does not: a command reads its options, then imports what it needs. This module lies
outside the package, whose own code runs before that of any module in it, and needs the standard library alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn


def _stop(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


# Threads that wait for their next work sleep: by default they spin first, and take the time of loader workers that
# decode on the same cores. It is read when torch is loaded, and a person's own choice stays.
PASSIVE, WITH_PASSIVE = "OMP_WAIT_POLICY", ("predict", "validate", "search")

signal.signal(signal.SIGINT, _stop)  # until `seresnet_hub.commands.result_or_error.run` takes over


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments begin with (default: those of the command line), and exit."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in WITH_PASSIVE:
        os.environ.setdefault(PASSIVE, "passive")
    import seresnet_hub.commands.main

    seresnet_hub.commands.main.main(given)
