"""Join the processes that a launcher started for a command, and have all of them end where one fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from seresnet_hub.errors import InputError, message_of
from seresnet_hub.training.launchers import processes_started, require_launcher

if TYPE_CHECKING:
    from seresnet_hub.training.processes import Processes

START_AGAIN = "start all of them again with the same command"
Answer = TypeVar("Answer")


@contextmanager
def launched_processes() -> Iterator[Processes | None]:
    """Yield the joined processes where a launcher started several, each with a GPU of its own; `None` for one alone.

    One alone loads nothing for it. `Processes.device` is then also the current GPU. Where a process is lost or fails,
    the others end with one line. Errors: `InputError` where processes were started that know nothing of each other;
    `LostProcessError` where another one is gone.
    """
    require_launcher(os.environ)
    if processes_started(os.environ) < 2:
        yield None
        return
    import tempfile
    from pathlib import Path

    import torch

    from seresnet_hub.training.lost_processes import lost_processes_named, watched
    from seresnet_hub.training.processes import Processes
    from seresnet_hub.training.rendezvous import left_on_error

    with left_on_error(), lost_processes_named(START_AGAIN):
        processes = Processes(
            device_type="cuda" if torch.cuda.is_available() else "cpu", mixed_precision="no", trackers=(),
            folder=Path(tempfile.gettempdir()),  # for trackers, of which there are none
        )  # fmt: skip
        with watched(START_AGAIN):
            processes.require_all_joined(os.environ)
            yield processes
            processes.accelerator.end_training()


def on_all(processes: Processes | None, ask: Callable[[], Answer]) -> Answer:
    """Return what `ask` returns on this process; an error on any process is one on all of them.

    The main process asks first, so that the others find what it has fetched.
    """
    if processes is None:
        return ask()
    answer: Answer | None = None
    own: Exception | None = None
    with processes.main_first():
        try:
            answer = ask()
        except Exception as error:
            own = error
    first = next((one for one in processes.gathered(_said(own)) if one is not None), None)
    if first is not None:
        raise own or _error(first)
    return answer  # type: ignore[return-value]


def on_main(processes: Processes | None, ask: Callable[[], Answer]) -> Answer:
    """Return on all processes what `ask` returns on the main one; an error there is one on all."""
    if processes is None:
        return ask()
    own: list[Exception] = []

    def outcome() -> tuple[Any, Any]:
        try:
            return ask(), None
        except Exception as error:
            own.append(error)
            return None, _said(error)

    answer, said = processes.from_main(outcome)
    if said is not None:
        raise own[0] if own else _error(said)
    return answer


def _said(error: Exception | None) -> tuple[bool, str] | None:
    """Return whether the error is an `InputError`, and its text: other processes may not know its type."""
    return None if error is None else (isinstance(error, InputError), message_of(error))


def _error(said: tuple[bool, str]) -> Exception:
    is_input, text = said
    return (InputError if is_input else RuntimeError)(text)
