"""What every script shares: JSON as the last line of standard output, and one clear line where the input was wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from seresnet_hub.errors import InputError, LostProcessError, of_a_dead_worker

EXIT_NOT_OK = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run(
    main: Callable[[Sequence[str]], dict[str, Any] | tuple[dict[str, Any], int]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run `main` on the arguments and return the exit code: 0, 2 on bad input, 1 on a lost process, 130 on Ctrl-C.

    What `main` returns is printed as one JSON line on standard output, by the first process where several run; whatever
    it or a library prints goes to standard error. A result that says `"ok": false` gives exit code 1, and `main` may
    return another one beside the result.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        # --help is what was asked for, so argparse may print it on standard output.
        with contextlib.nullcontext() if {"-h", "--help"} & set(given) else contextlib.redirect_stdout(sys.stderr):
            returned = main(given)
    except (InputError, LostProcessError) as error:
        where = "" if _rank() == "0" else f"process {_rank()}: "
        print(f"{where}error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_NOT_OK
    except RuntimeError as error:
        known = of_a_dead_worker(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    result, code = returned if isinstance(returned, tuple) else (returned, 0)
    if _rank() == "0":
        try:
            print(json.dumps(result, allow_nan=False), flush=True)
        except BrokenPipeError:  # the reader has gone; keep the interpreter from failing again while it flushes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            print(f"error: cannot write the result to standard output: {error.strerror}", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BAD_INPUT
    return EXIT_NOT_OK if result.get("ok") is False else code


def _rank() -> str:
    """Return this process's number among those a launcher started (torchrun's and accelerate's variable)."""
    return os.environ.get("RANK", "0")
