"""The loopback double of the Hub, from which loaders are measured that read what is remote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from _benchmark_loader_peers import hub_name

from seresnet_hub.errors import InputError

TESTS = Path(__file__).resolve().parents[1] / "tests"
KINDS = {"parquet": "data", "tar": "", "mds": ""}  # formats, and the folder of a repository that their files lie in
REMOTE_PEERS = ("timm", "datasets", "webdataset", "mosaicml-streaming", "pil")


def require_remote(peers: tuple[str, ...]) -> None:
    """Raise `InputError` where one of them is not measured on what is remote."""
    for peer in peers:
        if peer not in REMOTE_PEERS:
            raise InputError(f"--peer {peer}: --remote measures {', '.join(REMOTE_PEERS)}")


class Remote:
    """The double, with the data sets in it, and what it has counted."""

    def __init__(self, hub: Any, scratch: Path, mode: str) -> None:
        self._hub, self._scratch, self._mode, self._homes = hub, scratch, mode, 0

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a process that asks the double, with a cache that is new, or this loader's."""
        if self._mode == "cold":
            self._homes += 1
        home = self._scratch / "homes" / f"{name}-{self._homes}"
        return {
            **self._hub.environment(home, token=None),
            "HF_HUB_OFFLINE": "0",
            "SERESNET_HUB_CACHE": str(home / "seresnet_hub"),
        }

    def counts(self) -> dict[str, float]:
        """Return the requests so far by what they went to, and the bytes of files that were sent."""
        counted = self._hub.counts()
        requests = {f"{kind}_requests": float(counted[kind]["requests"]) for kind in counted}
        return {**requests, "file_bytes": float(counted["resolver"]["bytes"] + counted["storage"]["bytes"])}


@contextmanager
def served(scratch: Path, options: argparse.Namespace) -> Iterator[Remote]:
    """Serve what was written into `scratch`, as far away and as fast as the options say.

    Errors: `InputError` where this is not a clone, whose tests have the double.
    """
    if not (TESTS / "hub_server.py").is_file():
        raise InputError(f"--remote needs {TESTS / 'hub_server.py'}: run it in a clone of the repository")
    sys.path.append(str(TESTS))
    bandwidth = {} if options.mbit is None else {"bandwidth": options.mbit * 1e6 / 8}
    traffic = import_module("hub_traffic").Traffic(latency=options.latency_ms / 1000, **bandwidth)
    with import_module("hub_server").HubServer(scratch / "hub", traffic=traffic) as hub:
        for kind, folder in KINDS.items():
            files = sorted((scratch / kind).glob("*")) if (scratch / kind).is_dir() else []
            if files:
                hub.create("dataset", hub_name(kind), {str(Path(folder, file.name)): file for file in files})
        yield Remote(hub, scratch, options.remote)
