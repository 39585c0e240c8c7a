"""Record what a process does to a folder, and make each folder that a loss of power could leave of it.

How: an audit hook (PEP 578) sees each opening, renaming, removal and new folder before it happens, and a wrapper around
`os.fsync` each flush. At each of them the folder is looked through: what is new or changed since was written meanwhile,
by whichever library. So the log has, in order, new names, new contents, renamings, removals and flushes.

A loss of power after any entry of the log leaves what had been flushed, and of all else whatever is worst:
- A file has the bytes of its last flush, or, where it was written since, none, zeros, half of them or all.
- A new name, a renaming or a removal is there once a folder that it concerns was flushed. Before, each is there or not,
  independent of the others and in any order: a removal may last where the renaming before it does not. POSIX allows
  that; ext4 and others do less.
- Renaming is atomic: a name leads to the old file or to the new one.
- In a folder whose own name is not there, nothing is.

Not covered: blocks of a file that is overwritten in place (nothing here is), a disk that loses what it has confirmed to
have flushed, files beyond the folder that is looked at, and more than one process.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Until which each way to leave out changes is tried; beyond, a sample of them.
MOST_CHANGES = 6
SAMPLED = 24
FOLDER = b"a folder"
ROOT = 0
Name = tuple[str, ...]  # a path in the folder that is looked at, by its parts
State = dict[Name, bytes]  # the files on a disk; folders have the content FOLDER


@dataclass
class Entry:
    """An entry of the log: `kind` is new, content, rename, remove, flush or mark."""

    kind: str
    inode: int = 0
    name: Name = ()
    target: Name = ()
    content: bytes = b""


@dataclass
class Recording:
    root: Path
    log: list[Entry] = field(default_factory=list)
    known: dict[Name, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)  # of each inode that is there: systems use them again
    active: bool = False

    def number_of(self, inode: int) -> int:
        return self.numbers.setdefault(inode, 1 + sum(entry.kind == "new" for entry in self.log))

    def _forget(self, number: int) -> None:
        self.numbers = {inode: known for inode, known in self.numbers.items() if known != number}

    def mark(self, text: str) -> None:
        """Note in the log that something is claimed from here on, as that a state is saved."""
        self._look()
        self.log.append(Entry("mark", content=text.encode()))

    def _name(self, path: Any) -> Name | None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        given = Path(os.path.abspath(os.fsdecode(path)))
        return given.relative_to(self.root).parts if given.is_relative_to(self.root) and given != self.root else None

    def _look(self) -> None:
        """Log what has come into being or was written since the last look."""
        for folder, folders, files in os.walk(self.root):
            for each in [*folders, *files]:
                path = Path(folder, each)
                name = path.relative_to(self.root).parts
                inode = self.number_of(path.stat().st_ino)
                content = FOLDER if path.is_dir() else path.read_bytes()
                if self.known.get(name) != inode:
                    self.known[name] = inode
                    self.log.append(Entry("new", inode, name, content=FOLDER if content == FOLDER else b""))
                if self.contents.get(inode) != content:
                    self.contents[inode] = content
                    self.log.append(Entry("content", inode, name, content=content))

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        self.active = False  # what this does itself is not looked at
        try:
            name = self._name(arguments[0])
            target = self._name(arguments[1]) if event == "os.rename" else None
            if name is None and target is None:
                return
            self._look()
            if event == "os.rename" and name in self.known:
                assert name is not None
                assert target is not None
                self.log.append(Entry("rename", self.known[name], name, target))
                self._forget(self.known.get(target, -1))
                for known in [known for known in self.known if known[: len(name)] == name]:
                    self.known[target + known[len(name) :]] = self.known.pop(known)
            elif event in ("os.remove", "os.rmdir") and name in self.known:
                assert name is not None
                self.log.append(Entry("remove", self.known.pop(name), name))
                self._forget(self.log[-1].inode)
        finally:
            self.active = True

    def flushed(self, descriptor: int) -> None:
        active, self.active = self.active, False
        try:
            self._look()
            self.log.append(Entry("flush", self.number_of(os.fstat(descriptor).st_ino)))
        finally:
            self.active = active


_recording: Recording | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _recording is not None:
        _recording.hook(event, arguments)


@contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """Record what this process does in `root`, which is taken as it is for what was on the disk before."""
    global _recording, _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # which cannot be taken away again
        _hooked = True
    recording = Recording(root.resolve())
    recording.numbers[root.stat().st_ino] = ROOT
    recording._look()
    recording.log.append(Entry("flush", ROOT))
    recording.log += [Entry("flush", inode) for inode in recording.known.values()]
    recording.log.append(Entry("mark"))
    flush: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        if _recording is not None:
            _recording.flushed(descriptor)
        flush(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    _recording, recording.active = recording, True
    try:
        yield recording
        recording.active = False
        recording._look()
    finally:
        recording.active, _recording = False, None
        os.fsync = flush  # type: ignore[assignment]


@dataclass
class Disk:
    """What is on a disk, and what is on its way there."""

    names: dict[int, dict[str, int]] = field(default_factory=dict)  # of each folder: what is flushed
    contents: dict[int, bytes] = field(default_factory=dict)
    written: dict[int, bytes] = field(default_factory=dict)  # and not flushed
    pending: list[tuple[frozenset[int], Callable[[dict[int, dict[str, int]]], None]]] = field(default_factory=list)
    current: dict[Name, int] = field(default_factory=dict)  # as the process sees it
    folders: set[int] = field(default_factory=set)

    def take(self, entry: Entry) -> None:
        if entry.content == FOLDER:
            self.folders.add(entry.inode)
        if entry.kind == "content":
            self.written[entry.inode] = entry.content
        elif entry.kind == "flush":
            if entry.inode in self.written:
                self.contents[entry.inode] = self.written.pop(entry.inode)
            for concerned, change in self.pending:
                if entry.inode in concerned:
                    change(self.names)
            self.pending = [change for change in self.pending if entry.inode not in change[0]]
        elif entry.kind in ("new", "rename", "remove"):
            self._change(entry)

    def _change(self, entry: Entry) -> None:
        above = self._inode_of(entry.name[:-1])
        name, inode = entry.name[-1], entry.inode
        if entry.kind == "new":
            self.current[entry.name] = inode
            self.pending.append((frozenset({above}), lambda names: names.setdefault(above, {}).update({name: inode})))
        elif entry.kind == "remove":
            del self.current[entry.name]
            self.pending.append((frozenset({above}), lambda names: _remove(names, above, name, inode)))
        else:
            to, target = self._inode_of(entry.target[:-1]), entry.target[-1]
            for known in [known for known in self.current if known[: len(entry.name)] == entry.name]:
                self.current[entry.target + known[len(entry.name) :]] = self.current.pop(known)

            def rename(names: dict[int, dict[str, int]]) -> None:
                _remove(names, above, name, inode)
                names.setdefault(to, {})[target] = inode

            self.pending.append((frozenset({above, to}), rename))

    def _inode_of(self, name: Name) -> int:
        return self.current[name] if name else ROOT

    def after_loss(self, seed: int) -> Iterator[State]:
        """Yield each state that a loss of power now could leave, or a sample of them where they are many."""
        ways = itertools.product((False, True), repeat=len(self.pending))
        draw = random.Random(seed)
        if len(self.pending) > MOST_CHANGES:
            none, every = (tuple(both for _ in self.pending) for both in (False, True))
            some = [tuple(draw.random() < 0.5 for _ in self.pending) for _ in range(SAMPLED)]
            ways = iter([none, every, *some])
        for lasting in ways:
            names = {folder: dict(inner) for folder, inner in self.names.items()}
            for (_, change), lasts in zip(self.pending, lasting, strict=True):
                if lasts:
                    change(names)
            for way in ("nothing", "zeros", "half", "all") if self.written else ("all",):
                yield dict(self._files(names, ROOT, (), way))

    def _files(
        self, names: dict[int, dict[str, int]], folder: int, path: Name, way: str
    ) -> Iterator[tuple[Name, bytes]]:
        for name, inode in names.get(folder, {}).items():
            if inode in self.folders:
                yield (*path, name), FOLDER
                yield from self._files(names, inode, (*path, name), way)
                continue
            before, now = self.contents.get(inode, b""), self.written.get(inode)
            if now is None:
                yield (*path, name), before
            else:
                left = {"nothing": before, "zeros": bytes(len(now)), "half": now[: len(now) // 2], "all": now}
                yield (*path, name), left[way]


def _remove(names: dict[int, dict[str, int]], folder: int, name: str, inode: int) -> None:
    if names.get(folder, {}).get(name) == inode:
        del names[folder][name]


def losses(recording: Recording) -> Iterator[tuple[list[str], State]]:
    """Yield what was claimed, and a state of the disk, for each loss of power that could have happened meanwhile.

    Equal ones, one right after the other, are left out. Losses begin after the first mark, which `recorded` makes.
    """
    disk = Disk()
    claimed: list[str] = []
    begun = False
    seen: set[int] = set()
    for number, entry in enumerate(recording.log):
        disk.take(entry)
        if entry.kind == "mark":
            begun = True
            if entry.content:
                claimed.append(entry.content.decode())
                seen.clear()
        if not begun:
            continue
        for state in disk.after_loss(number):
            key = hash(tuple(sorted(state.items())))
            if key not in seen:
                seen.add(key)
                yield list(claimed), state


def written_to(folder: Path, state: State) -> Path:
    """Write a state of the disk into an empty folder."""
    for name, content in state.items():
        path = folder.joinpath(*name)
        if content == FOLDER:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder
