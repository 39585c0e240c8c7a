"""Mounted network file systems must be told from disks, and what is on them read ahead."""

from __future__ import annotations

from pathlib import Path

import pytest

from seresnet_hub.data import mounts
from seresnet_hub.data.mounts import is_far, kind_of

LINES = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /proc rw - proc proc rw
40 22 0:40 / /data rw shared:9 master:2 - nfs4 server:/export rw,vers=4.2
41 40 8:1 / /data/scratch rw - xfs /dev/sdb1 rw
42 22 0:41 / /mnt/my\\040disk rw - fuse.hf-mount hf rw
43 22 0:42 / /mnt/cover rw - ext4 /dev/sdc rw
44 43 0:43 / /mnt/cover rw - lustre mgs@tcp:/fs rw
45 22 0:44 / /win rw - fuseblk /dev/sdd rw
no line
""".splitlines()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"), ("/home/me", "ext4"), ("/data", "nfs4"), ("/data/imagenet/train", "nfs4"),
        ("/database", "ext4"), ("/data/scratch/x", "xfs"), ("/mnt/my disk/x", "fuse.hf-mount"),
        ("/mnt/cover", "lustre"),
    ],
)  # fmt: skip
def test_the_innermost_mount_counts(path: str, kind: str) -> None:
    assert kind_of(path, LINES) == kind


def test_far_is_what_waits_for_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("\n".join(LINES))
    monkeypatch.setattr(mounts, "MOUNTS", str(tmp_path / "mounts"))
    assert [is_far(path) for path in ("/data/x", "/mnt/my disk", "/mnt/cover/x")] == [True] * 3
    assert [is_far(path) for path in ("/x", "/data/scratch", "/win")] == [False] * 3
    (tmp_path / "link").symlink_to("/data/x")
    assert is_far(str(tmp_path / "link"))
    monkeypatch.setattr(mounts, "MOUNTS", str(tmp_path / "none"))
    assert not is_far("/data/x")
