"""The table of emulated ImageNet runs, from a folder of results."""

from __future__ import annotations

from pathlib import Path

from _simulate_runs import ACCOUNTS, LOADERS, RECIPES, RUNS_FILE

from seresnet_hub.cards.markdown import table
from seresnet_hub.files.atomic_writing import read_json

# What holds a run up, in words.
WORDS = {
    "GPUs": "the GPUs", "CPU": "decoding", "requests": "the Hub's limit", "network": "the network", "disk": "the disk",
}  # fmt: skip


def simulated(measured: Path) -> str:
    """Return the table of hours that emulated runs take on eight GPUs, and what holds them up."""
    runs = {(run["recipe"], run["account"], run["loader"]): run for run in read_json(measured / RUNS_FILE)["runs"]}
    rows = []
    for recipe in RECIPES:
        for account in ACCOUNTS:
            found = [runs[recipe, account, loader] for loader in LOADERS]
            hours = (f"{run['hours']:.1f} h, {WORDS[run['held_up_by']]}" for run in found)
            alone = f"{found[0]['hours_of_gpus_alone']:.1f} h"
            rows.append((f"`{recipe}`, {found[0]['epochs']} epochs, {account} account", *hours, alone))
    return table(("", *LOADERS, "the GPUs alone"), rows)
