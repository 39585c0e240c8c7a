"""A signal to end is remembered, and another one of it costs nothing: neither the state nor the result's line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from seresnet_hub.training.signals import Interruption

# What a script does: it is told to end, ends its training, and is told once more before it has printed its result.
SCRIPT = """
import os, signal, sys
import seresnet_hub_command  # as in a command, so that torch is not loaded
from seresnet_hub.training import signals as interruption
from seresnet_hub.training.signals import Interruption
if sys.argv[1] == "script":
    interruption.end_with_training()
with Interruption() as interrupted:
    for name in sys.argv[2].split():
        os.kill(os.getpid(), getattr(signal, name))
for name in sys.argv[3].split():
    os.kill(os.getpid(), getattr(signal, name))
print(interrupted.name)
"""


def ended(kind: str, within: str, after: str) -> tuple[int, str]:
    command = [sys.executable, "-c", SCRIPT, kind, within, after]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("kind", "within", "after", "code", "said"),
    [
        ("script", "SIGUSR1", "SIGUSR1 SIGUSR1", 0, "SIGUSR1"),
        pytest.param("script", "SIGTERM SIGTERM", "SIGTERM SIGUSR1", 0, "SIGTERM", marks=pytest.mark.slow),
        # A warning at the very end of a run that is complete.
        pytest.param("script", "", "SIGUSR1", 0, "None", marks=pytest.mark.slow),
        # The first word of it: nothing may be left to do.
        pytest.param("script", "", "SIGTERM", -signal.SIGTERM, "", marks=pytest.mark.slow),
        ("library", "SIGUSR1", "SIGUSR1", -signal.SIGUSR1, ""),  # a caller's own signals are its own again
    ],
)
def test_one_more_signal_after_the_training(kind: str, within: str, after: str, code: int, said: str) -> None:
    assert ended(kind, within, after) == (code, said)


def test_handlers_are_those_of_before_again() -> None:
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert (interruption.name, seen) == ("SIGUSR1", [])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
