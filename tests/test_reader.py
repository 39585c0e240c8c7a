"""Reading a stranger's file must give its tensors exactly, or say what is wrong; it must never run anything in it."""

from __future__ import annotations

import collections
import datetime
import functools
import io
import json
import operator
import os
import pathlib
import pickle
import struct
import subprocess
import threading
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from seresnet_hub.checkpoints.reader import read_checkpoint
from seresnet_hub.conversion.convert import convert
from seresnet_hub.errors import InputError

# --- what is read -----------------------------------------------------------------------------------------------------


def example_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, generator=generator)
    return {
        "float": values,
        "transposed": values.t(),
        "part": values[1:3, ::2],
        "half": values.half(),
        "brain": values.bfloat16(),
        "double": values.double(),
        "count": torch.tensor(3),
        "odd": torch.arange(3, dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_files_are_read_as_torch_reads_them(tmp_path: Path, legacy: bool, protocol: int) -> None:
    """Protects every type, view, stride and alignment: the reference is torch.load."""
    path = tmp_path / "a.pth"
    parameter = torch.nn.Parameter(torch.ones(2))
    content = collections.OrderedDict({**example_tensors(), "parameter": parameter})
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    expected, found = torch.load(path, weights_only=False), read_checkpoint(path).tensors
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_safetensors_files_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    """Protects the format's own reader: the reference is the safetensors library."""
    path = tmp_path / "a.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in example_tensors().items()}, path, metadata={"a": "b"})
    expected, checkpoint = load_file(path), read_checkpoint(path)
    assert set(checkpoint.tensors) == set(expected)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in expected.items())
    assert checkpoint.metadata == {"a": "b"}


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_arrays_are_read_as_numpy_wrote_them(tmp_path: Path, protocol: int) -> None:
    """Protects pickled arrays, C and Fortran ordered, in every protocol."""
    arrays = {"c": np.arange(12, dtype="<f4").reshape(3, 4), "f": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))
    if protocol == 0:  # a text pickle has no mark of its own, and PaddlePaddle does not write any
        with pytest.raises(InputError, match="no PyTorch, safetensors or"):
            read_checkpoint(path)
        return
    found = read_checkpoint(path).tensors
    assert all(np.array_equal(found[name].numpy(), array) for name, array in arrays.items())


def test_training_files_with_plain_python_beside_the_weights_are_read(tmp_path: Path) -> None:
    """Protects files that weights_only refuses though nothing in them needs to run."""
    content = {
        "state_dict": {"weight": torch.ones(3)},
        "args": Namespace(lr=0.1),
        "meta": {"time": datetime.datetime(2020, 8, 4), "path": pathlib.PurePosixPath("/x"), "loss": np.float64(0.5)},
        "history": collections.defaultdict(list, {"a": [1, 2]}),
        "seen": {1, 2},
    }
    path = tmp_path / "a.pth"
    torch.save(content, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert torch.equal(checkpoint.tensors["weight"], torch.ones(3))
    assert checkpoint.entries["meta"]["loss"] == 0.5
    assert checkpoint.entries["history"] == {"a": [1, 2]}


# --- what is refused --------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class WithState:
    """Pickles as an instance that is given a state by a call of its class's `__setstate__`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __reduce__(self) -> tuple[Any, ...]:
        return collections.OrderedDict, (), self.inner


def global_of(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def attacks(canary: Path) -> dict[str, Any]:
    """Return harmful payloads by name: objects to pickle, or the bytes of a pickle."""
    command = f"touch {canary}"
    program = f"open({str(canary)!r}, 'w').close()"
    inner = io.BytesIO()
    torch.save({"a": Call(os.system, command)}, inner)
    return {
        "os.system": Call(os.system, command),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(canary)]),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", str(canary)]),
        "eval": Call(eval, program),
        "exec": Call(exec, program),
        "open for writing": Call(open, str(canary), "w"),
        "getattr of a module": Call(getattr, Call(__import__, "os"), "system"),
        "getattr of a class": Call(getattr, Path, "touch"),
        "path method": Call(Path.touch, Path(canary)),
        "deserialising nested pickles": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
        "torch nested load": Call(torch.storage._load_from_bytes, inner.getvalue()),
        "nested reduce": {"a": [({"b": (Call(os.system, command),)},)]},
        "as a key": {Call(os.system, command): 1},
        "in an OrderedDict's state": WithState({"x": Call(os.system, command)}),
        "operator.attrgetter": Call(operator.attrgetter, "system"),
        "map": Call(map, eval, [program]),
        "functools.partial": Call(functools.partial, os.system, command),
        "builtins through a string": Call(__import__, "this"),
        "numpy load": Call(np.load, str(canary)),
        "torch.load": Call(torch.load, str(canary)),
        "torch.hub": Call(torch.hub.load, "a/b", "c"),
        "numpy object array": np.array([Call(os.system, command)], dtype=object),
        "posix": b"\x80\x02" + global_of("posix", "system") + b"(" + text(command) + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + stack_global("os", "system") + text(command) + b"\x85R.",
        "INST": b"\x80\x02(" + text(command) + b"ios\nsystem\n.",
        "OBJ": b"\x80\x02(" + global_of("os", "system") + text(command) + b"o.",
        "NEWOBJ": b"\x80\x02" + global_of("subprocess", "Popen") + b"(" + text(command) + b"t\x81.",
        "NEWOBJ_EX": b"\x80\x04" + stack_global("subprocess", "Popen") + text(command) + b"\x85}\x92.",
        "EXT1": b"\x80\x02\x82\x01(tR.",
        "dotted name": b"\x80\x04" + stack_global("torch", "serialization.os.system") + text(command) + b"\x85R.",
        "getattr chain": b"\x80\x04"
        + stack_global("builtins", "getattr")
        + stack_global("mmengine", "os")
        + text("system")
        + b"\x86R"
        + text(command)
        + b"\x85R.",
        "getattr dunder": b"\x80\x04"
        + stack_global("builtins", "getattr")
        + stack_global("mmengine.logging", "HistoryBuffer")
        + text("__class__")
        + b"\x86R.",
        "BUILD on a function": b"\x80\x02"
        + global_of("torch._utils", "_rebuild_tensor_v2")
        + b"}"
        + text("__code__")
        + text("x")
        + b"sb.",
        "builtins alias": b"\x80\x02" + global_of("__builtin__", "eval") + b"(" + text(program) + b"tR.",
        "a lower-case function of mmengine": b"\x80\x02" + global_of("mmengine.fileio", "get") + b"(tR.",
        "persistent id": b"\x80\x02" + text("x") + b"Q.",
    }


def as_zip(payload: bytes) -> bytes:
    """Return a zip as torch.save writes it, around the bytes of a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def as_legacy(payload: bytes) -> bytes:
    """Return a legacy file as old torch.save wrote it, around the bytes of a pickle."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(part, 2) for part in head) + payload + pickle.dumps([], 2)


WRAPPERS: dict[str, Callable[[bytes], bytes]] = {"zip": as_zip, "legacy": as_legacy, "plain": lambda payload: payload}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("attack", attacks(Path("canary")))
def test_nothing_in_a_hostile_pickle_runs(tmp_path: Path, attack: str, wrapper: str) -> None:
    """Protects the machine of whoever converts a stranger's file: the canary of every attack stays away."""
    canary = tmp_path / "canary"
    payload = attacks(canary)[attack]
    pickled = payload if isinstance(payload, bytes) else pickle.dumps({"state_dict": {"w": payload}}, protocol=2)
    path = tmp_path / "evil.pth"
    path.write_bytes(WRAPPERS[wrapper](pickled))
    with pytest.raises(InputError, match=r"evil\.pth"):
        convert(path, tmp_path / "out")
    time.sleep(0.05 if "Popen" in attack else 0)
    assert not canary.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.pth"]


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """Protects the test above from testing nothing: the same bytes do run in an ordinary unpickler."""
    canary = tmp_path / "canary"
    for attack in (
        "os.system",
        "eval",
        "INST",
        "STACK_GLOBAL",
        "deserialising nested pickles",
        "in an OrderedDict's state",
    ):
        payload = attacks(canary)[attack]
        pickle.loads(payload if isinstance(payload, bytes) else pickle.dumps(payload, protocol=2))
        assert canary.exists(), attack
        canary.unlink()


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        ("os.system", "posix.system"),
        ("eval", "builtins.eval"),
        ("numpy load", "numpy.*load"),
        ("getattr chain", "getattr"),
    ],
)
def test_what_is_executable_is_refused_by_name(tmp_path: Path, attack: str, named: str) -> None:
    """Protects the message: a person must learn what the file tried to do."""
    payload = attacks(tmp_path / "canary")[attack]
    path = tmp_path / "evil.pth"
    path.write_bytes(as_zip(payload if isinstance(payload, bytes) else pickle.dumps(payload, protocol=2)))
    with pytest.raises(InputError, match=rf"{named}.*nothing in it was run"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore")
def test_programs_are_refused(tmp_path: Path) -> None:
    """Protects from TorchScript, torch.package and whole models, all of which are code."""
    model = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.script(model), tmp_path / "script.pt")
    with pytest.raises(InputError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")
    with torch.package.PackageExporter(str(tmp_path / "package.pt")) as exporter:
        exporter.intern("references.**")
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", model)
    with pytest.raises(InputError, match=r"torch\.package"):
        read_checkpoint(tmp_path / "package.pt")
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "whole.pth")
    torch.save({"model": model, "epoch": 1}, tmp_path / "inside.pth")
    with pytest.raises(InputError, match=r"Linear.*state_dict\(\)"):
        read_checkpoint(tmp_path / "inside.pth")


OTHER_FILES = {
    "empty": (b"", "empty"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "gzip"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "Caffe": (b"\n\x0bSE-ResNet50" + bytes(64), "legacy_senet154"),
    "tar": (bytes(257) + b"ustar" + bytes(250), "tar archive"),
    "no state dict": (pickle.dumps({"a": 1}, 2), "no state dict"),
    "a list": (pickle.dumps([1, 2], 2), "no state dict"),
    "something behind": (pickle.dumps({}, 2) + b"x", "behind"),
    "endless": (b"\x80\x02(", "damaged or no checkpoint"),
    "not numbers": (pickle.dumps({"a": np.array(["x"])}, 2), "no weights are"),
    "not tensors": (pickle.dumps({"w": np.ones(2, "f4"), "x": "y"}, 2), "'x' in its state dict is no tensor"),
    "deep": (b"\x80\x02" + b"(" * 100_000 + b".", "takes more than it put"),
    "deep tuples as key": (b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s.", "key of type tuple"),
    "long number": (b"\x80\x02I" + b"9" * 70_000 + b"\n.", "a line of more than"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_refused_with_words(tmp_path: Path, kind: str) -> None:
    """Protects people with the wrong file: one line says what it is."""
    content, message = OTHER_FILES[kind]
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def tensor_pickle(count: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Return a pickle of one float tensor with any sizes, as torch.save writes them."""
    storage = b"(" + text("storage") + global_of("torch", "FloatStorage") + text("0") + text("cpu")
    storage += pickle.dumps(count, 2)[2:-1] + b"tQ"
    sizes = b"".join(b"(" + b"".join(pickle.dumps(n, 2)[2:-1] for n in numbers) + b"t" for numbers in (shape, stride))
    call = global_of("torch._utils", "_rebuild_tensor_v2") + b"(" + storage
    call += pickle.dumps(offset, 2)[2:-1] + sizes + b"\x89" + global_of("collections", "OrderedDict") + b")RtR"
    return b"\x80\x02}" + text("w") + call + b"s."


@pytest.mark.parametrize(
    ("count", "shape", "stride", "offset"),
    [
        (4, (2**40,), (0,), 0),
        (4, (1 << 20, 1 << 20), (0, 0), 0),
        (2**62, (2**62,), (1,), 0),
        (4, (-1,), (1,), 0),
        (4, (5,), (1,), 0),
        (4, (2,), (3,), 2),
        (4, (2,), (1,), -1),
        (10**12, (10**12,), (1,), 0),
        (4, (1,) * 100, (1,) * 100, 0),
        (4, (True,), (1,), 0),
        (4, (2, 2), (1,), 0),
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_memory_is_taken(
    tmp_path: Path, count: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    """Protects memory: a size is believed only when the file has the bytes for it."""
    path = tmp_path / "a.pth"
    payload = tensor_pickle(count, shape, stride, offset)
    buffer = io.BytesIO(as_zip(payload))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data/0", np.ones(4, "f4").tobytes())
    for content in (buffer.getvalue(), as_legacy(payload)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.pth is refused"):
            read_checkpoint(path)


def test_sizes_that_fit_are_read(tmp_path: Path) -> None:
    """Protects the test above from refusing everything."""
    buffer = io.BytesIO(as_zip(tensor_pickle(4, (2, 2), (2, 1))))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data/0", np.ones(4, "f4").tobytes())
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    assert torch.equal(read_checkpoint(tmp_path / "a.pth").tensors["w"], torch.ones(2, 2))


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    """Protects disk and memory: torch.save never compresses, so nothing is ever decompressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(2**24, (2**24,), (1,)))
        archive.writestr("archive/data/0", bytes(2**26))
    (tmp_path / "bomb.pth").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="zip bomb"):
        read_checkpoint(tmp_path / "bomb.pth")
    payload = b"\x80\x02}(" + b"".join(
        text(f"w{k}") + tensor_pickle(1000, (1000,), (1,))[len(b"\x80\x02}" + text("w")) : -2] for k in range(100)
    )
    buffer = io.BytesIO(as_zip(payload + b"u."))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data/0", bytes(4000))
    (tmp_path / "shared.pth").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="times the bytes of the file"):
        read_checkpoint(tmp_path / "shared.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "arrays"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    """Protects from broken downloads, wherever the file ends."""
    whole, path = tmp_path / "whole", tmp_path / "cut.pth"
    tensors = {f"w{k}": torch.randn(8, 8) for k in range(4)}
    if kind == "safetensors":
        save_file(tensors, whole)
    elif kind == "arrays":
        whole.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in tensors.items()}, 4))
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    assert read_checkpoint(whole).tensors
    for length in range(0, len(content), max(1, len(content) // 150)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.pth"):
            read_checkpoint(path)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Protects from converting half of a file that a training is writing."""
    path = tmp_path / "growing.pth"
    torch.save({"w": torch.zeros(2**22)}, path)
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not stop.is_set():
                file.write(b"x")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(InputError, match="changed while it was read"):
            _read_often(path)
    finally:
        stop.set()
        writer.join()


def _read_often(path: Path) -> None:
    for _ in range(200):
        read_checkpoint(path)


def many_times(count: int) -> bytes:
    """Return instructions for a tuple whose text is 2**count times as long as they are."""
    return b")" + b"2\x86" * count


@pytest.mark.parametrize(
    "payload",
    [
        many_times(60) + text("x") + b"\x93",
        b"(" + text("storage") + many_times(60) + text("0") + text("cpu") + b"K\x01tQ",
        b"(" + text("storage") + global_of("torch", "FloatStorage") + text("0") + text("cpu") + many_times(60) + b"tQ",
        global_of("torch._tensor", "_rebuild_from_type_v2") + b"(" + many_times(60) + b"N)NtR",
        global_of("numpy", "dtype") + b"(" + many_times(60) + b"tR",
    ],
    ids=["name", "storage type", "storage size", "tensor function", "array type"],
)
def test_nested_tuples_are_never_made_text(tmp_path: Path, payload: bytes) -> None:
    """Protects time and memory: sixty small instructions would make more text than there is memory."""
    for wrapper in (as_zip, as_legacy):
        (tmp_path / "a.pth").write_bytes(wrapper(b"\x80\x02" + payload + b"."))
        with pytest.raises(InputError, match=r"a\.pth is refused"):
            read_checkpoint(tmp_path / "a.pth")


def test_messages_are_plain_text(tmp_path: Path) -> None:
    """Protects terminals from names in a file that would command them."""
    (tmp_path / "a.pth").write_bytes(b"\x80\x04" + stack_global("x\nerror: fine", "y\x1b[2J") + b")R.")
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / "a.pth")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
    ],
    ids=["overlap", "gap", "behind", "twice"],
)
def test_safetensors_files_that_hide_bytes_are_refused(tmp_path: Path, header: str) -> None:
    """Protects as the format demands: every byte belongs to one tensor, and every tensor has its own name."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(12))
    with pytest.raises(InputError, match=r"overlap|behind|twice"):
        read_checkpoint(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-8-sig"])
def test_a_safetensors_header_is_utf_8(tmp_path: Path, encoding: str) -> None:
    """Protects from readers that disagree: safetensors itself refuses the same file."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(encoding)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        read_checkpoint(path)


def test_checkpoints_are_read_where_files_cannot_be_opened_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects Windows, which has no such flag."""
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    monkeypatch.delattr(os, "O_NONBLOCK")
    assert read_checkpoint(tmp_path / "a.pth").tensors["w"].tolist() == [1.0, 1.0]
