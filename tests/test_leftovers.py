"""What killed processes left half-written is removed; nothing of a living process or of another machine is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seresnet_hub.files import leftovers
from seresnet_hub.files.atomic_writing import replacing
from seresnet_hub.files.leftovers import PARTIAL, partial_of, sweep

# Writes half a file and half a folder, says their names, and waits to be killed.
WRITER = """
import sys
import time
from pathlib import Path
import seresnet_hub_command  # as in a command, so that torch is not loaded
from seresnet_hub.files.leftovers import partial_of
with partial_of(Path(sys.argv[1], "file")) as file, partial_of(Path(sys.argv[1], "folder")) as folder:
    file.write_text("half")
    folder.mkdir()
    (folder / "inner").write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(PARTIAL.sub(r"half \g<name>", path.name) for path in folder.iterdir())


def test_only_what_the_dead_left_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        for process in (1, os.getppid(), writer.pid):  # alive, or not here
            (tmp_path / f".other.{process}-00000000-0.partial").touch()
        sweep(tmp_path)
        assert names(tmp_path) == ["half file", "half folder"] + 3 * ["half other"]
        writer.kill()
    sweep(tmp_path)
    assert names(tmp_path) == 3 * ["half other"]


def test_a_write_begins_with_it(tmp_path: Path) -> None:
    """Also of a process that had this one's id: in a container that is started again, each has the one before's."""
    with partial_of(tmp_path / "file") as own:
        own.write_text("half")
        left = own.with_name(own.name.replace("file", "other"))
        left.write_text("half")
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("whole")
        assert names(tmp_path) == ["file", "half file"]
        assert not left.exists()
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "name", ["file.partial", ".file.partial", ".file.12x.partial", ".1.partial", ".file.12-0.partial"]
)
def test_files_that_only_look_like_it_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    sweep(tmp_path, everyones=lambda _: True)
    assert (tmp_path / name).exists()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / ".model.4194304.partial").symlink_to(tmp_path / "kept")
    sweep(tmp_path, everyones=lambda name: name == "model")
    assert names(tmp_path) == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


def test_what_another_machine_left_is_removed_after_a_week(tmp_path: Path) -> None:
    """Nobody here can see whether its process lives; a file that is being written changes."""
    for name in ("old", "new"):
        (tmp_path / f".{name}.4194304-00000000-0.partial").touch()
    week = time.time() - 8 * 24 * 3600
    os.utime(tmp_path / ".old.4194304-00000000-0.partial", (week, week))
    sweep(tmp_path)
    assert names(tmp_path) == ["half new"]


def test_two_threads_never_have_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with partial_of(tmp_path / "file") as first, partial_of(tmp_path / "file") as second:
        assert first != second
        here = PARTIAL.fullmatch(first.name)
        monkeypatch.setattr(leftovers.socket, "gethostname", lambda: "elsewhere")
        leftovers.place.cache_clear()
        with partial_of(tmp_path / "file") as third:
            there = PARTIAL.fullmatch(third.name)
    leftovers.place.cache_clear()
    assert here is not None
    assert there is not None
    assert here["place"] != there["place"]
