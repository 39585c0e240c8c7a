"""The table of emulated ImageNet runs, from a folder of results."""

from __future__ import annotations

from pathlib import Path

from _simulate_runs import ACCOUNTS, LOADERS, RUNS_FILE, TRAINED

from seresnet_hub.cards.markdown import table
from seresnet_hub.files.atomic_writing import read_json

# What holds a run up, in words.
WORDS = {
    "GPUs": "the GPUs", "CPU": "decoding", "requests": "the Hub's limit", "network": "the network", "disk": "the disk",
}  # fmt: skip


def simulated(measured: Path) -> str:
    """Return the table of hours that emulated runs take on eight GPUs, and what holds them up."""
    runs = {(run["trained"], run["account"], run["loader"]): run for run in read_json(measured / RUNS_FILE)["runs"]}
    rows = []
    for trained in TRAINED:
        for account in ACCOUNTS:
            found = [runs.get((trained, account, loader)) for loader in LOADERS]
            hours = (f"{run['hours']:.1f} h, {WORDS[run['held_up_by']]}" if run else "" for run in found)
            any_run = next(run for run in found if run)
            name, *settings = trained.split()
            what = " ".join([f"`{name}`", *(f"with `{setting}`" for setting in settings)])
            alone = f"{any_run['hours_of_gpus_alone']:.1f} h"
            rows.append((f"{what}, {any_run['epochs']} epochs, {account} account", *hours, alone))
    return table(("", *LOADERS, "the GPUs alone"), rows)
