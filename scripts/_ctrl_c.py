"""Answer Ctrl-C with one line while the heavy imports run; imported first, and needs nothing but the interpreter.

`seresnet_hub.command_line.run` takes over from here.
"""

import os
import signal


def _stop(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


signal.signal(signal.SIGINT, _stop)
