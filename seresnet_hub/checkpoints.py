"""Read checkpoint files of strangers: tensors and plain containers come out, and nothing in the file is ever executed.

A pickle is a program. This module reads that program without running it: `_Machine` follows the stream's instructions
on records of its own, so that "call os.system" is text to refuse and not a call. Tensors stay descriptions until every
size in them has been held against the bytes that the file really has.

Formats: PyTorch's zip and legacy files, plain pickles of arrays (PaddlePaddle's `.pdparams`), safetensors.
Source: https://docs.python.org/3/library/pickletools.html, https://github.com/huggingface/safetensors (format).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seresnet_hub.errors import InputError

# A SENet-154 with optimizer state, EMA and history is under 3 GB; files above this are not checkpoints of a ResNet.
MAX_FILE_BYTES = 8 * 2**30
# Everything but the tensors: names, configuration, training history.
MAX_PICKLE_BYTES = 256 * 2**20
MAX_DIMENSIONS = 8
READ_BYTES = 8 * 2**20
# Tensors may share a storage (tied weights); a file in which all do it many times over is a bomb.
MAX_SHARING = 4

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_PROTO = b"\x80"

STORAGE_TYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
SAFETENSORS_TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NUMPY_TYPES: dict[str, torch.dtype] = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}

# Mentioning one of these is reason enough to refuse a file: no checkpoint needs them, and every exploit does.
_MODULES = """
    __builtin__ _pickle _posixsubprocess asyncio bdb cffi code codeop commands concurrent ctypes dill fcntl ftplib
    http imp importlib inspect io joblib linecache marshal mmap multiprocessing nt os pdb pickle pickletools pip
    pkgutil platform popen2 posix posixpath profile pty pydoc requests runpy shelve shutil signal site smtplib socket
    socketserver ssl subprocess sys telnetlib tempfile threading timeit trace types urllib venv webbrowser xmlrpc
    zipimport
"""
_BUILTINS = """
    __build_class__ __import__ breakpoint classmethod compile delattr eval exec execfile exit file filter globals
    help input locals map memoryview open print property quit raw_input reload setattr staticmethod super type
    vars
"""
DANGEROUS_MODULES = frozenset(_MODULES.split())
DANGEROUS_BUILTINS = frozenset(_BUILTINS.split())
# Classes that training checkpoints carry beside their weights. They become records that keep what was passed to them.
RECORD_MODULES = frozenset({"mmengine", "mmcv", "mmcls", "mmpretrain"})
RECORD_CLASSES = frozenset(
    {
        "argparse.Namespace", "datetime.date", "datetime.datetime", "datetime.timedelta", "datetime.timezone",
        "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib.WindowsPath",
        "collections.deque", "torch.device", "copyreg._reconstructor", "copy_reg._reconstructor", "builtins.slice",
        "builtins.range", "builtins.complex", "uuid.UUID", "decimal.Decimal", "numpy.random._pickle.__randomstate_ctor",
    }
)  # fmt: skip
WAY_OUT = "nothing in it was run; get the weights as safetensors, or from a source you trust"


class _Refused(InputError):
    """The reason a stream is refused; the file's name is put before it on the way out."""


class _Opaque:
    """Something the stream names or makes that is neither a tensor nor a plain container: kept, and never used."""

    __slots__ = ("arguments", "items", "name", "state")

    def __init__(self, name: str, arguments: Any = None) -> None:
        self.name = name
        self.arguments = arguments
        self.items: dict[Any, Any] = {}
        self.state: Any = None


class _Global(str):
    """The dotted name of something outside the stream: only ever a name."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class _Storage:
    """A run of values in the file: `key` says which, `count` how many of `dtype`, from value `offset` on."""

    key: str
    dtype: torch.dtype
    count: int
    offset: int = 0
    whole: int = 0  # number of values of the run that `offset` counts in


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A view of a storage, described and not yet made."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(kw_only=True)
class _Array:
    """A NumPy array: its bytes, type and shape, as its pickle spells them."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    fortran: bool = False
    data: bytes = b""


@dataclass(kw_only=True)
class _ArrayType:
    code: str
    order: str = "|"

    @property
    def name(self) -> str:
        code = self.code.lstrip("<>|=")
        return (">" if self.order == ">" or self.code.startswith(">") else "<") + ("b1" if code == "?" else code)


class _Mark:
    pass


_MARK = _Mark()


class _Window:
    """The part of a buffer from `start` to `stop` as the file object that `pickletools` reads, without copying it."""

    def __init__(self, data: memoryview, start: int, stop: int) -> None:
        self._data, self._at, self._stop = data, start, stop

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        start, self._at = self._at, min(self._at + count, self._stop)
        return bytes(self._data[start : self._at])

    def readline(self) -> bytes:
        start, chunk = self._at, b""
        while not chunk.endswith(b"\n") and self._at < self._stop:
            piece = bytes(self._data[self._at : min(self._at + 256, self._stop)])
            end = piece.find(b"\n") + 1 or len(piece)
            chunk += piece[:end]
            self._at += end
            if self._at - start > 2**16:
                raise _Refused("it has a line of more than 64 KiB where a name belongs")
        return chunk


def _integers(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise _Refused(f"{what} is no list of at most {MAX_DIMENSIONS} numbers")
    return tuple(_size(value, what) for value in values)


def _said(value: Any) -> str:
    """Return what the stream put somewhere as short text: containers can nest to more text than there is memory."""
    return str(value)[:80] if isinstance(value, (str, int, float, bytes)) else f"a {type(value).__name__.strip('_')}"


def _size(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**40:
        raise _Refused(f"{what} is {_said(value)!r}, which is no size")
    return value


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise _Refused("a tensor has no storage")
    at = _size(offset, "a tensor's offset")
    sizes = _integers(shape, "a tensor's shape")
    strides = _integers(stride, "a tensor's stride")
    if len(sizes) != len(strides):
        raise _Refused(f"a tensor has shape {sizes} and stride {strides}")
    if math.prod(sizes) > storage.count:
        raise _Refused(f"a tensor of shape {sizes} claims more values than the {storage.count} of its storage")
    last = at + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    if math.prod(sizes) and last >= storage.count:
        raise _Refused(f"a tensor of shape {sizes} reaches beyond the {storage.count} values of its storage")
    return _Tensor(storage=storage, offset=at, shape=sizes, stride=strides)


def _same_tensor(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise _Refused("a parameter is no tensor")
    return tensor


def _rebuild_subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(function, str) or function not in TENSOR_BUILDERS or not isinstance(arguments, tuple):
        raise _Refused(f"it makes a tensor with {_said(function)}")
    return TENSOR_BUILDERS[function](*arguments)


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    pairs = arguments[0] if arguments and isinstance(arguments[0], (list, tuple, dict)) else ()
    made: dict[Any, Any] = {}
    for pair in pairs.items() if isinstance(pairs, dict) else pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise _Refused("a dictionary is made of something else than pairs")
        made[_key(pair[0])] = pair[1]
    return made


def _sequence(*arguments: Any) -> list[Any]:
    return list(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else []


def _encoded(text: Any = "", encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise _Refused("bytes are written in an unknown way")
    return text.encode(encoding)


def _array_type(code: Any = "", *_: Any) -> _ArrayType:
    return _ArrayType(code=_said(code))


def _array_from_buffer(data: Any = b"", kind: Any = None, shape: Any = (), order: Any = "C") -> _Array:
    if not isinstance(data, bytes) or not isinstance(kind, _ArrayType):
        raise _Refused("an array has no bytes")
    return _Array(shape=_integers(shape, "an array's shape"), dtype=kind.name, fortran=order == "F", data=data)


def _array_scalar(kind: Any = None, data: Any = b"") -> Any:
    if isinstance(kind, _ArrayType) and isinstance(data, bytes) and kind.name[1:] in NUMPY_TYPES:
        return np.frombuffer(data, kind.name, 1).item() if data else _Opaque("numpy.scalar")
    return _Opaque("numpy.scalar", (data,))


TENSOR_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
}
# The only names that a stream may call, and what is done in their place.
CALLS: dict[str, Callable[..., Any]] = {
    **TENSOR_BUILDERS,
    "torch._utils._rebuild_parameter": _same_tensor,
    "torch._utils._rebuild_parameter_with_state": _same_tensor,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
    "torch.Size": lambda *values: tuple(_sequence(*values)),
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _dictionary,
    "builtins.list": _sequence,
    "builtins.tuple": lambda *values: tuple(_sequence(*values)),
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.bytearray": lambda *values: _encoded(*values) if values and isinstance(values[0], str) else b"",
    "_codecs.encode": _encoded,
    "numpy.dtype": _array_type,
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), lambda *_: _Array()),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _array_scalar),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _array_from_buffer),
}


def _key(value: Any) -> Any:
    """Return `value` if it can be the key of a dictionary without running anything or recursing deeply."""
    if value is None or isinstance(value, (str, bytes, int, float, bool, _Opaque)):
        return value
    if isinstance(value, tuple) and all(item is None or isinstance(item, (str, bytes, int, float)) for item in value):
        return value
    raise _Refused(f"a dictionary has a key of type {type(value).__name__.strip('_')}")


def _named(module: Any, name: Any) -> _Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refused("it names something with what is no text")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    full = f"{module}.{name}"
    if module.split(".")[0] in DANGEROUS_MODULES or (module == "builtins" and name.split(".")[0] in DANGEROUS_BUILTINS):
        raise _Refused(f"it names {full[:100]}, which runs code: {WAY_OUT}")
    return _Global(full)


def _called(function: Any, arguments: Any) -> Any:
    """Return what a call in the stream stands for; errors name the callee that is not on the list."""
    if not isinstance(arguments, tuple):
        raise _Refused("it calls something with no arguments")
    if not isinstance(function, _Global):
        named = function.name if isinstance(function, _Opaque) else type(function).__name__.strip("_")
        raise _Refused(f"it calls what {named[:100]} made: {WAY_OUT}")
    if function in CALLS:
        try:
            return CALLS[function](*arguments)
        except TypeError:
            raise _Refused(f"it calls {function[:100]} with {len(arguments)} arguments") from None
    root, last = function.split(".")[0], function.rsplit(".", 1)[-1]
    is_class_of_a_trainer = root in RECORD_MODULES and last[:1].isupper()
    # mmengine keeps its history's methods as `getattr(HistoryBuffer, "mean")`: a name to record, and no dunder.
    is_method_name = (
        function == "builtins.getattr"
        and len(arguments) == 2
        and isinstance(arguments[0], _Global)
        and arguments[0].split(".")[0] in RECORD_MODULES
        and isinstance(arguments[1], str)
        and not arguments[1].startswith("_")
    )
    if is_class_of_a_trainer or is_method_name or function in RECORD_CLASSES:
        return _Opaque(function, arguments)
    raise _Refused(f"it calls {function[:100]}, which is neither a tensor nor a plain container: {WAY_OUT}")


def _set_items(target: Any, values: list[Any]) -> None:
    if isinstance(target, _Opaque):
        target = target.items
    if not isinstance(target, dict) or len(values) % 2:
        raise _Refused("it sets items of something that has none")
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_key(key)] = value


def _append(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, _Opaque):
        raise _Refused("it appends to something that is no list")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, _Array):
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _ArrayType):
            raise _Refused("an array is not described as NumPy does")
        data = state[4].encode("latin1") if isinstance(state[4], str) else state[4]
        if not isinstance(data, bytes):
            raise _Refused("an array holds objects instead of numbers")
        target.shape, target.dtype = _integers(state[1], "an array's shape"), state[2].name
        target.fortran, target.data = bool(state[3]), data
    elif isinstance(target, _ArrayType):
        if isinstance(state, tuple) and len(state) > 1 and isinstance(state[1], str):
            target.order = state[1]
    elif isinstance(target, _Opaque):
        target.state = state
    elif not isinstance(target, dict):  # an OrderedDict's attributes, such as PyTorch's `_metadata`, are not needed
        raise _Refused(f"it changes the inside of a {type(target).__name__.strip('_')}")


class _Machine:
    """Follows one pickle and returns what it describes, out of `_Tensor`, `_Array`, `_Opaque` and plain containers."""

    def __init__(self, storage: Callable[[Any], Any] | None = None) -> None:
        self._storage = storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, stream: _Window) -> Any:
        """Return the value of the pickle that starts at the stream's position, and leave the stream behind it."""
        self._stack, self._memo = [], {}
        for operation, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # what it uses of a file is there
            if operation.name == "STOP":
                return self._pop()
            self._step(operation.name, argument)
        raise _Refused("its pickle has no end")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Refused("its pickle takes more than it put")
        return self._stack.pop()

    def _top(self) -> Any:
        self._stack.append(top := self._pop())
        return top

    def _pop_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                return values
        raise _Refused("its pickle takes more than it put")

    def _step(self, name: str, argument: Any) -> None:
        push = self._stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                push(_MARK)
            case "POP":
                if not self._stack:
                    raise _Refused("its pickle takes more than it put")
                self._stack.pop()
            case "POP_MARK":
                self._pop_mark()
            case "DUP":
                push(self._top())
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT"
                | "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE"
                | "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
            ):  # fmt: skip
                push(bytes(argument) if isinstance(argument, bytearray) else argument)
            case "EMPTY_LIST" | "EMPTY_SET":
                push([])
            case "EMPTY_DICT":
                push({})
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE":
                push(tuple(self._pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([self._pop() for _ in range(int(name[-1]))])))
            case "LIST" | "FROZENSET":
                push(self._pop_mark())
            case "DICT":
                values = self._pop_mark()
                push({})
                _set_items(self._stack[-1], values)
            case "APPEND":
                value = self._pop()
                _append(self._top(), [value])
            case "APPENDS" | "ADDITEMS":
                values = self._pop_mark()
                _append(self._top(), values)
            case "SETITEM":
                value, key = self._pop(), self._pop()
                _set_items(self._top(), [key, value])
            case "SETITEMS":
                values = self._pop_mark()
                _set_items(self._top(), values)
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise _Refused("its pickle recalls what it never kept")
                push(self._memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top()
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top()
            case "GLOBAL":
                push(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                push(_named(module, attribute))
            case "REDUCE":
                arguments, function = self._pop(), self._pop()
                push(_called(function, arguments))
            case "NEWOBJ" | "NEWOBJ_EX":
                keywords = self._pop() if name == "NEWOBJ_EX" else {}
                arguments, kind = self._pop(), self._pop()
                self._instantiate(kind, (arguments, keywords) if keywords else arguments)
            case "OBJ":
                kind, *rest = self._pop_mark() or [None]
                self._instantiate(kind, tuple(rest))
            case "INST":
                arguments = tuple(self._pop_mark())
                self._instantiate(_named(*argument.split(" ", 1)), arguments)
            case "BUILD":
                state = self._pop()
                _build(self._top(), state)
            case "PERSID" | "BINPERSID":
                identity = argument if name == "PERSID" else self._pop()
                if self._storage is None:
                    raise _Refused("its pickle points outside itself")
                push(self._storage(identity))
            case _:  # extension codes look functions up in this process; out-of-band buffers are not in the file
                raise _Refused(f"its pickle uses the instruction {name}: {WAY_OUT}")

    def _instantiate(self, kind: Any, arguments: Any) -> None:
        """Push a record of an instance: no class is looked up, so none can do harm."""
        if not isinstance(kind, _Global):
            raise _Refused("it makes an instance of something that is no class")
        known = kind in CALLS and isinstance(arguments, tuple)
        self._stack.append(_called(kind, arguments) if known else _Opaque(kind, arguments))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file holds: its state dict's tensors by name, the other top-level entries, and the bytes' sha256.

    `entries` has no tensors: the values in it are plain or opaque. `passed_over` names the other top-level entries that
    hold weights of their own, such as an exponential moving average. `metadata` is a safetensors header's. The hash is
    `digest`'s result: it takes longer than the rest, which can go on meanwhile.
    """

    path: Path
    digest: Future[str]
    tensors: dict[str, torch.Tensor]
    entries: dict[str, Any]
    passed_over: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None

    @property
    def sha256(self) -> str:
        """The sha256 of the file's bytes; waits for it."""
        return self.digest.result()


# Where a file keeps its weights, best first. In timm's and this project's files the average is what is evaluated; in
# mmengine's files `state_dict` is the average already, and `ema_state_dict` the weights without it.
STATE_DICTS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the tensors and the plain contents of a checkpoint file, on the CPU; nothing in the file is executed.

    The file is read once, so what is hashed is what is used. Errors: `InputError` names the file and says what is wrong
    with it: missing, changing, truncated, damaged, too large, of another kind, executable, not finite.
    """
    try:
        buffer, digest = _bytes_of(path)
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        if bytes(view[:4]) != ZIP_MAGIC:
            digest.result()  # bytes of the legacy format are moved within the buffer
        content, find = _parse(view, buffer)
        metadata = content.pop("__metadata__", None) if isinstance(content, _Header) else None
        state_dict, entries, passed_over = _select(content)
        tensors = dict(_materialised(state_dict, find, size=len(view)))
    except _Refused as error:
        raise InputError(f"{path} is refused: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes fail in as many ways as there are bytes
        raise InputError(f"{path} is damaged or no checkpoint: {str(error)[:200] or type(error).__name__}") from error
    return Checkpoint(
        path=path, digest=digest, tensors=tensors, entries=entries, passed_over=passed_over, metadata=metadata
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's state dict, on the CPU; nothing in the file is executed.

    Errors: as for `read_checkpoint`.
    """
    return read_checkpoint(path).tensors


class _Header(dict[str, Any]):
    """A safetensors header, read as a state dict."""


Find = Callable[[_Storage], torch.Tensor]


def _bytes_of(path: Path) -> tuple[torch.Tensor, Future[str]]:
    """Return the whole file as one uint8 tensor, and its sha256 to come; errors where it changes meanwhile."""
    digest = hashlib.sha256()
    hasher = ThreadPoolExecutor(1)  # hashing takes longer than reading: do both at once
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        if not 0 < before.st_size <= MAX_FILE_BYTES:
            raise _Refused("it is empty" if not before.st_size else f"it has {before.st_size} bytes: too many")
        buffer = torch.empty(before.st_size, dtype=torch.uint8)
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        at = 0
        while at < len(view) and (count := file.readinto(view[at : at + READ_BYTES])):
            hasher.submit(digest.update, view[at : at + count])
            at += count
        after = os.fstat(file.fileno())
        grown = file.read(1)
    result = hasher.submit(digest.hexdigest)
    hasher.shutdown(wait=False)
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if changed or grown or at != before.st_size:
        raise _Refused("it changed while it was read; try again when nothing writes to it")
    return buffer, result


def _parse(view: memoryview, buffer: torch.Tensor) -> tuple[Any, Find]:
    """Return the file's content and the function that finds a storage's bytes in it."""
    head = bytes(view[:64])
    if head.startswith(ZIP_MAGIC):
        return _parse_zip(view, buffer)
    if len(view) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < len(view):
        return _parse_safetensors(view, buffer)
    kinds = {
        b"\x89HDF": "it is an HDF5 file (Keras), whose networks stride in the first convolution: there is no converter",
        b"\x1f\x8b": "it is compressed with gzip: unpack it first",
        b"BZh": "it is compressed with bzip2: unpack it first",
        b"\xfd7zXZ": "it is compressed with xz: unpack it first",
        b"\x93NUMPY": "it is a single NumPy array",
        b"<": "it is a web page, not a checkpoint: the download went wrong",
    }
    for magic, meaning in kinds.items():
        if head.startswith(magic):
            raise _Refused(meaning)
    if bytes(view[257:262]) == b"ustar":
        raise _Refused("it is a tar archive (PyTorch before 0.1.10, or packed by hand): save it with a newer PyTorch")
    if not head.startswith(PICKLE_PROTO):
        raise _Refused(
            "it is no PyTorch, safetensors or .pdparams file. (The original Caffe SENets are in timm already, as "
            "legacy_seresnet50, legacy_seresnet101, legacy_seresnet152, legacy_seresnext50_32x4d, "
            "legacy_seresnext101_32x4d and legacy_senet154)"
        )
    return _parse_pickles(view, buffer)


def _storage_of(identity: Any) -> _Storage:
    """Return the storage that a persistent id describes."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] not in ("storage", b"storage"):
        raise _Refused("its pickle points at something that is no tensor's storage")
    kind, key, count = identity[1], identity[2], _size(identity[4], "a storage's size")
    name = kind.rsplit(".", 1)[-1] if isinstance(kind, _Global) and kind.startswith("torch.") else ""
    if name not in STORAGE_TYPES or not isinstance(key, (str, int)):
        raise _Refused(f"a storage is of type {_said(kind)}, which no weights are")
    offset, whole = 0, count
    if len(identity) == 6 and identity[5] is not None:
        if not isinstance(identity[5], tuple) or len(identity[5]) != 3:
            raise _Refused("a storage is a view of an unknown kind")
        offset, count = _size(identity[5][1], "a view's offset"), _size(identity[5][2], "a view's size")
        if offset + count > whole:
            raise _Refused("a view reaches beyond its storage")
    return _Storage(key=str(key), dtype=STORAGE_TYPES[name], count=count, offset=offset, whole=whole)


def _values(buffer: torch.Tensor, start: int, storage: _Storage) -> torch.Tensor:
    """Return the values of `storage`, whose run starts at byte `start`, as a view of the file's bytes if aligned."""
    size = storage.dtype.itemsize
    piece = buffer[start + storage.offset * size : start + (storage.offset + storage.count) * size]
    # The buffer itself starts at a multiple of 64 bytes, so the offset in it decides.
    aligned = piece.storage_offset() % size == 0
    return (piece if aligned else piece.clone()).view(storage.dtype)


def _parse_zip(view: memoryview, buffer: torch.Tensor) -> tuple[Any, Find]:
    with zipfile.ZipFile(_Seekable(view)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise _Refused("its zip archive has two members of one name")
    roots = {name.split("/", 1)[0] for name in members}
    inner = {name.split("/", 1)[1] for name in members if "/" in name}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise _Refused("it is a TorchScript program, which is code: save the model's state_dict() instead")
    if ".data/extern_modules" in inner or any(name.endswith(".py") for name in inner):
        raise _Refused("it is a torch.package archive, which is code: save the model's state_dict() instead")
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(roots) != 1:
        raise _Refused("it is a zip archive, but not one that torch.save writes")
    root = pickles[0].removesuffix("/data.pkl")

    def place(name: str) -> tuple[int, int]:
        member = members.get(name)
        if member is None:
            raise _Refused(f"its zip archive lacks {name}: it is truncated or damaged")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _Refused(f"its member {name} is compressed, which torch.save never does: it may be a zip bomb")
        if member.flag_bits & 0x1:
            raise _Refused(f"its member {name} is encrypted")
        local = member.header_offset
        if bytes(view[local : local + 4]) != ZIP_MAGIC:
            raise _Refused("its zip archive is damaged")
        lengths = (int.from_bytes(view[local + at : local + at + 2], "little") for at in (26, 28))
        start = local + 30 + sum(lengths)
        if start + member.file_size > len(view):
            raise _Refused(f"its member {name} reaches beyond the file: it is truncated")
        return start, member.file_size

    if f"{root}/byteorder" in members:
        start, size = place(f"{root}/byteorder")
        if bytes(view[start : start + size]) != b"little":
            raise _Refused("its numbers are big-endian: save it on a little-endian machine")

    def find(storage: _Storage) -> torch.Tensor:
        if "/" in storage.key:
            raise _Refused(f"a storage is named {storage.key[:40]!r}")
        start, size = place(f"{root}/data/{storage.key}")
        if size != storage.whole * storage.dtype.itemsize:
            raise _Refused(f"a storage of {storage.whole} values has {size} bytes: it is truncated or damaged")
        return _values(buffer, start, storage)

    start, size = place(pickles[0])
    if size > MAX_PICKLE_BYTES:
        raise _Refused(f"its pickle has {size} bytes beside the tensors: too many")
    return _unpickled(_Window(view, start, start + size), _storage_of), find


class _Seekable:
    """A buffer as the read-only file that `zipfile` wants, without copying it."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        if base + offset < 0:
            raise OSError("before the start")
        self._at = base + offset
        return self._at

    def read(self, count: int = -1) -> bytes:
        stop = len(self._view) if count < 0 else self._at + count
        piece = bytes(self._view[self._at : stop])
        self._at += len(piece)
        return piece

    def close(self) -> None:
        pass


def _unpickled(stream: _Window, storage: Callable[[Any], Any] | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in the stream's text: it is not Python that anybody here wrote
        return _Machine(storage).read(stream)


def _parse_pickles(view: memoryview, buffer: torch.Tensor) -> tuple[Any, Find]:
    """Read PyTorch's legacy format (five pickles, then the storages), or a single pickle of arrays."""
    stream = _Window(view, 0, len(view))
    first = _unpickled(stream, _storage_of)
    if first != LEGACY_MAGIC:
        if stream.tell() != len(view):
            raise _Refused("there is something behind its pickle")
        return first, _no_storage
    if _unpickled(stream) != 1001:
        raise _Refused("it is of an unknown legacy version")
    system = _unpickled(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refused("its numbers are big-endian: save it on a little-endian machine")
    used: dict[str, _Storage] = {}

    def remember(identity: Any) -> _Storage:
        storage = _storage_of(identity)
        other = used.setdefault(storage.key, storage)
        if (other.dtype, other.whole) != (storage.dtype, storage.whole):
            raise _Refused("two tensors disagree about the type of their storage")
        return storage

    content = _unpickled(stream, remember)
    keys = _unpickled(stream)
    are_names = isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys)
    if not are_names or {str(key) for key in keys} != set(used) or len(keys) != len(used):
        raise _Refused("its list of storages does not match its tensors")
    # PyTorch puts the storages wherever the pickles end. Moving the bytes once aligns nearly all of them.
    shift = stream.tell() % 8
    if shift:
        ctypes.memmove(buffer.data_ptr(), buffer.data_ptr() + shift, len(view) - shift)
    at, starts = stream.tell() - shift, {}
    for key in map(str, keys):
        size = used[key].whole * used[key].dtype.itemsize
        if int.from_bytes(view[at : at + 8], "little") != used[key].whole or at + 8 + size > len(view) - shift:
            raise _Refused("a storage has fewer bytes than its tensors need: it is truncated or damaged")
        starts[key] = at + 8
        at += 8 + size

    def find(storage: _Storage) -> torch.Tensor:
        return _values(buffer, starts[storage.key], storage)

    return content, find


def _no_storage(storage: _Storage) -> torch.Tensor:
    raise _Refused("its pickle points outside itself")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _Refused("its header has one name twice")
    return table


def _parse_safetensors(view: memoryview, buffer: torch.Tensor) -> tuple[Any, Find]:
    length = int.from_bytes(view[:8], "little")
    if length > MAX_PICKLE_BYTES or 8 + length > len(view):
        raise _Refused("its header is longer than the file: it is truncated or damaged")
    header = json.loads(bytes(view[8 : 8 + length]), object_pairs_hook=_distinct)
    if not isinstance(header, dict):
        raise _Refused("its header is no table")
    content, runs = _Header(), []
    for name, entry in header.items():
        if name == "__metadata__":
            content[name] = {str(key): str(value) for key, value in dict(entry).items()}
            continue
        if not isinstance(entry, dict) or entry.get("dtype") not in SAFETENSORS_TYPES:
            raise _Refused(f"tensor {name!r} is of an unknown type")
        dtype, shape = SAFETENSORS_TYPES[entry["dtype"]], _integers(entry.get("shape"), f"the shape of {name!r}")
        start, stop = _integers(entry.get("data_offsets"), f"the place of {name!r}")
        if stop - start != math.prod(shape) * dtype.itemsize or 8 + length + stop > len(view):
            raise _Refused(f"tensor {name!r} has other bytes than its shape needs: it is truncated or damaged")
        runs.append((start, stop))
        storage = _Storage(key=str(start), dtype=dtype, count=math.prod(shape), whole=math.prod(shape))
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        content[name] = _Tensor(storage=storage, offset=0, shape=shape, stride=stride)
    end = 0
    for start, stop in sorted(runs):
        if start != end:
            raise _Refused("its tensors overlap or leave gaps between them: it is damaged")
        end = stop
    if 8 + length + end != len(view):
        raise _Refused("there is something behind its tensors")
    return content, lambda storage: _values(buffer, 8 + length + int(storage.key), storage)


def _has_weights(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, (_Tensor, _Array)) for item in value.values())


def _select(content: Any) -> tuple[dict[Any, Any], dict[str, Any], tuple[str, ...]]:
    """Return the state dict in a file's content, its other entries, and the names of those that hold weights too."""
    if isinstance(content, _Opaque):
        raise _Refused(f"it is a whole pickled {content.name[:100]}, which is code: save its state_dict() instead")
    if not isinstance(content, dict):
        raise _Refused("it holds no state dict")
    if _has_weights(content):
        return content, {}, ()
    chosen = next((name for name in STATE_DICTS if _has_weights(content.get(name))), None)
    if chosen is None:
        models = [value.name for value in content.values() if isinstance(value, _Opaque)]
        detail = f" (only a pickled {models[0][:100]}: save its state_dict() instead)" if models else ""
        raise _Refused(f"it holds no state dict{detail}")
    passed_over = tuple(str(name) for name, value in content.items() if name != chosen and _has_weights(value))
    entries = {str(name): value for name, value in content.items() if name != chosen and not _has_weights(value)}
    return content[chosen], entries, passed_over


# PaddlePaddle's table of its own names, beside the tensors.
NOT_TENSORS = frozenset({"StructuredToParameterName@@"})


def _materialised(state_dict: Mapping[Any, Any], find: Find, *, size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors by name; `size` is the file's, which they may exceed a little by sharing storages."""
    total = 0
    for name, value in state_dict.items():
        if name in NOT_TENSORS:
            continue
        if not isinstance(name, str):
            raise _Refused(f"its state dict has the key {str(name)[:40]!r}, which is no name")
        if isinstance(value, _Tensor):
            total += math.prod(value.shape) * value.storage.dtype.itemsize
            if total > MAX_SHARING * size:
                raise _Refused(f"its tensors claim more than {MAX_SHARING} times the bytes of the file")
            flat = find(value.storage)
            tensor = flat.as_strided(value.shape, value.stride, flat.storage_offset() + value.offset)
        elif isinstance(value, _Array):
            total += len(value.data)
            if total > MAX_SHARING * size:
                raise _Refused(f"its tensors claim more than {MAX_SHARING} times the bytes of the file")
            tensor = _from_array(name, value)
        else:
            raise _Refused(f"{name[:80]!r} in its state dict is no tensor")
        # A sum is finite only if all its terms are, and takes a fraction of the time of looking at each.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise _Refused(f"tensor {name[:80]!r} has NaN or infinite values")
        yield name, tensor


def _from_array(name: str, array: _Array) -> torch.Tensor:
    dtype = NUMPY_TYPES.get(array.dtype[1:])
    if dtype is None or array.dtype.startswith(">"):
        raise _Refused(f"array {name[:80]!r} is of type {array.dtype[:20]!r}, which no weights are")
    if len(array.data) != math.prod(array.shape) * dtype.itemsize:
        raise _Refused(f"array {name[:80]!r} of shape {array.shape} has {len(array.data)} bytes: it is damaged")
    values = np.frombuffer(array.data, array.dtype).reshape(array.shape, order="F" if array.fortran else "C")
    tensor = torch.from_numpy(values.copy())
    array.data = b""  # the pickle's own copy of the bytes is not needed any more
    return tensor
