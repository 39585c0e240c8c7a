"""Whatever a checkpoint file is made to be, reading it runs nothing, ends soon, in little memory, and in words."""

from __future__ import annotations

# What pickletools and messages import where they first need it: that they load bytecode is no file's doing.
import encodings.ascii
import encodings.raw_unicode_escape
import encodings.unicode_escape  # noqa: F401
import json
import pickle
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_seeds import SEEDS, mutated
from fuzzing import Case, attack
from hostile_checkpoints import BOMBS
from test_reader import WRAPPERS, attacks

import seresnet_hub
from seresnet_hub.checkpoints.key_maps import find_source
from seresnet_hub.checkpoints.reader import read_checkpoint
from seresnet_hub.checkpoints.renaming import rename, unwrapped

FEW, MANY = 300, 10_000
# Each is small, and took minutes or gigabytes; the others are of the same kinds, or large.
QUICK_BOMBS = (
    "encoded_text", "encoded_wide_text", "copied_lists", "shared_arrays", "long_equal_keys", "colliding_places",
    "long_names", "long_storage_names", "doubled_tuples", "list_in_itself", "table_in_itself", "far_places",
    "overlapping_members", "many_members_of_one_place", "deep_header", "deep_config", "empty_tensors_of_absurd_shape",
)  # fmt: skip
LIBRARIES = (
    *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}, sys.prefix, sys.base_prefix, "/proc/",
    "/usr/", str(Path(seresnet_hub.__file__).parent), str(Path(__file__).parent),
)  # fmt: skip


def read(path: Path) -> str:
    """Do with a file what a conversion does before it makes a network."""
    checkpoint = read_checkpoint(path)
    raw = unwrapped(checkpoint.tensors)
    kind = find_source(raw)
    if kind.read_settings:
        kind.read_settings(checkpoint.entries, path.name)
    rename(kind, raw)
    return f"{len(checkpoint.sha256)} digits, {len(raw)} tensors of {kind.name}"


class Files:
    """Cases whose files exist only while they are next: ten thousand of them need the room of a batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def may_open(self, path: str) -> bool:
        # Python looks for the source of a configuration that is no Python, under the name that it has itself.
        return path == "<unknown>" or path.startswith((str(self.folder), *LIBRARIES))

    def cases(self, contents: Iterator[tuple[str, bytes]]) -> Iterator[Case]:
        for number, (name, content) in enumerate(contents):
            path = self.folder / f"{number}.pth"
            path.write_bytes(content)
            (self.folder / f"{number - 400}.pth").unlink(missing_ok=True)
            yield Case(name, path, len(content))


def check(folder: Path, contents: Iterator[tuple[str, bytes]], *, batch: int = 200) -> dict[str, object]:
    files = Files(folder)
    report = attack(read, files.cases(contents), may_open=files.may_open, batch=batch)
    assert not report.findings, [(finding.name, finding.kind, finding.detail[-800:]) for finding in report.findings[:5]]
    assert all(outcome.detail for outcome in report.outcomes)
    assert all(outcome.detail.isprintable() for outcome in report.outcomes if outcome.kind == "refused")
    print(json.dumps(report.summary()))
    return report.summary()


def harmful(canary: Path) -> Iterator[tuple[str, bytes]]:
    for name, payload in attacks(canary).items():
        pickled = payload if isinstance(payload, bytes) else pickle.dumps({"state_dict": {"w": payload}}, protocol=2)
        for wrapper, wrap in WRAPPERS.items():
            yield f"{name}, {wrapper}", wrap(pickled)


def test_the_seeds_are_read(tmp_path: Path) -> None:
    """Protects the tests below from beginning with what is refused anyway."""
    for name, make in SEEDS.items():
        path = tmp_path / "a.pth"
        path.write_bytes(make())
        assert read_checkpoint(path).tensors, name


def test_what_runs_code_is_refused(tmp_path: Path) -> None:
    """Protects from every way in that is known, in each format: refused, with no event of a process or a connection."""
    summary = check(tmp_path, harmful(tmp_path / "canary"))
    assert summary["refused"] == summary["cases"]
    assert not (tmp_path / "canary").exists()


def test_small_files_that_ask_for_much_are_refused(tmp_path: Path) -> None:
    """Protects time and memory from files of a megabyte or two that took minutes or gigabytes."""
    summary = check(tmp_path, ((name, BOMBS[name]()) for name in QUICK_BOMBS))
    assert summary["refused"] == summary["cases"]


def test_mutations(tmp_path: Path) -> None:
    """Protects from what nobody thought of."""
    summary = check(tmp_path, mutated(FEW, seed=1))
    assert summary["cases"] == FEW
    assert {"accepted", "refused"} <= summary.keys()


@pytest.mark.slow
def test_all_files_that_ask_for_much(tmp_path: Path) -> None:
    """Protects as above, with files of up to 400 MB."""
    summary = check(tmp_path, ((name, make()) for name, make in BOMBS.items()), batch=1)
    assert summary["refused"] == summary["cases"]


@pytest.mark.slow
def test_many_mutations(tmp_path: Path) -> None:
    """Protects as above, on many more files."""
    assert check(tmp_path, mutated(MANY, seed=2))["cases"] == MANY
