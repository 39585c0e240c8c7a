"""Join processes that a launcher has started anew, and leave them in an error, which torch does not do reliably."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from seresnet_hub.errors import InputError, LostProcessError


def join_again(timeout: timedelta) -> None:
    """Join the processes where torch's launcher has restarted all of them on this one machine; else do nothing.

    The launcher's store keeps the addresses that processes of the start before wrote, and new ones that find those wait
    for the dead (pytorch issue 135712; seen with torch 2.14). So each restart gets names of its own in that store. On
    several machines, each launcher counts its restarts by itself: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the
    environment of the launchers gives each restart a new store.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true"
    rank, world_size = (int(os.environ.get(name, "-1")) for name in ("RANK", "WORLD_SIZE"))
    if not restarts or not shared or world_size != int(os.environ.get("LOCAL_WORLD_SIZE", "-1")):
        return
    if distributed.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", store=PrefixStore(f"restart {restarts}", store),
        rank=rank, world_size=world_size, timeout=timeout,
    )  # fmt: skip


@contextmanager
def left_on_error() -> Iterator[None]:
    """Leave the groups of processes where an error ends this process that it says in one line.

    A thread of gloo's keeps the tensors of a call for a moment after the call. Where Python's interpreter ends within
    it, the process is aborted, with SIGABRT for its exit code (pytorch pull request 179291; seen with torch 2.14). To
    leave the groups waits for those threads. NCCL's groups stay: all processes have to leave those together, and an
    error may be of this one alone. Other errors may come between the calls of a backward pass, whose end depends on the
    other processes.
    """
    try:
        yield
    except (InputError, LostProcessError):
        if distributed.is_initialized() and distributed.get_backend() == "gloo":
            distributed.destroy_process_group()
        raise
