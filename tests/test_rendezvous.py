"""Processes that torch's launcher has started again must find each other, and wait for none of the dead.

Processes that end in an error must leave the groups, whose threads would abort the interpreter at its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed
from warm_python import run_ranks

from seresnet_hub.training.rendezvous import join_again

# Rank 1 dies in the first start, rank 0 in the second; each start joins, and makes a second group as training does.
SCRIPT = """
import os, signal
from datetime import timedelta
import torch
from torch import distributed
from seresnet_hub.training.rendezvous import join_again
join_again(timedelta(seconds=60))
if not distributed.is_initialized():
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
distributed.new_group(backend="gloo", timeout=timedelta(seconds=60))
number = torch.ones(1)
distributed.all_reduce(number)
if (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]) in (("0", "1"), ("1", "0")):
    os.kill(os.getpid(), signal.SIGKILL)
distributed.all_reduce(number)
if os.environ["RANK"] == "0":
    print(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']} ends with {number.item()}")
"""


@pytest.mark.slow
def test_each_restart_joins_at_its_first_try(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for _ in range(3):  # whether a process reads what a dead one wrote is a race
        done = subprocess.run(
            [*command, "--max_restarts", "2", str(tmp_path / "script.py")],
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "start 2 ends with 4.0\n"), done.stderr[-3000:]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        # Launchers on several machines count for themselves: one number would not mean one start.
        {"TORCHELASTIC_RESTART_COUNT": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
        {"TORCHELASTIC_RESTART_COUNT": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
         "TORCHELASTIC_USE_AGENT_STORE": "False"},
    ],
)  # fmt: skip
def test_whatever_else_is_left_to_accelerate(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    assert "MASTER_ADDR" not in os.environ  # it would be looked for
    join_again(timedelta(seconds=1))
    assert not distributed.is_initialized()


REFUSED = """
import sys
from dataclasses import replace
from torch import distributed
from seresnet_hub.errors import InputError
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import lost_processes, train

joined, watched = [], lost_processes.watched
def watching(*way_out):
    joined.append(distributed.get_world_size())
    return watched(*way_out)
train.watched = watching
try:
    train.train(replace(get_recipe("digits"), workers=0), data=sys.argv[1], output=sys.argv[2])
except InputError as error:
    print(joined, distributed.is_initialized(), error)
"""


def test_training_that_is_refused_leaves_the_groups(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, where a folder must be")
    done = run_ranks([sys.executable, "-c", REFUSED, tmp_path, tmp_path / "run"], 2)
    assert [one.stdout.startswith("[2] False ") for one in done] == [True, True], [
        one.stdout + one.stderr for one in done
    ]
