"""Read the directory of a zip archive that nothing was compressed into, without believing any number in it.

What differs between readers of zip archives is refused: bytes behind the end, names given twice, members that overlap
or that are named otherwise at their own place.

Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from seresnet_hub.checkpoints.reading_budget import BUDGET, WAY_OUT, Refused

LOCAL_MAGIC = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 2**16
_ENCRYPTED = 0x1


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A member of an archive: the place of its bytes in the file, from `start` on, and their CRC-32.

    A `checksum` of 0 says nothing: PyTorch can be told not to compute any.
    """

    name: str
    start: int
    size: int
    checksum: int
    compressed: bool

    def place(self) -> tuple[int, int]:
        """Return start and size. Errors: `Refused` where the bytes are compressed."""
        if self.compressed:
            raise Refused(
                f"its member {self.name[:100]} is compressed, which torch.save never does: it may be a zip bomb"
            )
        return self.start, self.size


def members_of(view: memoryview) -> dict[str, Member]:
    """Return an archive's members by name. Errors: `Refused` says what is wrong with its directory."""
    count, at, stop = _directory(view)
    found: dict[str, Member] = {}
    runs = []
    for _ in range(count):
        if at + _ENTRY.size > stop:
            raise Refused("its zip archive is damaged: its directory has fewer members than it says")
        fields = _ENTRY.unpack_from(view, at)
        lengths = fields[10:13]
        name = view[at + _ENTRY.size : at + _ENTRY.size + lengths[0]].tobytes()
        extra = view[at + _ENTRY.size + lengths[0] : at + _ENTRY.size + lengths[0] + lengths[1]]
        at += _ENTRY.size + sum(lengths)
        if fields[0] != b"PK\x01\x02" or at > stop:
            raise Refused("its zip archive is damaged: its directory has something else than members")
        member, run = _member(view, name, fields, bytes(extra))
        if member.name in found:
            raise Refused("its zip archive has two members of one name")
        found[member.name] = member
        runs.append(run)
    if at != stop:
        raise Refused("its zip archive is damaged: its directory has more members than it says")
    end = 0
    for start, past in sorted(runs):
        if start < end:
            raise Refused("members of its zip archive overlap: it may be a zip bomb")
        end = past
    if end > stop:
        raise Refused("a member of its zip archive reaches beyond the file: it is truncated")
    return found


def _directory(view: memoryview) -> tuple[int, int, int]:
    """Return the number of members, and where the directory begins and ends."""
    end = len(view) - _END.size
    if end < 0 or bytes(view[end : end + 4]) != b"PK\x05\x06":
        tail = bytes(view[max(0, len(view) - _END.size - _LONGEST_COMMENT) :])
        behind = len(tail) - tail.rfind(b"PK\x05\x06") - _END.size
        if b"PK\x05\x06" in tail and behind > 0:
            raise Refused(
                f"there are {behind} bytes behind the end of its zip archive: get it again, or load it where you "
                f"trust it and save its state_dict() anew"
            )
        raise Refused("its zip archive has no end: it is truncated")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(view, end)
    stop = end
    locator = end - _LOCATOR.size
    if locator >= 0 and bytes(view[locator : locator + 4]) == b"PK\x06\x07":
        _, disk_64, stop, disks = _LOCATOR.unpack_from(view, locator)
        if stop != locator - _END_64.size or disk_64 or disks != 1:
            raise Refused("its zip archive is damaged: its end is not where it says")
        signature, record, _, _, *where = _END_64.unpack_from(view, stop)
        short = (disk, first_disk, here, count, size, start)
        for value, whole, most in zip(short, where, (2**16 - 1,) * 4 + (2**32 - 1,) * 2, strict=True):
            if value != min(whole, most):
                raise Refused("its zip archive is damaged: its two ends differ")
        if signature != b"PK\x06\x06" or record != _END_64.size - 12:
            raise Refused("its zip archive is damaged: its end is not where it says")
        disk, first_disk, here, count, size, start = where
    if disk or first_disk or comment or here != count or start + size != stop:
        raise Refused("its zip archive is damaged: its directory is not where its end says")
    if count > BUDGET.members or size > BUDGET.directory_bytes:
        raise Refused(
            f"its zip archive has {count} members in a directory of {size} bytes; at most {BUDGET.members} and "
            f"{BUDGET.directory_bytes} are read: {WAY_OUT}"
        )
    return count, start, stop


def _member(view: memoryview, name: bytes, fields: tuple[int, ...], extra: bytes) -> tuple[Member, tuple[int, int]]:
    """Return a member and the run of the file that it takes, with what stands before its bytes."""
    flags, method, checksum, packed, size, local = fields[3], fields[4], *fields[7:10], fields[16]
    wanted = [value == 2**32 - 1 for value in (size, packed, local)]
    if any(wanted):
        long = _long_fields(extra)
        values = iter(struct.unpack_from(f"<{sum(wanted)}Q", long) if len(long) >= 8 * sum(wanted) else ())
        try:
            size, packed, local = (
                next(values) if is_long else value for is_long, value in zip(wanted, (size, packed, local), strict=True)
            )
        except (StopIteration, RuntimeError):
            raise Refused("its zip archive is damaged: the size of a member is missing") from None
    text = name.decode("utf-8", "replace")
    if flags & _ENCRYPTED:
        raise Refused(f"its member {text[:100]} is encrypted")
    if local + _LOCAL.size > len(view):
        raise Refused("a member of its zip archive reaches beyond the file: it is truncated")
    signature, *_, name_length, extra_length = _LOCAL.unpack_from(view, local)
    before = local + _LOCAL.size
    if signature != LOCAL_MAGIC or bytes(view[before : before + name_length]) != name:
        raise Refused(f"its zip archive is damaged: the member {text[:100]} is not where its directory says")
    start = before + name_length + extra_length
    compressed = method != 0 or packed != size
    member = Member(name=text, start=start, size=size, checksum=checksum, compressed=compressed)
    return member, (local, start + packed)


def _long_fields(extra: bytes) -> bytes:
    """Return the extra field of a member that has numbers over 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""


def check(view: memoryview, members: Iterable[Member]) -> None:
    """Compare the bytes of members with their checksums. Errors: `Refused` names the one that differs."""
    for member in members:
        start, size = member.place()
        if member.checksum and zlib.crc32(view[start : start + size]) != member.checksum:
            raise Refused(f"its member {member.name[:100]} has not the bytes that it was written with: it is damaged")
