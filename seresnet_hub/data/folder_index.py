"""The index of a local folder: all its files, kept in the cache folder, and listed anew only where they changed.

A folder's time of change says whether files were added, removed or renamed in it. So an index that was kept is
compared with one look at each folder, not at each file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from tqdm import tqdm

from seresnet_hub.data import read_image as image_files
from seresnet_hub.errors import InputError, printable
from seresnet_hub.files.atomic_writing import cache_folder, replacing

VERSION = 1  # of what is kept
LARGEST_INDEX = 2**34  # bytes; ImageNet's has 50 million
THREADS = 16
# A file that is added so soon after a listing may leave the folder's time of change as it was.
UNSURE_SECONDS = 3
ENDINGS = frozenset(ImageFolder.EXTENSIONS) & image_files.ENDINGS
OF_THE_SYSTEM = "lost+found"  # a folder at the top of many disks, which only the system reads

# What `datasets` may understand in another way than as one picture of the class that its folder names.
_ALL_ENDINGS = frozenset(ending.removeprefix(".") for ending in ImageFolder.EXTENSIONS)
_PICTURES = frozenset(case(ending[1:]) for ending in ENDINGS for case in (str.lower, str.upper))
_SPECIAL_NAMES = frozenset({*ImageFolder.METADATA_FILENAMES, "task.toml", "instruction.md"})
_SPECIAL_ENDINGS = frozenset({"zip", "eval"})
_ODD = re.compile(r"[\n\\]|::")
_SHARD = re.compile(r".*-[0-9]{5}-of-[0-9]{5}.*\.")


class Times(NamedTuple):
    """When a folder was last changed, in nanoseconds; all 0 is unknown."""

    modified: int = 0
    changed: int = 0


class Folder(NamedTuple):
    """One folder of a tree as it was listed: its pictures in the order of their names, and what lies beside them.

    `path` is relative to the tree's top. `names` has the pictures' names, each with a `/` behind it, and `sizes` their
    bytes. `endings` counts all parts behind a dot of all files' names, in small letters, and `others` the files that
    are no pictures by their last one. `special` names a file that `datasets` may understand in another way than as a
    picture of a class. `error` says why the folder cannot be read.
    """

    path: str
    times: Times
    folders: tuple[str, ...] = ()
    names: bytes = b""
    sizes: np.ndarray = np.array([], np.int64)
    endings: Mapping[str, int] = {}
    others: Mapping[str, int] = {}
    other_names: tuple[str, ...] = ()
    special: str = ""
    error: str = ""

    @property
    def depth(self) -> int:
        """How many folders lead to this one."""
        return len(self.path.split("/")) if self.path else 0

    def pictures(self) -> list[str]:
        """Return the pictures' names."""
        return self.names.decode().split("/")[:-1]

    def same_files(self, other: Folder) -> bool:
        """Return whether both hold pictures of the same names and sizes."""
        return self.names == other.names and np.array_equal(self.sizes, other.sizes)


@dataclass(frozen=True)
class FolderIndex:
    """All folders below `root`, a path without links, in the order of their paths."""

    root: str
    folders: tuple[Folder, ...]

    @cached_property
    def pictures(self) -> int:
        """The number of pictures in all folders."""
        return sum(len(folder.sizes) for folder in self.folders)

    @property
    def unreadable(self) -> list[Folder]:
        """The folders whose pictures are missing, since they may not be read."""
        return [one for one in self.folders if one.error and OF_THE_SYSTEM not in one.path.split("/")]

    def now(self) -> FolderIndex:
        """Return the index of the folders as they are now, this one if nothing changed."""
        return _listed(self.root, self)


def index_of(root: str) -> FolderIndex:
    """Return the index of a folder as it is now; keeps it, and lists only folders that changed since it was kept."""
    root = os.path.realpath(root)
    before = _kept(root)
    index = _listed(root, before)
    if index is not before and index.pictures:
        with suppress(InputError):  # without a cache folder it is listed again next time
            _keep(index)
    return index


def forget(root: str) -> None:
    """Let a folder be listed anew the next time, where what was kept of it is not what is there."""
    with suppress(OSError):
        _file(root).unlink(missing_ok=True)


# ------------------------------------------------------------------ listing


def _listed(root: str, before: FolderIndex | None) -> FolderIndex:
    """Walk the tree level by level, each level's folders side by side."""
    known = {folder.path: folder for folder in before.folders} if before else {}
    found: list[Folder] = []
    level = [""]
    look = partial(_look, root, known)
    title = f"listing {printable(root)}"
    bar = tqdm(desc=title, unit=" files", delay=1.5, mininterval=0.5, leave=False)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        while level:
            here = []
            for folder in pool.map(look, level):
                here.append(folder)
                bar.update(0 if known.get(folder.path) is folder else len(folder.sizes))
            found += here
            level = [f"{one.path}/{name}" if one.path else name for one in here for name in one.folders]
    if before and len(found) == len(known) and all(known.get(folder.path) is folder for folder in found):
        return before
    # As the paths of their files are ordered: "a b/1.jpg" is before "a/1.jpg".
    return FolderIndex(root, tuple(sorted(found, key=lambda folder: f"{folder.path}/")))


def _look(root: str, known: Mapping[str, Folder], path: str) -> Folder:
    place, now = os.path.join(root, path), time.time_ns()
    try:
        state = os.stat(place)
        times = Times(state.st_mtime_ns, state.st_ctime_ns)
        if (before := known.get(path)) and before.times == times:
            return before
        if max(times) > now - UNSURE_SECONDS * 10**9:
            times = Times()
        folder = _scanned(place, path, times)
    except OSError as error:
        before, why = known.get(path), error.strerror or str(error)
        return before if before and before.error == why else Folder(path, Times(), error=why)
    if before and folder.same_files(before) and folder._replace(times=before.times, sizes=before.sizes) == before:
        return before if before.times == times else before._replace(times=times)
    return folder


def _scanned(place: str, path: str, times: Times) -> Folder:
    folders, pictures, others, special = [], [], [], ""
    endings: Counter[str] = Counter()
    with os.scandir(place) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                if name.strip(".") == "" and entry.is_dir():
                    special = name  # "..." is hidden to people, not to `datasets`
                continue
            if entry.is_dir(follow_symlinks=False):
                if not name.startswith("__"):  # as __MACOSX
                    folders.append(name)
                continue
            if not entry.is_file():  # a link may lead to one
                continue
            stem, dot, ending = name.rpartition(".")
            if dot and ending in _PICTURES:
                with suppress(FileNotFoundError):  # removed meanwhile
                    pictures.append((name, entry.stat().st_size))
                if "." in stem:
                    endings.update(part.lower() for part in name.split(".")[1:])
            else:
                others.append(name)
    pictures.sort()
    plain = Counter(name.rpartition(".")[2].lower() for name, _ in pictures if name.count(".") == 1)
    endings.update(plain)
    for name in others:
        endings.update(part.lower() for part in name.split(".")[1:])
    text = "/".join([*folders, *others, *(name for name, _ in pictures)])
    if found := _ODD.search(text) or (path == "data" and _SHARD.search(text)):
        special = found.group()
    special = next(filter(_is_special, others), special)
    names = "".join(f"{name}/" for name, _ in pictures)
    try:
        names.encode(), text.encode()
    except UnicodeEncodeError:
        special = "a name that is no UTF-8"
    return Folder(
        path, times, tuple(sorted(folders)), names.encode(errors="surrogateescape"),
        np.array([size for _, size in pictures], np.int64), dict(endings),
        dict(Counter(_ending(name) for name in others)), tuple(sorted(others)), special,
    )  # fmt: skip


def _is_special(name: str) -> bool:
    parts = name.split(".")[1:]
    small = [part.lower() for part in parts]
    if name in _SPECIAL_NAMES or _SPECIAL_ENDINGS & set(small):
        return True
    # "1.jpg.bak" is a picture to `datasets`, and "1.psd" too, but not "1.Jpg".
    return bool(_ALL_ENDINGS & set(small)) and (len(parts) > 1 or parts[0] in (small[0], small[0].upper()))


def _ending(name: str) -> str:
    ending = Path(name).suffix
    return ending if ending.lower() in ENDINGS else ending.lower()


# ------------------------------------------------------------------ what is kept


def _file(root: str) -> Path:
    return cache_folder() / "folders" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.index"


def _keep(index: FolderIndex) -> None:
    table = [
        [folder.path, folder.times, folder.folders, len(folder.names), len(folder.sizes), folder.endings, folder.others,
         folder.other_names, folder.special, folder.error] for folder in index.folders
    ]  # fmt: skip
    content = io.BytesIO()
    np.savez(
        content, names=np.frombuffer(b"".join(folder.names for folder in index.folders), np.uint8),
        sizes=np.concatenate([folder.sizes for folder in index.folders]),
        table=np.frombuffer(json.dumps([VERSION, index.root, table]).encode(), np.uint8),
    )  # fmt: skip
    with replacing(_file(index.root)) as temporary, temporary.open("wb") as file:
        file.write(xxhash.xxh3_128_digest(content.getbuffer()))
        file.write(content.getbuffer())


def _kept(root: str) -> FolderIndex | None:
    """Return what was kept of a folder, `None` where there is nothing or it is damaged."""
    try:
        content = memoryview(image_files.read_file(_file(root), most=LARGEST_INDEX))
        if xxhash.xxh3_128_digest(content[16:]) != content[:16]:
            return None
        with np.load(io.BytesIO(content[16:]), allow_pickle=False) as arrays:
            version, of, table = json.loads(arrays["table"].tobytes())
            if (version, of) != (VERSION, root):
                return None
            return FolderIndex(root, tuple(_read(table, arrays["names"].tobytes(), arrays["sizes"])))
    except (InputError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _read(table: list[Any], names: bytes, sizes: np.ndarray) -> Iterator[Folder]:
    name, size = 0, 0
    for path, times, folders, length, count, endings, others, other_names, special, error in table:
        yield Folder(path, Times(*times), tuple(folders), names[name : name + length], sizes[size : size + count],
                     endings, others, tuple(other_names), special, error)  # fmt: skip
        name, size = name + length, size + count
