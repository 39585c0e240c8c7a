"""Put a model folder on the Hub."""

from __future__ import annotations

import _start  # isort: skip

import argparse
from collections.abc import Sequence
from typing import Any


def parser() -> argparse.ArgumentParser:
    parser = _start.command(__doc__)
    parser.add_argument("directory", metavar="DIR", help="a folder that train.py or convert.py wrote")
    parser.add_argument("--repo-id", required=True, metavar="NS/NAME", help="the repository, made if need be")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--branch", metavar="B", help="commit to this branch, made if need be (default: main)")
    parser.add_argument("--tag", metavar="T", help="give the commit a tag")
    parser.add_argument("--pr", action="store_true", help="open a pull request")
    parser.add_argument("--message", metavar="M", help="the commit's message (default: Upload and the folder's name)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, change nothing (no login needed)")
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    from seresnet_hub.publishing.push import push

    return push(
        options.directory,
        options.repo_id,
        private=options.private,
        branch=options.branch,
        tag=options.tag,
        pr=options.pr,
        message=options.message,
        dry_run=options.dry_run,
    )


if __name__ == "__main__":
    _start.start(parser(), main)
