"""Which local paths are on another machine's disk, so that each reading of them waits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

# How Linux calls file systems that are reached over a network, or through a program that does it.
FAR = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
     "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "vboxsf", "wekafs"}
)  # fmt: skip
MOUNTS = "/proc/self/mountinfo"


def is_far(path: str) -> bool:
    """Return whether a local path is on a mounted network file system; where that cannot be told, it is not."""
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as lines:
            kind = kind_of(os.path.realpath(path), lines)
    except OSError:  # no Linux
        return False
    return kind in FAR or kind.startswith("fuse.")


def kind_of(path: str, mounts: Iterable[str]) -> str:
    """Return the type of the file system that an absolute path is on, by the lines of `/proc/self/mountinfo`.

    A line has the mount point as its fifth field, with spaces as `\\040`, and the type behind a dash (proc(5)).
    """
    longest, kind = "", ""
    for line in mounts:
        mount, _, rest = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 6 or not rest:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        inside = path == point or path.startswith(f"{point.rstrip('/')}/")
        if inside and len(point) >= len(longest):  # of two at one place the later covers the other
            longest, kind = point, rest.split(" ")[0]
    return kind
