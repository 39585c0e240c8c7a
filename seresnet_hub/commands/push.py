"""Put a model folder on the Hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from seresnet_hub.commands.parser import command, keywords

EXAMPLE = "seresnet-hub push runs/mine --repo-id NS/NAME --dry-run"


def parser() -> argparse.ArgumentParser:
    parser = command(__doc__, prog="seresnet-hub push", example=EXAMPLE)
    parser.usage = "%(prog)s DIR --repo-id NS/NAME [options]"
    parser.add_argument("directory", metavar="DIR", help="a folder that train or convert wrote, with its exports")
    repository = parser.add_argument_group("the repository")
    repository.add_argument("--repo-id", required=True, metavar="NS/NAME", help="the repository, made if need be")
    repository.add_argument("--private", action="store_true", help="make a new repository private")
    commit = parser.add_argument_group("the commit")
    commit.add_argument("--branch", metavar="B", help="commit to this branch, made if need be (default: main)")
    commit.add_argument("--tag", metavar="T", help="give the commit a tag")
    commit.add_argument("--pr", action="store_true", help="open a pull request")
    commit.add_argument("--message", metavar="M", help="the commit's message (default: Upload and the folder's name)")
    commit.add_argument("--dry-run", action="store_true", help="check everything, change nothing (no login needed)")
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.publishing.push import push

    return push(**keywords(options))
