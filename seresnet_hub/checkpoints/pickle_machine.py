"""Follow the instructions of a pickle without running any of them.

A pickle is a program. `Machine` follows it on records of its own, so that "call os.system" is text to refuse and not a
call. What a stream may describe is in `pickle_values`, how much of it in `reading_budget`.

Source: https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import pickletools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from seresnet_hub.checkpoints.pickle_values import (
    CALLS,
    LARGE,
    Array,
    ArrayType,
    Bytes,
    Global,
    Opaque,
    as_key,
    called,
    encoded,
    integers,
    kind_of,
    named,
)
from seresnet_hub.checkpoints.reading_budget import BUDGET, WAY_OUT, Account, Refused


class _Mark:
    pass


_MARK = _Mark()
_NOTHING = _Mark()
# Instructions whose many bytes can stay where they are in the file.
_WITH_TEXT = frozenset({b"X", b"\x8d"})
_WITH_BYTES = _WITH_TEXT | {b"B", b"\x8e", b"\x96"}
# What `BUDGET.numbers` counts: each makes one small value.
_NUMBERS = frozenset({"BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE"})
_WIDE = 0xC4  # the least byte of UTF-8 that begins a character beyond Latin-1
LONGEST_WIDE_TEXT = BUDGET.wide_text_bytes // 4
_SINGLE = [bytes([value]) for value in range(256)]
_LINE_PIECE = 256


class ByteStream:
    """The part of a buffer from `start` to `stop` as the file object that `pickletools` reads.

    With `views`, long runs of bytes are views of the buffer instead of copies: its bytes must then stay in place.
    """

    def __init__(self, data: memoryview, start: int, stop: int, *, views: bool = True) -> None:
        self._data, self._at, self._stop = data, start, stop
        self._views = views
        self._last = b""  # the single byte read last: the instruction, if many bytes are read next

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        start = self._at
        if count == 1 and start < self._stop:
            self._at = start + 1
            self._last = _SINGLE[self._data[start]]
            return self._last
        self._at = min(start + count, self._stop)
        piece = self._data[start : self._at]
        if count < LARGE or self._last not in _WITH_BYTES:
            return bytes(piece)
        if count > LONGEST_WIDE_TEXT and self._last in _WITH_TEXT and np.frombuffer(piece, np.uint8).max() >= _WIDE:
            raise Refused(f"it has a text of {count} bytes beyond Latin-1")
        return piece if self._views else bytes(piece)  # type: ignore[return-value]  # it is measured and decoded

    def readline(self) -> bytes:
        start, pieces = self._at, []
        while self._at < self._stop:
            piece = bytes(self._data[self._at : min(self._at + _LINE_PIECE, self._stop)])
            end = piece.find(b"\n") + 1
            pieces.append(piece[:end] if end else piece)
            self._at += len(pieces[-1])
            if end:
                break
            if self._at - start > BUDGET.line_bytes:
                raise Refused(f"it has a line of more than {BUDGET.line_bytes} bytes where a name belongs")
        return b"".join(pieces)


def unpickled(stream: ByteStream, account: Account, storage: Callable[[Any], Any] | None = None) -> Any:
    """Return what the pickle at the stream's position describes, and leave the stream behind it.

    `storage` says what a persistent id stands for; without it, there may be none. Errors: `Refused` says why.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in the stream's text: it is not Python that anybody here wrote
        return Machine(account, storage).read(stream)


class Machine:
    """Follows one pickle; its value consists of `Tensor`, `Array`, `Opaque` and plain containers."""

    def __init__(self, account: Account, storage: Callable[[Any], Any] | None = None) -> None:
        self._account = account
        self._storage = storage
        self._stack: list[Any] = []
        # A list: keys of a dictionary could be chosen so that each is compared with all others.
        self._memo: list[Any] = []
        self._kept = 0

    def read(self, stream: ByteStream) -> Any:
        """Return the value of the pickle that starts at the stream's position, and leave the stream behind it."""
        left, numbers_left = self._account.left("instructions"), self._account.left("numbers")
        taken = numbers = 0
        for operation, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # what it uses of a file is there
            if operation.name in _NUMBERS:
                numbers += 1
            else:
                taken += 1
            if taken > left or numbers > numbers_left or operation.name == "STOP":
                self._account.spend("instructions", taken)
                self._account.spend("numbers", numbers)
                return self._pop()
            self._step(operation.name, argument)
        raise Refused("its pickle has no end")

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Refused("its pickle takes more than it put")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                return values
        raise Refused("its pickle takes more than it put")

    def _keep(self, place: int) -> None:
        value = self._top()
        if not 0 <= place <= BUDGET.instructions:
            raise Refused(f"its pickle keeps a value at place {place}")
        if place >= len(self._memo):
            self._memo.extend([_NOTHING] * (place + 1 - len(self._memo)))
        self._kept += self._memo[place] is _NOTHING
        self._memo[place] = value

    def _recall(self, place: int) -> Any:
        if not 0 <= place < len(self._memo) or self._memo[place] is _NOTHING:
            raise Refused("its pickle recalls what it never kept")
        return self._memo[place]

    def _text(self, text: str) -> str:
        """Return a text of the stream; of what takes several bytes a character, there may not be much."""
        size = sys.getsizeof(text)
        if size > len(text) + 128:
            self._account.spend("wide_text_bytes", size)
        return text

    def _step(self, name: str, argument: Any) -> None:
        push = self._stack.append
        match name:
            case "BINGET" | "LONG_BINGET" | "GET":
                push(self._recall(argument))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._keep(argument)
            case "MEMOIZE":
                self._keep(self._kept)
            case (
                "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "UNICODE" | "STRING" | "BINSTRING"
                | "SHORT_BINSTRING"
            ):  # fmt: skip
                push(self._text(argument))
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT"
                | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
            ):  # fmt: skip
                push(argument)
            case "MARK":
                push(_MARK)
            case "TUPLE":
                push(tuple(self._pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([self._pop() for _ in range(int(name[-1]))])))
            case "PROTO" | "FRAME":
                pass
            case "POP":
                if not self._stack:
                    raise Refused("its pickle takes more than it put")
                self._stack.pop()
            case "POP_MARK":
                self._pop_mark()
            case "DUP":
                push(self._top())
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_SET":
                push([])
            case "EMPTY_DICT":
                push({})
            case "EMPTY_TUPLE":
                push(())
            case "LIST" | "FROZENSET":
                push(self._pop_mark())
            case "DICT":
                values = self._pop_mark()
                push({})
                self._set_items(self._stack[-1], values)
            case "APPEND":
                value = self._pop()
                _append(self._top(), [value])
            case "APPENDS" | "ADDITEMS":
                values = self._pop_mark()
                _append(self._top(), values)
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set_items(self._top(), [key, value])
            case "SETITEMS":
                values = self._pop_mark()
                self._set_items(self._top(), values)
            case "GLOBAL":
                push(named(self._account, *argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                push(named(self._account, module, attribute))
            case "REDUCE":
                arguments, function = self._pop(), self._pop()
                push(called(self._account, function, arguments))
            case "NEWOBJ" | "NEWOBJ_EX":
                keywords = self._pop() if name == "NEWOBJ_EX" else {}
                arguments, kind = self._pop(), self._pop()
                self._instantiate(kind, (arguments, keywords) if keywords else arguments)
            case "OBJ":
                kind, *rest = self._pop_mark() or [None]
                self._instantiate(kind, tuple(rest))
            case "INST":
                arguments = tuple(self._pop_mark())
                self._instantiate(named(self._account, *argument.split(" ", 1)), arguments)
            case "BUILD":
                state = self._pop()
                self._build(self._top(), state)
            case "PERSID" | "BINPERSID":
                identity = argument if name == "PERSID" else self._pop()
                if self._storage is None:
                    raise Refused("its pickle points outside itself")
                push(self._storage(identity))
            case _:  # extension codes look functions up in this process; out-of-band buffers are not in the file
                raise Refused(f"its pickle uses the instruction {name}: {WAY_OUT}")

    def _instantiate(self, kind: Any, arguments: Any) -> None:
        """Push a record of an instance: no class is looked up, so none can do harm."""
        if not isinstance(kind, Global):
            raise Refused("it makes an instance of something that is no class")
        known = kind in CALLS and isinstance(arguments, tuple)
        self._stack.append(called(self._account, kind, arguments) if known else Opaque(kind, arguments))

    def _set_items(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, Opaque):
            target = target.items
        if not isinstance(target, dict) or len(values) % 2:
            raise Refused("it sets items of something that has none")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[as_key(self._account, key)] = value

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, Array):
            if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], ArrayType):
                raise Refused("an array is not described as NumPy does")
            data = encoded(self._account, state[4]) if isinstance(state[4], str) else state[4]
            if not isinstance(data, Bytes):
                raise Refused("an array holds objects instead of numbers")
            target.shape, target.dtype = integers(state[1], "an array's shape"), state[2].name
            target.fortran, target.data = state[3] is True or state[3] == 1, data
        elif isinstance(target, ArrayType):
            if isinstance(state, tuple) and len(state) > 1 and isinstance(state[1], str):
                target.order = state[1]
        elif isinstance(target, Opaque):
            target.state = state
        elif not isinstance(target, dict):  # an OrderedDict's attributes, such as PyTorch's `_metadata`, are not needed
            raise Refused(f"it changes the inside of a {kind_of(target)}")


def _append(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Opaque):
        raise Refused("it appends to something that is no list")
