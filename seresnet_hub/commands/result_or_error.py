"""How a command runs: a result on standard output, and one clear line where the input was wrong."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from seresnet_hub.commands.terminal import as_table
from seresnet_hub.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_NOT_OK,
    InputError,
    LostProcessError,
    of_a_dead_worker,
)


def start(
    parser: argparse.ArgumentParser,
    main: Callable[[Sequence[str]], dict[str, Any]],
    arguments: Sequence[str] | None = None,
    exit_code: Callable[[argparse.Namespace, dict[str, Any]], int] = lambda *_: 0,
) -> NoReturn:
    """Run a command's `main` on its arguments (default: those of the command line), and exit with its code."""
    options = parser.parse_args(arguments)  # --help and wrong options end here
    import seresnet_hub.models.create  # noqa: F401  # its models are registered with timm, as an import of the package does

    sys.exit(run(main, arguments, as_json=options.json, exit_code=partial(exit_code, options)))


def run(
    main: Callable[[Sequence[str]], dict[str, Any]],
    arguments: Sequence[str] | None = None,
    *,
    as_json: bool = False,
    exit_code: Callable[[dict[str, Any]], int] = lambda _: 0,
) -> int:
    """Run `main` on the arguments and return the exit code: 0, 2 on bad input, 1 on a lost process, 130 on Ctrl-C.

    What `main` returns is printed on standard output, by the first process where several run: as one line of JSON, or
    as a table where that is a terminal and `as_json` does not ask for JSON there too. Whatever it or a library prints
    goes to standard error. A result that says `"ok": false` gives exit code 1, any other what `exit_code` makes of it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        # --help is what was asked for, so argparse may print it on standard output.
        with contextlib.nullcontext() if {"-h", "--help"} & set(given) else contextlib.redirect_stdout(sys.stderr):
            result = main(given)
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
    except OSError as error:  # of a file that somebody named: no fault of the program's
        if error.filename is None or error.strerror is None:
            raise
        print(f"error: {InputError(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if _rank() == "0":
        try:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "it is closed")
            for_a_person = sys.stdout.isatty() and not as_json
            if for_a_person and isinstance(sys.stdout, io.TextIOWrapper):  # class names in any script, on any terminal
                sys.stdout.reconfigure(errors="backslashreplace")
            print(as_table(result) if for_a_person else json.dumps(result, allow_nan=False), flush=True)
        except BrokenPipeError:  # the reader has gone; keep the interpreter from failing again while it flushes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            print(f"error: cannot write the result to standard output: {error.strerror}", file=sys.stderr)
            if sys.stdout is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BAD_INPUT
    return EXIT_NOT_OK if result.get("ok") is False else exit_code(result)


def _rank() -> str:
    """Return this process's number among those a launcher started (torchrun's and accelerate's variable)."""
    return os.environ.get("RANK", "0")
