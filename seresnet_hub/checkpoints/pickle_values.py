"""What a pickle of a checkpoint may describe: tensors and arrays as descriptions, plain containers, records.

`CALLS` lists everything that a stream may call, and `called` decides; nothing outside this module is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seresnet_hub.checkpoints.dtypes import NUMPY_TYPES, STORAGE_TYPES
from seresnet_hub.checkpoints.reading_budget import BUDGET, WAY_OUT, Account, Refused

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
# Bytes in a stream from this number on stay where they are in the file; fewer are copied out of it.
LARGE = 4096
PIECE = 2**20
ENCODINGS = ("latin1", "latin-1", "utf-8", "ascii")


class LongBytes:
    """Many bytes that were encoded from text, in memory that a tensor can use as it is."""

    __slots__ = ("values",)

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


Bytes = bytes | bytearray | memoryview | LongBytes


class Opaque:
    """Something the stream names or makes that is neither a tensor nor a plain container: kept, and never used."""

    __slots__ = ("arguments", "items", "name", "state")

    def __init__(self, name: str, arguments: Any = None) -> None:
        self.name = name
        self.arguments = arguments
        self.items: dict[Any, Any] = {}
        self.state: Any = None


class Global(str):
    """The dotted name of something outside the stream: only ever a name."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """A run of values in the file: `key` says which, `count` how many of `dtype`, from value `offset` on."""

    key: str
    dtype: torch.dtype
    count: int
    offset: int = 0
    whole: int = 0  # number of values of the run that `offset` counts in


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A view of a storage, described and not yet made."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(kw_only=True, slots=True)
class Array:
    """A NumPy array: its bytes, type and shape, as its pickle spells them."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    fortran: bool = False
    data: Bytes = b""


@dataclass(kw_only=True, slots=True)
class ArrayType:
    code: str
    order: str = "|"

    @property
    def name(self) -> str:
        code = self.code.lstrip("<>|=")
        return (">" if self.order == ">" or self.code.startswith(">") else "<") + ("b1" if code == "?" else code)


def byte_count(data: Bytes) -> int:
    return len(data.values if isinstance(data, LongBytes) else data)


# --- checks -----------------------------------------------------------------------------------------------------------


def kind_of(value: Any) -> str:
    return type(value).__name__


def said(value: Any) -> str:
    """Return what the stream put somewhere as short text: containers can nest to more text than there is memory."""
    if isinstance(value, (str, bytes)):
        return str(value[:80])[:80]
    return str(value)[:80] if isinstance(value, (int, float)) else f"a {kind_of(value)}"


def integers(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > BUDGET.dimensions:
        raise Refused(f"{what} is no list of at most {BUDGET.dimensions} numbers")
    return tuple(as_size(value, what) for value in values)


def as_size(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**40:
        raise Refused(f"{what} is {said(value)!r}, which is no size")
    return value


def as_key(account: Account, value: Any) -> Any:
    """Return `value` if it can be the key of a dictionary without running anything, recursing or hashing for long."""
    if isinstance(value, (str, bytes)):
        if len(value) > BUDGET.key_characters:
            raise Refused(f"a dictionary has a key of {len(value)} characters")
        return value
    if type(value) is int and -(2**31) <= value < 2**31:  # too few of these share their last bits
        return value
    account.spend("number_keys", 1)
    if value is None or isinstance(value, (float, Opaque)):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    if isinstance(value, tuple) and len(value) <= BUDGET.key_parts:
        for item in value:
            if isinstance(item, (tuple, Opaque)):
                break
            if isinstance(as_key(account, item), (str, bytes)):  # "a" and b"a" have one hash, and so do tuples of them
                account.spend("number_keys", 1)
        else:
            return value
    raise Refused(f"a dictionary has a key of type {kind_of(value)}")


def storage_of(identity: Any) -> Storage:
    """Return the storage that a persistent id describes."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] not in ("storage", b"storage"):
        raise Refused("its pickle points at something that is no tensor's storage")
    kind, key, count = identity[1], identity[2], as_size(identity[4], "a storage's size")
    name = kind.rsplit(".", 1)[-1] if isinstance(kind, Global) and kind.startswith("torch.") else ""
    if name not in STORAGE_TYPES:
        raise Refused(f"a storage is of type {said(kind)}, which no weights are")
    if not isinstance(key, (str, int)) or len(str(key)) > BUDGET.name_characters:
        raise Refused(f"a storage is named {said(key)!r}")
    offset, whole = 0, count
    if len(identity) == 6 and identity[5] is not None:
        if not isinstance(identity[5], tuple) or len(identity[5]) != 3:
            raise Refused("a storage is a view of an unknown kind")
        offset, count = as_size(identity[5][1], "a view's offset"), as_size(identity[5][2], "a view's size")
        if offset + count > whole:
            raise Refused("a view reaches beyond its storage")
    return Storage(key=str(key), dtype=STORAGE_TYPES[name], count=count, offset=offset, whole=whole)


# --- what calls make --------------------------------------------------------------------------------------------------


def _rebuild_tensor(account: Account, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise Refused("a tensor has no storage")
    at = as_size(offset, "a tensor's offset")
    sizes = integers(shape, "a tensor's shape")
    strides = integers(stride, "a tensor's stride")
    if len(sizes) != len(strides):
        raise Refused(f"a tensor has shape {sizes} and stride {strides}")
    if math.prod(sizes) > storage.count:
        raise Refused(f"a tensor of shape {sizes} claims more values than the {storage.count} of its storage")
    last = at + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    if math.prod(sizes) and last >= storage.count:
        raise Refused(f"a tensor of shape {sizes} reaches beyond the {storage.count} values of its storage")
    return Tensor(storage=storage, offset=at, shape=sizes, stride=strides)


def _same_tensor(account: Account, tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Refused("a parameter is no tensor")
    return tensor


def _rebuild_subclass(account: Account, function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(function, str) or function not in TENSOR_BUILDERS or not isinstance(arguments, tuple):
        raise Refused(f"it makes a tensor with {said(function)}")
    account.spend("elements", len(arguments))
    return TENSOR_BUILDERS[function](account, *arguments)


def _dictionary(account: Account, *arguments: Any) -> dict[Any, Any]:
    pairs = arguments[0] if arguments and isinstance(arguments[0], (list, tuple, dict)) else ()
    account.spend("elements", len(pairs))
    made: dict[Any, Any] = {}
    for pair in pairs.items() if isinstance(pairs, dict) else pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Refused("a dictionary is made of something else than pairs")
        made[as_key(account, pair[0])] = pair[1]
    return made


def _list(account: Account, *arguments: Any) -> list[Any]:
    values = arguments[0] if arguments and isinstance(arguments[0], (list, tuple)) else ()
    account.spend("elements", len(values))
    return list(values)


def _tuple(account: Account, *arguments: Any) -> tuple[Any, ...]:
    return tuple(_list(account, *arguments))


def encoded(account: Account, text: Any = "", encoding: Any = "latin1") -> Bytes:
    """Return a text as bytes; where they are many, piece by piece into memory that a tensor can use."""
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding not in ENCODINGS:
        raise Refused("bytes are written in an unknown way")
    account.spend("encoded", len(text))
    if len(text) <= LARGE:
        return text.encode(encoding)
    if encoding == "utf-8" and not text.isascii():
        raise Refused(f"it writes {len(text)} bytes as UTF-8")
    made = np.empty(len(text), np.uint8)
    for at in range(0, len(text), PIECE):
        made[at : at + PIECE] = np.frombuffer(text[at : at + PIECE].encode("latin1"), np.uint8)
    return LongBytes(made)


def _bytearray(account: Account, *arguments: Any) -> Bytes:
    return encoded(account, *arguments) if arguments and isinstance(arguments[0], str) else b""


def _array_type(account: Account, code: Any = "", *_: Any) -> ArrayType:
    return ArrayType(code=said(code))


def _array_from_buffer(account: Account, data: Any = b"", kind: Any = None, shape: Any = (), order: Any = "C") -> Array:
    if not isinstance(data, Bytes) or not isinstance(kind, ArrayType):
        raise Refused("an array has no bytes")
    fortran = isinstance(order, str) and order == "F"
    return Array(shape=integers(shape, "an array's shape"), dtype=kind.name, fortran=fortran, data=data)


def _array_scalar(account: Account, kind: Any = None, data: Any = b"") -> Any:
    if isinstance(kind, ArrayType) and isinstance(data, bytes) and kind.name[1:] in NUMPY_TYPES:
        return np.frombuffer(data, kind.name, 1).item() if data else Opaque("numpy.scalar")
    return Opaque("numpy.scalar", (data,))


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
    "torch.Size": _tuple,
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _dictionary,
    "builtins.list": _list,
    "builtins.tuple": _tuple,
    "builtins.set": _list,
    "builtins.frozenset": _list,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": encoded,
    "numpy.dtype": _array_type,
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), lambda *_: Array()),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _array_scalar),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _array_from_buffer),
}


def named(account: Account, module: Any, name: Any) -> Global:
    """Return the name of something outside the stream. Errors: `Refused` where naming it is reason enough."""
    account.spend("names", 1)
    if not isinstance(module, str) or not isinstance(name, str):
        raise Refused("it names something with what is no text")
    if len(module) > BUDGET.name_characters or len(name) > BUDGET.name_characters:
        raise Refused(f"it has a name of more than {BUDGET.name_characters} characters")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    full = f"{module}.{name}"
    if module.split(".")[0] in DANGEROUS_MODULES or (module == "builtins" and name.split(".")[0] in DANGEROUS_BUILTINS):
        raise Refused(f"it names {full[:100]}, which runs code: {WAY_OUT}")
    return Global(full)


def called(account: Account, function: Any, arguments: Any) -> Any:
    """Return what a call in the stream stands for; errors name the callee that is not on the list."""
    if not isinstance(arguments, tuple):
        raise Refused("it calls something with no arguments")
    if not isinstance(function, Global):
        maker = function.name if isinstance(function, Opaque) else kind_of(function)
        raise Refused(f"it calls what {maker[:100]} made: {WAY_OUT}")
    if function in CALLS:
        account.spend("elements", len(arguments))
        try:
            return CALLS[function](account, *arguments)
        except TypeError:
            raise Refused(f"it calls {function[:100]} with {len(arguments)} arguments") from None
    root, last = function.split(".")[0], function.rsplit(".", 1)[-1]
    is_class_of_a_trainer = root in RECORD_MODULES and last[:1].isupper()
    # mmengine keeps its history's methods as `getattr(HistoryBuffer, "mean")`: a name to record, and no dunder.
    is_method_name = (
        function == "builtins.getattr"
        and len(arguments) == 2
        and isinstance(arguments[0], Global)
        and arguments[0].split(".")[0] in RECORD_MODULES
        and isinstance(arguments[1], str)
        and not arguments[1].startswith("_")
    )
    if is_class_of_a_trainer or is_method_name or function in RECORD_CLASSES:
        return Opaque(function, arguments)
    raise Refused(f"it calls {function[:100]}, which is neither a tensor nor a plain container: {WAY_OUT}")
