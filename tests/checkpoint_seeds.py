"""Small checkpoint files as training codes write them, for fuzzing to begin with, and what it may do to them."""

from __future__ import annotations

import collections
import datetime
import io
import json
import pickle
import pickletools
import random
import struct
import sys
import types
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from checkpoint_bytes import as_legacy, as_zip
from safetensors.torch import save

CONFIG = """
model = dict(type='ImageClassifier', backbone=dict(type='SEResNet', depth=50, style='pytorch'),
    neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=3, in_channels=8))
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""
NAMES = (
    "backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.running_mean", "backbone.bn1.num_batches_tracked",
    "backbone.layer1.0.se_layer.conv1.conv.weight", "backbone.layer1.0.se_layer.conv1.conv.bias", "head.fc.weight",
)  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 3, generator=generator) for name in NAMES}


@contextmanager
def _history() -> Iterator[Any]:
    """Lend the class under which mmengine pickles a history: the file then names it, and nobody needs mmengine."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    made = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = made  # type: ignore[attr-defined]
    names = ("mmengine", "mmengine.logging", module.__name__)
    kept = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names[:2]} | {module.__name__: module})
    try:
        yield made
    finally:
        for name, old in kept.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old


def _trained() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state dict and the optimizer's after a step."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return layer.state_dict(), optimizer.state_dict()


def mmengine(*, legacy: bool = False, protocol: int = 2) -> bytes:
    with _history() as history:
        buffer, record = io.BytesIO(), history()
        record._log_history = np.arange(3.0)
        content = {
            "meta": {"cfg": CONFIG, "epoch": 3, "time": datetime.datetime(2020, 8, 4), "CLASSES": ["a", "b", "c"],
                     "dataset_meta": {"classes": ("a", "b", "c")}},
            "state_dict": collections.OrderedDict(tensors()),
            "message_hub": {"log_scalars": {"loss": record}, "runtime_info": {"seed": np.int64(3), 1: {2, 3}}},
            "optimizer": _trained()[1], "param_schedulers": [{"base_values": [0.1], "last_step": 4}],
        }  # fmt: skip
        torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def timm(*, legacy: bool = False) -> bytes:
    state, optimizer = _trained()
    content = {
        "epoch": 3, "arch": "seresnet50", "state_dict": {**state, "count": torch.tensor(3)}, "optimizer": optimizer,
        "version": 2, "args": Namespace(lr=0.1, path=PurePosixPath("/x"), betas=(0.9, 0.999)), "metric": 71.5,
        "amp_scaler": {"scale": 65536.0, "growth_tracker": 0}, "state_dict_ema": tensors(),
    }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def views() -> bytes:
    values = torch.arange(12.0).reshape(3, 4)
    content = {"a": values, "b": values.t(), "c": values[1:, ::2], "d": values.half(), "e": values.bfloat16(),
               "f": torch.nn.Parameter(values), "g": torch.zeros(0, 3), "h": torch.tensor([True])}  # fmt: skip
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def arrays(protocol: int) -> bytes:
    content: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors().items()}
    content["large"] = np.linspace(0, 1, 2000, dtype="f4").reshape(40, 50)
    content["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    content["StructuredToParameterName@@"] = {"a": "b"}
    return pickle.dumps(content, protocol)


def safetensors() -> bytes:
    return save({**tensors(), "half": torch.ones(3).half()}, metadata={"format": "pt", "source": "x"})


SEEDS: dict[str, Callable[[], bytes]] = {
    "mmengine": mmengine,
    "mmengine, protocol 4": lambda: mmengine(protocol=4),
    "mmengine, legacy": lambda: mmengine(legacy=True),
    "timm": timm,
    "timm, legacy": lambda: timm(legacy=True),
    "views": views,
    "arrays, protocol 2": lambda: arrays(2),
    "arrays, protocol 4": lambda: arrays(4),
    "arrays, protocol 5": lambda: arrays(5),
    "safetensors": safetensors,
}


def pickle_in(content: bytes) -> bytes:
    """Return the pickle with the tensors' descriptions in a file."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    return content


# --- mutations --------------------------------------------------------------------------------------------------------

SIZES = (0, 1, 7, 127, 128, 255, 256, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
OPCODES = [operation.code.encode("latin1") for operation in pickletools.opcodes]
FRAGMENTS = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\ngetattr\n", b"(S'touch executed'\ntR",
    b"c_codecs\nencode\n", b"(ios\nsystem\n", b"\x8c\x02os\x8c\x06system\x93", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n)R", b"cnumpy.core.multiarray\n_reconstruct\n", b"q\xff", b"h\x00", b"h\x01", b"2\x86",
    b"\x85", b"}", b"]", b"(", b"t", b"l", b"d", b"\x8a\xff", b"\x8b\xff\xff\xff\x7f", b"X\xff\xff\xff\xff",
    b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"\x96\0\0\0\x10\0\0\0\0", b"I01\n", b"L99999999999999999999L\n",
    b"F1e999\n", b"G\x7f\xf8\0\0\0\0\0\0", b"Q", b"R", b"b", b"\x81", b"\x92", b"o", b"s", b"u",
)  # fmt: skip
TOKENS = ("0", "-1", "1e999", "null", "[]", "{}", '"F64"', '"BF16"', "9" * 30, "true", "[1,2]", '"\\ud800"', '"shape"')


def _changed_bytes(rng: random.Random, content: bytes, _: list[bytes]) -> bytes:
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(made))
        made[at] = rng.choice((made[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    return bytes(made)


def _cut(rng: random.Random, content: bytes, _: list[bytes]) -> bytes:
    return content[: rng.randrange(len(content))]


def _removed(rng: random.Random, content: bytes, _: list[bytes]) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 2, 8, 64)) :]


def _doubled(rng: random.Random, content: bytes, _: list[bytes]) -> bytes:
    at, count = rng.randrange(len(content)), rng.choice((1, 4, 32, 256))
    return content[: at + count] + content[at : at + count] * rng.choice((1, 1, 100)) + content[at + count :]


def _spliced(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    at, start = rng.randrange(len(content)), rng.randrange(len(other))
    piece = other[start : start + rng.choice((4, 32, 256, 2048))]
    return content[:at] + piece + content[at + rng.choice((0, len(piece))) :]


def _other_lengths(rng: random.Random, content: bytes, _: list[bytes]) -> bytes:
    at, width = rng.randrange(max(1, len(content) - 8)), rng.choice((1, 2, 4, 8))
    size = rng.choice((*SIZES, len(content), len(content) - 1)) % 2 ** (8 * width)
    return content[:at] + size.to_bytes(width, "little") + content[at + width :]


def _appended(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    return content + rng.choice((b"\0", b"x" * 100, rng.choice(others)))


def _with_instructions(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Insert instructions between those of the pickle, or put others in their place, and wrap it up again."""
    inner = pickle_in(content)
    try:
        places = [at for _, _, at in pickletools.genops(inner) if at is not None]
    except ValueError:
        places = [0]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = min(rng.choice(places), len(inner))
        new = rng.choice((rng.choice(FRAGMENTS), rng.choice(OPCODES), rng.choice(OPCODES) + rng.randbytes(2)))
        inner = inner[:at] + new + inner[at + rng.choice((0, 0, 1)) :]
    return _wrapped(rng, content, inner)


def _changed_pickle(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    change = rng.choice((_changed_bytes, _removed, _doubled, _spliced, _other_lengths, _cut))
    return _wrapped(rng, content, change(rng, pickle_in(content), others))


def _wrapped(rng: random.Random, content: bytes, inner: bytes) -> bytes:
    if not content.startswith(b"PK"):
        return inner
    if rng.random() < 0.1:
        return as_legacy(inner)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        kept = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist() if "/data/" in name}
    return as_zip(inner, kept)


def _changed_header(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Change the text of a safetensors header, whose length is kept right; other files change otherwise."""
    if content[8:9] != b"{":
        return _with_instructions(rng, content, others)
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].decode()
    for _ in range(rng.choice((1, 1, 3))):
        parts = json.JSONEncoder().iterencode(json.loads(header)) if rng.random() < 0.1 else list(header)
        text = "".join(parts)
        at = rng.randrange(len(text))
        header = text[:at] + rng.choice(TOKENS) + text[at + rng.choice((0, 1, 5)) :]
        if rng.random() < 0.5:
            header = header.replace('"F32"', rng.choice(TOKENS), 1)
        try:
            json.loads(header)
        except ValueError:
            break
    data = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data + content[8 + length :]


MUTATIONS = (
    _changed_bytes, _cut, _removed, _doubled, _spliced, _other_lengths, _appended, _with_instructions,
    _with_instructions, _changed_pickle, _changed_pickle, _changed_header,
)  # fmt: skip


def mutated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` files with a name each; equal numbers give equal files."""
    rng = random.Random(seed)
    contents = {name: make() for name, make in SEEDS.items()}
    for k in range(count):
        name = rng.choice(list(contents))
        change = rng.choice(MUTATIONS)
        yield f"{k} {name} {change.__name__}", change(rng, contents[name], list(contents.values())) or b"\0"
