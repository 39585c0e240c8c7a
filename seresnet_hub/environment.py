"""Which code made a result, and on what: versions, the commit, the hardware, the CPUs that may be used."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

FEW_PICTURES = 256  # are read sooner than loader workers are started
MOST_LOADER_WORKERS = 12  # as many as keep one GPU busy
PACKAGES = ("torch", "timm", "accelerate", "datasets", "huggingface_hub", "safetensors")


def version() -> str:
    """Return this package's version, `0+unknown` where it runs from a tree that is not installed."""
    try:
        return metadata.version("seresnet-hub")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def package_version() -> str:
    """Return this package's name and version, `seresnet-hub` alone where it runs from a tree that is not installed."""
    return "seresnet-hub" if version() == "0+unknown" else f"seresnet-hub {version()}"


def code_commit() -> str:
    """Return the git commit of the running code, with `-dirty` where files differ from it; "" outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def hardware() -> str:
    """Return the accelerator's name, or how many threads compute on which kind of CPU."""
    import torch  # here, since `--version` needs this module and no torch

    if torch.accelerator.is_available():
        return (
            torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())
        )
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def usable_cpus() -> int:
    """Return how many CPUs this process may use: a scheduler or container may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_workers() -> int:
    """Return how many loader workers suit this machine: one for each CPU that this process may use, but one of many.

    The one is left to the process that computes; with two CPUs both are used, as the workers then wait at times.
    """
    usable = usable_cpus()
    return min(max(usable - 1, min(usable, 2)), MOST_LOADER_WORKERS)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
